"""Files that survive: a process that is killed, a disk that is full, a line that was cut off.

What is replaced is replaced whole or not at all; what grows loses no row, however often a write fails.
"""

import csv
import errno
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOG = logging.getLogger("soft_mpcritic")
PROTECTED = (errno.EROFS, errno.EACCES, errno.EPERM)


class StorageError(RuntimeError):
    """A run folder or a file that cannot be written; the message is one line and says what is safe, or what to do."""


def why(error: OSError) -> str:
    """The system's own words for what went wrong, in one line."""
    return error.strerror or " ".join(str(error).split())[:200]


def remedy(error: OSError) -> str:
    """What the user can do about it."""
    return "make it writable" if error.errno in PROTECTED else "make room"


def unwritable(what: object, error: OSError) -> str:
    """That something cannot be written, why, and what to do."""
    return f"{what} cannot be written: {why(error)}; {remedy(error)}"


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all: a new file takes the old one's place."""
    replace_whole(path, json.dumps(record, indent=2) + "\n")


def replace_whole(path: Path, text: str) -> None:
    """Puts `text` in the place of a file; the old one stays as it was where that fails."""
    with whole(path) as temporary:
        temporary.write_text(text)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; where that fails, all stays as it was.

    The new content is on the disk before the old one is gone, whatever the power does meanwhile.
    """
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        temporary.touch()
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # half a file would take room on a full disk
        raise
    sync(path.parent)


@contextmanager
def delivered(path: Path) -> Iterator[Path]:
    """`whole` for what a user asked for; raises `StorageError` where it cannot be written."""
    try:
        with whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise StorageError(f"{unwritable(path, error)}, or choose another.") from error


def add_whole(path: Path, content: bytes) -> None:
    """Adds to the end of a file: all of `content`, or nothing where that fails."""
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while content:  # a write may take only the first part of what it is given
                content = content[os.write(file.fileno(), content) :]
        except OSError:
            file.truncate(before)
            raise


def sync(path: Path) -> None:
    """What was written to a file or a folder is on the disk when this returns, whatever the power does then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Table:
    """A CSV file that grows by rows and can forget those after a given environment step.

    Rows that cannot be written, to a full disk for instance, wait in memory for the next try.
    """

    def __init__(self, path: Path, columns: Sequence[str], keep_until: int = -1) -> None:
        self._path, self._columns = path, list(columns)
        self._waiting: list[str] = []
        head = _line(columns)
        kept = [row for row in self._sound_rows() if int(row["env_step"]) <= keep_until]
        lines = [_line([row.get(column, "") for column in self._columns]) for row in kept]
        text = "".join([head, *lines])
        if not path.is_file() or path.read_bytes() != text.encode():
            replace_whole(path, text)

    @property
    def name(self) -> str:
        return self._path.name

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row and hands it to the operating system; raises `OSError` where it has to wait for the next try."""
        unknown = set(row) - set(self._columns)
        if unknown:
            raise ValueError(f"{self._path.name} has no column {', '.join(sorted(unknown))}")
        self._waiting.append(_line([row.get(column, "") for column in self._columns]))
        self.flush()

    def flush(self) -> None:
        """Writes the rows that wait: all of them or none."""
        if not self._waiting:
            return
        add_whole(self._path, "".join(self._waiting).encode())
        self._waiting.clear()

    def sync(self) -> None:
        """Writes what waits, and sees it to the disk."""
        self.flush()
        sync(self._path)

    def _sound_rows(self) -> list[dict[str, str]]:
        """The rows of the file as it is; one that is no row any more is named and left out."""
        if not self._path.is_file():
            return []
        rows = read_table(self._path)
        sound = [row for row in rows if _is_whole(row)]
        if len(sound) < len(rows):
            LOG.warning("%s: %d damaged rows are left out", self._path, len(rows) - len(sound))
        return sound


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column name; a last line that was cut off while being written is left out."""
    text = path.read_bytes().decode(errors="replace")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(whole.splitlines()))


def _is_whole(row: Mapping[Any, Any]) -> bool:
    return None not in row and None not in row.values() and str(row.get("env_step", "")).isdecimal()


def _line(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
