"""Numbered archives of arrays and plain data in one folder: written whole or not at all, checked when read.

An archive is the folder `<step>` with `state.safetensors`, `progress.json` and a manifest of their sizes and checksums.
It is data: nothing in it is executed or unpickled, no name in it is followed, and sizes are compared with what is
expected before anything is allocated.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from soft_mpcritic.files import LOG, sync

FORMAT = 1  # of an archive; raised when an old one can no longer be read
STATE, PROGRESS, MANIFEST = "state.safetensors", "progress.json", "manifest.json"
LARGEST_TEXT = 2**28  # bytes of JSON; the actions of long episodes in many environments come to some megabytes
HEADER_ROOM = 2**20  # bytes of names and shapes before the numbers


class DamagedError(Exception):
    """An archive that is not what was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Leaf:
    """What an array has to be; one with `grows` may have fewer rows, of those that are filled."""

    dtype: np.dtype
    shape: tuple[int, ...]
    grows: bool = False

    def admits(self, dtype: str, shape: tuple[int, ...]) -> bool:
        if np.dtype(dtype) != self.dtype or len(shape) != len(self.shape):
            return False
        return shape == self.shape or (self.grows and shape[0] <= self.shape[0] and shape[1:] == self.shape[1:])

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))

    def __str__(self) -> str:
        return f"{self.dtype}{self.shape}"


class LayoutError(Exception):
    """A sound archive of something else; the message names the array that does not fit."""


class Archive:
    """The archives in `path`, of which the newest `keep` stay, and one that is spared."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self._keep = path, keep

    @property
    def steps(self) -> list[int]:
        """Numbers of the archives, in order, sound or not."""
        if not self.path.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.path.iterdir() if _is_number(entry.name))

    def tidy(self) -> None:
        """Removes what processes that were killed left half written or half removed."""
        if self.path.is_dir():
            for entry in self.path.iterdir():
                if entry.name.startswith("."):
                    _remove(entry)

    def save(
        self, step: int, arrays: Mapping[str, np.ndarray], progress: Mapping[str, Any], spared: int | None = None
    ) -> None:
        """Writes an archive, then removes the oldest but `spared`. Raises `OSError`; those before it then stand."""
        if not self.path.is_dir():
            self.path.mkdir(parents=True)
            sync(self.path.parent)
        temporary = self.path / f".{step}.new"
        _remove(temporary)
        try:
            _write(temporary, step, arrays, progress)
            os.rename(temporary, self.path / str(step))
        except OSError:
            _remove(temporary)  # it would take room on a full disk
            raise
        sync(self.path)
        for old in self.steps[: -self._keep]:
            if old != spared:
                self._drop(old)

    def load(self, step: int, layout: Mapping[str, Leaf]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays by name, as `layout` wants them, and what was kept beside.

        Raises `DamagedError` for an archive that is not as it was written, `LayoutError` for one of other arrays.
        """
        room = HEADER_ROOM + sum(leaf.bytes for leaf in layout.values())
        try:
            folder = self._checked(step, {STATE: room, PROGRESS: LARGEST_TEXT})
            progress = _read_json(folder / PROGRESS)
            return _read_arrays(folder / STATE, layout), progress
        except (OSError, SafetensorError) as error:
            raise DamagedError(_brief(error)) from error

    def progress(self, step: int) -> dict[str, Any]:
        """What was kept beside the arrays; raises `DamagedError`, also where the arrays are damaged."""
        try:
            return _read_json(self._checked(step, {PROGRESS: LARGEST_TEXT}) / PROGRESS)
        except OSError as error:
            raise DamagedError(_brief(error)) from error

    def damage(self, step: int) -> str | None:
        """What is wrong with an archive; None where its files are as they were written."""
        try:
            self.progress(step)
        except DamagedError as error:
            return str(error)
        return None

    def checksum(self, step: int, name: str) -> str | None:
        """Of a file as it is now; None where there is none."""
        path = self.path / str(step) / name
        return _checksum(path) if path.is_file() else None

    def set_aside_after(self, step: int) -> None:
        """Archives of later steps are of no more use, but kept for whoever wants to look: `<step>.aside`."""
        for later in self.steps:
            if later > step:
                aside = self.path / f"{later}.aside"
                _remove(aside)
                os.rename(self.path / str(later), aside)

    def _checked(self, step: int, room: Mapping[str, int]) -> Path:
        """The folder of an archive whose files are what its manifest says; raises `DamagedError`."""
        folder = self.path / str(step)
        if folder.is_symlink() or not folder.is_dir():
            raise DamagedError("not a folder")
        manifest = _read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
        if manifest is None:
            raise DamagedError(f"{MANIFEST} is missing")
        if manifest.get("format") != FORMAT:
            raise DamagedError(f"of format {_brief(manifest.get('format'))}, this version reads {FORMAT}")
        if manifest.get("step") != step:
            raise DamagedError(f"{MANIFEST} is that of another step")
        told = manifest.get("files")
        for name in (STATE, PROGRESS):
            _check_file(folder / name, told.get(name) if isinstance(told, dict) else None, room.get(name))
        return folder

    def _drop(self, step: int) -> None:
        """Out of the way at once, then removed: a kill in between leaves no half archive under its number."""
        gone = self.path / f".{step}.old"
        try:
            _remove(gone)
            os.rename(self.path / str(step), gone)
            _remove(gone)
        except OSError as error:
            LOG.warning("%s cannot be removed: %s", self.path / str(step), error.strerror)


