"""The run folder: what a run was told and what it found, as plain files.

A folder is data. Settings and counters are JSON, tables are CSV; nothing in it is ever executed.
"""

import contextlib
import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import filelock

from soft_mpcritic.config import LONGEST, Config, ConfigError, check, from_dict, to_dict
from soft_mpcritic.files import read_table, why, write_json
from soft_mpcritic.parts import NOTHING_OWN, Parts
from soft_mpcritic.provenance import provenance

LOCK = ".lock"
LARGEST_RECORD = 2**20  # bytes of config.json
MOST_EARLIER = 100  # processes of a run that were made otherwise than those before
FORMAT = 1  # of the run folder; raised when an old folder can no longer be read
OURS = "soft-mpcritic"  # the algorithm of a run that does not name one
CHANGEABLE = (  # on resume
    "evaluate_every",
    "evaluation_episodes",
    "checkpoint_every",
    "checkpoints_kept",
    "tracker",
    "faults_tolerated",
    "step_timeout",
    "skips_tolerated",
    "divergence",
)
DESCRIBED = {"env_id": str, "algorithm": str, "preset": str, "seed": int, "total_steps": int, "settings": dict}
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "gymnasium", "mujoco", "numpy", "safetensors")


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """What config.json says of any run, of our algorithm or of a baseline."""

    env_id: str
    algorithm: str
    preset: str
    seed: int
    total_steps: int
    settings: Mapping[str, Mapping[str, Any]]  # by section and name


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a run of our algorithm was asked to do; config.json holds it."""

    env_id: str
    preset: str
    seed: int
    total_steps: int
    config: Config
    parts: Parts = NOTHING_OWN  # handed over in Python; others are imported by their names in `config`

    @property
    def description(self) -> RunDescription:
        return RunDescription(self.env_id, OURS, self.preset, self.seed, self.total_steps, to_dict(self.config))


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        return (self.path / "config.json").is_file()

    @property
    def has_checkpoints(self) -> bool:
        """Whether a whole checkpoint is there: they are named by their environment step."""
        path = self.path / "checkpoints"
        return path.is_dir() and any(entry.name.isdigit() for entry in path.iterdir())

    @property
    def curve(self) -> Path:
        return self.path / "learning_curve.png"

    def mean_returns(self) -> dict[int, float]:
        """What evaluations returned, by environment step: means over episodes. Rows that are damaged do not count."""
        table, returns = self.path / "evaluations.csv", defaultdict[int, list[float]](list)
        for row in read_table(table) if table.is_file() else ():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                returns[int(row["env_step"])].append(float(row["return"]))
        return {step: fmean(of_step) for step, of_step in returns.items() if of_step}

    def create(
        self,
        run: RunSettings | RunDescription,
        packages: Sequence[str] = PACKAGES,
        forks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Makes the folder and writes config.json: what the run is told, what it is made with, and where it comes from.

        Earlier processes that were made otherwise stay on record, and so do runs that it was forked from. Raises
        `ConfigError` where nothing can be written.
        """
        description = run.description if isinstance(run, RunSettings) else run
        made = provenance(packages)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            history = {"earlier": self._earlier(made), "forks": [*self.forks(), *forks]}
            record = {"format": FORMAT, **made, **dataclasses.asdict(description), **history}
            write_json(self.path / "config.json", record)
        except OSError as error:
            raise ConfigError(f"run folder {self.path} cannot be written: {why(error)}; choose another.") from error

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains in this folder meanwhile; raises `ConfigError` where somebody already does.

        The system lets go of it when the process ends, however it ends.
        """
        lock = filelock.FileLock(self.path / LOCK, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout as error:
            raise ConfigError(f"another process trains in {self.path}: wait for it, or choose another.") from error
        except OSError as error:
            raise ConfigError(f"run folder {self.path} cannot be written: {why(error)}; choose another.") from error
        try:
            yield
        finally:
            lock.release()

    def forks(self) -> list[dict[str, Any]]:
        """The runs that this one goes on from, the first one first: `run`, `env_step`, and what was `changed`."""
        told = self.read_record().get("forks") if self.exists else None
        return [fork for fork in told if isinstance(fork, dict)] if isinstance(told, list) else []

    def _earlier(self, made: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self.exists:
            return []
        record = self.read_record()
        before, earlier = {name: record.get(name) for name in made}, record.get("earlier")
        known = earlier if isinstance(earlier, list) else []
        return known if before == made else [*known, before][-MOST_EARLIER:]

    def read_settings(self) -> RunSettings:
        """The settings of a run of ours; raises `ConfigError` as `read_description`, and for a baseline's run."""
        run = self.read_description()
        if run.algorithm != OURS:
            raise ConfigError(f"{self.path} is a run of the baseline {run.algorithm}: only plot reads these.")
        return RunSettings(run.env_id, run.preset, run.seed, run.total_steps, from_dict(run.settings))

    def read_description(self) -> RunDescription:
        """What config.json says; raises `ConfigError` for a folder that is none, or of another format.

        Settings of ours that an older version did not have are at their defaults.
        """
        if not self.exists:
            seeds = sorted(entry.parent.name for entry in self.path.glob("seed*/config.json"))
            if seeds:
                raise ConfigError(f"{self.path} holds a run per seed ({', '.join(seeds)}): name one of them.")
            raise ConfigError(f"{self.path} is not a run folder, it has no config.json: name a folder that train made.")
        record = self.read_record()
        if record.get("format") != FORMAT:
            raise ConfigError(
                f"run folder {self.path} has format {record.get('format')}, this version reads {FORMAT}: "
                f"use soft-mpcritic {record.get('version', 'that wrote it')}."
            )
        record.setdefault("algorithm", OURS)
        try:
            for name, kind in DESCRIBED.items():
                if type(record[name]) is not kind:
                    raise TypeError(f"{name} is {record[name]!r}"[:200])
            check(0 <= record["seed"] < 2**32, "seed", "lie in [0, 2^32)", record["seed"], "start another run")
            within = 1 <= record["total_steps"] <= LONGEST
            check(within, "total_steps", f"lie in [1, {LONGEST}]", str(record["total_steps"])[:30], "start another run")
            self._check_module("env_id", record["env_id"])
            if record["algorithm"] == OURS:
                record["settings"] = to_dict(from_dict(_upgraded(record["settings"])))
                for role, name in record["settings"]["parts"].items():
                    self._check_module(f"parts.{role}", name)
        except ConfigError as error:
            raise ConfigError(f"{self.path / 'config.json'} is damaged: {error}") from error
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{self.path / 'config.json'} is damaged: {error!r}; start another run.") from error
        return RunDescription(**{name: record[name] for name in DESCRIBED})

    def _check_module(self, setting: str, name: str) -> None:
        """Of "module:name" the module gets imported: it must not come with the folder, which is data."""
        module = name.rpartition(":")[0].partition(".")[0]
        if not module:
            return
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            spec = None
        places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or [])]
        inside = any(Path(place).resolve().is_relative_to(self.path.resolve()) for place in places if place)
        check(not inside, setting, "name a module outside of the run folder", repr(name), "move it if you trust it")

    def read_record(self) -> dict[str, Any]:
        """Everything in config.json, unchecked; raises `ConfigError` where it is no JSON object."""
        path = self.path / "config.json"
        if path.stat().st_size > LARGEST_RECORD:
            told = f"{path.stat().st_size} bytes where at most {LARGEST_RECORD} are expected"
            raise ConfigError(f"{path} is damaged: {told}; start another run.")
        try:
            record = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{self.path / 'config.json'} is damaged: {error}; start another run.") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{self.path / 'config.json'} is damaged: not a JSON object; start another run.")
        return record

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)


