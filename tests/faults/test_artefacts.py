"""Exported controllers that are damaged or crafted are refused in one line, before anything is allocated."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from soft_mpcritic.exported import ARRAYS, ARTEFACT, FORMAT, MANIFEST, PROGRAM, ExportedController, read_artefact


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=True, **arrays)
    return content.getvalue()


def promised(shape: tuple[int, ...]) -> bytes:
    """An .npz whose header promises an array that is not there."""
    header, content = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("x.npy", header.getvalue())
    return content.getvalue()


PARTS = {PROGRAM.format("cpu"): b"no program", ARRAYS: npz(x=np.zeros(3, np.float32))}
SOUND = {
    "artefact": ARTEFACT,
    "format": FORMAT,
    "jax": "0.9",
    "plants": 1,
    "obs_size": 2,
    "plan_slots": 3,
    "action_low": [-1.0],
    "action_high": [1.0],
    "platforms": ["cpu"],
    "arrays": ["x"],
    "compiler_options": {},
}


def artefact(path: Path, parts: dict[str, bytes] | None = None, packed: bool = False, **changes: object) -> Path:
    parts = parts or PARTS
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    manifest = {**SOUND, "sha256": checksums, **changes}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        file.writestr(MANIFEST, json.dumps(manifest))
        for name, content in parts.items():
            file.writestr(name, content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        ExportedController(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_no_flipped_bit_in_a_part_goes_unnoticed(tmp_path):
    path = artefact(tmp_path / "c.zip")
    sound, rng = path.read_bytes(), np.random.default_rng(0)
    read_artefact(path)
    noticed = 0
    for _ in range(300):
        content = bytearray(sound)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            manifest, parts = read_artefact(path)
            assert parts[ARRAYS] == PARTS[ARRAYS] and {**manifest, "sha256": 0} == {**SOUND, "sha256": 0}
        except ValueError as error:
            noticed += 1
            assert "\n" not in str(error)
    assert noticed > 200


def test_truncated_artefacts_are_refused(tmp_path):
    path = artefact(tmp_path / "c.zip")
    sound = path.read_bytes()
    for size in range(0, len(sound), 37):
        path.write_bytes(sound[:size])
        refused(path)


def test_a_bomb_is_not_unpacked(tmp_path):
    parts = {**PARTS, ARRAYS: bytes(50_000_000)}
    path = artefact(tmp_path / "c.zip", parts, packed=True)
    assert path.stat().st_size < 100_000
    assert "parts are packed, or larger than the file" in refused(path)


@pytest.mark.parametrize(
    "arrays",
    [promised((10**6, 10**6)), promised((2**62, 8)), npz(x=np.array([{}])), npz(y=np.zeros(3)), b"", b"PK"],
    ids=["huge", "overflow", "objects", "missing", "empty", "stub"],
)
def test_crafted_arrays_with_sound_checksums_are_refused(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr("soft_mpcritic.exported._deserialized", lambda *_: None)
    assert "is damaged: models.npz" in refused(artefact(tmp_path / "c.zip", {**PARTS, ARRAYS: arrays}))


@pytest.mark.parametrize(
    "change",
    [
        {"plants": 10**12},
        {"plants": "1"},
        {"obs_size": -1},
        {"plan_slots": None},
        {"action_low": [-1.0, -1.0]},
        {"action_high": "1"},
        {"platforms": "cpu"},
        {"arrays": [1]},
        {"sha256": []},
        {"jax": 3},
    ],
    ids=str,
)
def test_crafted_manifests_are_refused(tmp_path, change):
    assert "its manifest says nothing sound of" in refused(artefact(tmp_path / "c.zip", **change))


@pytest.mark.parametrize("change", [{"format": FORMAT + 1}, {"format": None}, {"artefact": "other"}], ids=str)
def test_other_versions_and_kinds_are_refused(tmp_path, change):
    refused(artefact(tmp_path / "c.zip", **change))


def test_a_program_that_is_none_is_refused(tmp_path):
    assert "cannot read it" in refused(artefact(tmp_path / "c.zip"))
