"""Writes a trained controller as one portable file: a zip of JSON, StableHLO and arrays; `exported` reads it."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from soft_mpcritic.checkpoint import Which
from soft_mpcritic.compilation import cpu_options
from soft_mpcritic.config import ConfigError, to_dict
from soft_mpcritic.controller import ControlProgram, control_program, step_seconds
from soft_mpcritic.exported import ARRAYS, ARTEFACT, FORMAT, MANIFEST, PROGRAM, read_artefact
from soft_mpcritic.files import delivered
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state

PLATFORMS = ("cpu", "cuda", "tpu")


def export_run(
    run_dir: Path,
    out: Path,
    plants: int = 1,
    platforms: Sequence[str] = PLATFORMS,
    control: Mapping[str, Any] | None = None,
    checkpoint: Which = "newest",
) -> dict[str, Any]:
    """Writes the controller of a run folder's checkpoint to `out` and returns its manifest.

    `control` are settings to control with in the place of the run's. Raises `ConfigError` for a folder without
    checkpoint, settings that cannot be changed, and for a file in the way that is no exported controller.
    """
    _check_replaceable(out)
    folder = RunFolder(run_dir)
    settings = folder.read_settings()
    agent, state = load_state(folder, settings, control, checkpoint)
    parts = control_program(agent, state.models, plants)
    programs = {PROGRAM.format(platform): _lowered(parts, platform) for platform in platforms}
    files = {**programs, ARRAYS: _packed(parts.arrays)}
    manifest = {
        "artefact": ARTEFACT,
        "format": FORMAT,
        "version": metadata.version("soft-mpcritic"),
        "jax": jax.__version__,
        "env_id": settings.env_id,
        "preset": settings.preset,
        "updates": int(state.updates),
        "plants": plants,
        "obs_size": parts.plants.obs_size,
        "observe_change": parts.plants.observe_change,
        "action_size": len(parts.plants.action_low),
        "action_low": parts.plants.action_low,
        "action_high": parts.plants.action_high,
        "plan_slots": parts.plants.slots,
        "step_seconds": step_seconds(agent.task),
        "platforms": list(platforms),
        "compiler_options": {"cpu": cpu_options()},
        "settings": to_dict(agent.config),
        "arrays": list(parts.arrays),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    _write(out, {MANIFEST: json.dumps(manifest, indent=2).encode(), **files})
    return manifest


def _lowered(parts: ControlProgram, platform: str) -> bytes:
    """The program for one platform. One for all would be lowered otherwise, and round otherwise than `Controller`."""
    plants = parts.plants
    number = jax.ShapeDtypeStruct((), np.uint32)
    obs = jax.ShapeDtypeStruct((plants.count, plants.asked_size), np.float32)
    start = jax.ShapeDtypeStruct((plants.count, plants.slots, len(plants.action_low)), np.float32)
    arrays = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in parts.arrays.values()]
    with _without_source_locations():
        exported = export.export(jax.jit(parts.program), platforms=[platform])(arrays, number, number, obs, start)
    return bytes(exported.serialize())


@contextmanager
def _without_source_locations() -> Iterator[None]:
    """The program shall not tell where on the disk this library lies."""
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _packed(arrays: dict[str, jax.Array]) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    return content.getvalue()


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    try:
        read_artefact(out)
    except ValueError as error:
        raise ConfigError(f"{out} is in the way and is no exported controller: choose another file.") from error


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Whole or not at all; equal controllers give equal files. Raises `StorageError`."""
    with delivered(out) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content)