def _upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as earlier versions kept them under the names of this one, so that old curves can still be drawn."""
    upgraded = {name: dict(section) if isinstance(section, dict) else section for name, section in settings.items()}
    if not all(isinstance(section, dict) for section in upgraded.values()):
        return upgraded  # what is wrong with it is told by whoever reads it
    mode = upgraded.get("objective", {}).pop("scenarios", None)
    for planner in ("planner", "target_planner"):
        if mode is not None:
            upgraded.setdefault(planner, {}).setdefault("scenarios", mode)
    upgraded.get("training", {}).pop("critic_steps", None)  # a share of steps on the critic alone, given up
    upgraded.get("critic", {}).pop("settle_after", None)  # smaller and smaller steps, given up
    if upgraded.get("critic", {}).get("symlog") is False:  # given up; such a Q is not read any more
        del upgraded["critic"]["symlog"]
    return upgraded


def check_resumable(stored: RunSettings, asked: RunSettings, folder: RunFolder) -> None:
    """Raises `ConfigError` where `asked` would change what a run cannot change midway."""
    if stored.env_id != asked.env_id:
        raise ConfigError(f"run folder {folder.path} is of {stored.env_id}, got {asked.env_id}: choose another folder.")
    if stored.seed != asked.seed:
        raise ConfigError(f"run folder {folder.path} has seed {stored.seed}, got {asked.seed}: choose another folder.")
    for name, (old, new) in changes(stored, asked).items():
        if name.partition(".")[2] not in CHANGEABLE:
            raise ConfigError(f"{name} was {old!r} and cannot become {new!r} on resume: start another run folder.")


def changes(stored: RunSettings, asked: RunSettings) -> dict[str, list[Any]]:
    """Settings by dotted name that differ, with what they were and what they shall be."""
    old, new = to_dict(stored.config), to_dict(asked.config)
    return {
        f"{section}.{name}": [old[section][name], value]
        for section, values in new.items()
        for name, value in values.items()
        if value != old[section][name]
    }
