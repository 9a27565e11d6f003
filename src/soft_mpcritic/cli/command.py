"""The command line: parse, build, run; nothing else."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from soft_mpcritic.cli.parsing import parse
from soft_mpcritic.config import ConfigError
from soft_mpcritic.divergence import DivergenceError
from soft_mpcritic.envs import EnvironmentFaultError
from soft_mpcritic.files import StorageError
from soft_mpcritic.reproduce.command import FailedRunsError

RUNS_FAILED = 1
USER_CAN_MEND = 2
READER_GONE = 141  # as a shell tells of a process that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when done, 2 for what the user can mend (one line on standard error).

    An environment that raised has its traceback below that line. 1 where runs of a grid failed: the line names them
    and their logs.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments == ["--version"]:
        print(f"soft-mpcritic {version('soft-mpcritic')}")
        return 0
    try:
        parse(arguments).run()
    except EnvironmentFaultError as error:
        print(f"soft-mpcritic: {error.text}", file=sys.stderr)
        return USER_CAN_MEND
    except (ConfigError, DivergenceError, StorageError) as error:
        print(f"soft-mpcritic: {error}", file=sys.stderr)
        return USER_CAN_MEND
    except FailedRunsError as error:
        print(f"soft-mpcritic: {error}", file=sys.stderr)
        return RUNS_FAILED
    return 0


def entry_point() -> None:
    """What the installed command calls. Modules in the current folder are found, as `python -m` finds them.

    They come last: no file that happens to lie there takes the place of a library.
    """
    sys.path.append(os.getcwd())
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough: `soft-mpcritic train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = READER_GONE
    sys.exit(status)
