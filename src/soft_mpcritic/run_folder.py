"""The run folder: what a run was told and what it found, as plain files.

A folder is data. Settings and counters are JSON, tables are CSV; nothing in it is ever executed.
"""

import csv
import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from soft_mpcritic.config import Config, ConfigError, from_dict, to_dict
from soft_mpcritic.parts import NOTHING_OWN, Parts

FORMAT = 1  # of the run folder; raised when an old folder can no longer be read
OURS = "soft-mpcritic"  # the algorithm of a run that does not name one
CHANGEABLE = ("evaluate_every", "evaluation_episodes", "checkpoint_every", "checkpoints_kept")  # on resume
DESCRIBED = {"env_id": str, "algorithm": str, "preset": str, "seed": int, "total_steps": int, "settings": dict}
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "gymnasium", "mujoco", "numpy", "orbax-checkpoint")


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

    def create(self, run: RunSettings | RunDescription, packages: Sequence[str] = PACKAGES) -> None:
        """Makes the folder and writes config.json; raises `ConfigError` where that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_settings(run, packages)
        except OSError as error:
            raise ConfigError(f"run folder {self.path} cannot be written: {error.strerror}; choose another.") from error

    def write_settings(self, run: RunSettings | RunDescription, packages: Sequence[str] = PACKAGES) -> None:
        description = run.description if isinstance(run, RunSettings) else run
        record = {
            "format": FORMAT,
            "version": metadata.version("soft-mpcritic"),
            **dataclasses.asdict(description),
            "platform": {"python": platform.python_version(), "system": platform.platform()},
            "packages": {name: metadata.version(name) for name in packages},
        }
        write_json(self.path / "config.json", record)

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
        record = self._read_record()
        if record.get("format") != FORMAT:
            raise ConfigError(
                f"run folder {self.path} has format {record.get('format')}, this version reads {FORMAT}: "
                f"use soft-mpcritic {record.get('version', 'that wrote it')}."
            )
        record.setdefault("algorithm", OURS)
        try:
            for name, kind in DESCRIBED.items():
                if type(record[name]) is not kind:
                    raise TypeError(f"{name} is {record[name]!r}")
            if record["algorithm"] == OURS:
                record["settings"] = to_dict(from_dict(record["settings"]))
        except ConfigError as error:
            raise ConfigError(f"{self.path / 'config.json'} is damaged: {error}") from error
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{self.path / 'config.json'} is damaged: {error!r}; start another run.") from error
        return RunDescription(**{name: record[name] for name in DESCRIBED})

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads((self.path / "config.json").read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path / 'config.json'} is damaged: {error}; start another run.") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{self.path / 'config.json'} is damaged: not a JSON object; start another run.")
        return record

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)


def check_resumable(stored: RunSettings, asked: RunSettings, folder: RunFolder) -> None:
    """Raises `ConfigError` where `asked` would change what a run cannot change midway."""
    if stored.env_id != asked.env_id:
        raise ConfigError(f"run folder {folder.path} is of {stored.env_id}, got {asked.env_id}: choose another folder.")
    if stored.seed != asked.seed:
        raise ConfigError(f"run folder {folder.path} has seed {stored.seed}, got {asked.seed}: choose another folder.")
    old, new = to_dict(stored.config), to_dict(asked.config)
    for section, values in new.items():
        for name, value in values.items():
            if value != old[section][name] and name not in CHANGEABLE:
                raise ConfigError(
                    f"{section}.{name} was {old[section][name]} and cannot become {value} on resume: "
                    "start another run folder."
                )


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all: a new file takes the old one's place."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)


class Table:
    """A CSV file that grows by rows and can forget those after a given environment step."""

    def __init__(self, path: Path, columns: Sequence[str], keep_until: int = -1) -> None:
        self._path, self._columns = path, list(columns)
        kept = [row for row in read_table(path) if int(row["env_step"]) <= keep_until] if path.is_file() else []
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row and hands it to the operating system."""
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column name; a last line that was cut off while being written is left out."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(whole.splitlines()))