def _write(folder: Path, step: int, arrays: Mapping[str, np.ndarray], progress: Mapping[str, Any]) -> None:
    folder.mkdir()
    try:
        save_file(dict(arrays), folder / STATE)
    except SafetensorError as error:  # so it names what the system told it
        raise OSError(None, _brief(error)) from error
    (folder / PROGRESS).write_text(json.dumps(dict(progress)))
    record = {"format": FORMAT, "step": step, "files": {name: _told(folder / name) for name in (STATE, PROGRESS)}}
    (folder / MANIFEST).write_text(json.dumps(record, indent=2) + "\n")
    for name in (STATE, PROGRESS, MANIFEST):
        sync(folder / name)
    sync(folder)


def _told(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _checksum(path)}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, told: Any, room: int | None) -> None:
    if not isinstance(told, dict):
        raise DamagedError(f"{MANIFEST} says nothing of {path.name}")
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    size = path.stat().st_size
    if size != told.get("size"):
        raise DamagedError(f"{path.name} has {size} bytes instead of {_brief(told.get('size'))}")
    if room is not None and size > room:
        raise DamagedError(f"{path.name} has {size} bytes where at most {room} are expected")
    if _checksum(path) != told.get("sha256"):
        raise DamagedError(f"{path.name} is not what its checksum says")


def _read_arrays(path: Path, layout: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """The arrays of a file, once their names, dtypes and shapes were found to fit."""
    with safe_open(path, framework="numpy") as stored:
        names = set(stored.keys())
        for name, leaf in layout.items():
            if name not in names:
                raise LayoutError(f"holds nothing where {leaf} for {name} is expected")
            dtype, shape = stored.get_slice(name).get_dtype(), tuple(stored.get_slice(name).get_shape())
            if dtype not in DTYPES or not leaf.admits(DTYPES[dtype], shape):
                raise LayoutError(f"holds {DTYPES.get(dtype, dtype)}{shape} where {leaf} for {name} is expected")
        return {name: stored.get_tensor(name) for name in layout}


DTYPES = {"F32": "float32", "F64": "float64", "I32": "int32", "I64": "int64", "U32": "uint32", "BOOL": "bool"}


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_TEXT:
        raise DamagedError(f"{path.name} has {path.stat().st_size} bytes where at most {LARGEST_TEXT} are expected")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is no JSON ({_brief(error)})") from error
    if not isinstance(record, dict):
        raise DamagedError(f"{path.name} is no JSON object")
    return record


def _is_number(name: str) -> bool:
    """As `save` writes it: no sign, no leading zero, no digits of other scripts, and not endless."""
    return name.isascii() and name.isdecimal() and len(name) < 20 and str(int(name)) == name


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _brief(what: object) -> str:
    return " ".join(str(what).split())[:120]
