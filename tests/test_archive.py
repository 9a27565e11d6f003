"""Archives that are damaged, crafted, or written to a disk that is full."""

import errno
import hashlib
import json
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from soft_mpcritic.archive import MANIFEST, PROGRESS, STATE, Archive, DamagedError, LayoutError, Leaf

ROWS = 50
LAYOUT = {
    "weights": Leaf(np.dtype(np.float32), (7, 3)),
    "records": Leaf(np.dtype(np.float32), (ROWS, 2), grows=True),
    "key": Leaf(np.dtype(np.uint32), (2,)),
    "count": Leaf(np.dtype(np.int32), ()),
}


def arrays(step: int, filled: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "weights": rng.random((7, 3), np.float32),
        "records": rng.random((filled, 2), np.float32),
        "key": rng.integers(0, 2**32, 2, np.uint32),
        "count": np.array(step, np.int32),
    }


@pytest.fixture
def archive(tmp_path) -> Archive:
    archive = Archive(tmp_path / "checkpoints", keep=2)
    for step in (10, 20, 30):
        archive.save(step, arrays(step), {"step": step, "note": float("nan")})
    return archive


def is_whole(archive: Archive, step: int) -> bool:
    stored, progress = archive.load(step, LAYOUT)
    expected = arrays(step)
    return progress["step"] == step and all(np.array_equal(stored[name], expected[name]) for name in expected)


def refused(archive: Archive, step: int) -> str:
    """What is wrong, as both ways of asking tell it."""
    with pytest.raises(DamagedError) as caught:
        archive.load(step, LAYOUT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sign(folder: Path) -> None:
    """A manifest that agrees with whatever the files hold: damage is found by checksums, malice is not."""
    files = {}
    for name in (STATE, PROGRESS):
        content = (folder / name).read_bytes()
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": files}))


def test_archives_rotate_and_are_read_as_they_were_written(archive):
    assert archive.steps == [20, 30]
    assert is_whole(archive, 20) and is_whole(archive, 30)
    assert sorted(entry.name for entry in archive.path.iterdir()) == ["20", "30"]


def test_one_that_is_spared_stays_until_another_is(archive):
    for step, spared, left in ((40, 20, [20, 30, 40]), (50, 20, [20, 40, 50]), (60, 60, [50, 60]), (70, 10, [60, 70])):
        archive.save(step, arrays(step), {"step": step}, spared)
        assert archive.steps == left
    assert is_whole(archive, 60)


@pytest.mark.parametrize("filled", [0, 1, ROWS])
def test_a_buffer_may_hold_fewer_rows(archive, filled):
    archive.save(40, arrays(40, filled), {})
    assert archive.load(40, LAYOUT)[0]["records"].shape == (filled, 2)


@pytest.mark.parametrize("name", [STATE, PROGRESS, MANIFEST])
def test_no_flipped_bit_goes_unnoticed(archive, name):
    """Or else it changed nothing: a space of the manifest, say."""
    path = archive.path / "30" / name
    sound, rng, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(100):
        content = bytearray(sound)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            assert is_whole(archive, 30)
        except DamagedError:
            noticed += 1
            assert archive.damage(30) is not None
    assert noticed >= (70 if name == MANIFEST else 100)
    assert archive.damage(20) is None and is_whole(archive, 20)


@pytest.mark.parametrize("name", [STATE, PROGRESS, MANIFEST])
@pytest.mark.parametrize("left", [0, 1, 0.5, -2])
def test_truncated_files_are_named(archive, name, left):
    path = archive.path / "30" / name
    size = path.stat().st_size
    os.truncate(path, int(size * left) if isinstance(left, float) else left % size)
    assert name in refused(archive, 30)


@pytest.mark.parametrize("name", [STATE, PROGRESS, MANIFEST])
def test_missing_files_are_named(archive, name):
    (archive.path / "30" / name).unlink()
    assert refused(archive, 30) == f"{name} is missing"


def test_a_file_or_a_link_in_place_of_an_archive_is_refused(archive, tmp_path):
    (archive.path / "40").write_text("no folder")
    (archive.path / "50").symlink_to(archive.path / "30")
    (archive.path / "30" / STATE).rename(tmp_path / "elsewhere")
    (archive.path / "30" / STATE).symlink_to(tmp_path / "elsewhere")
    assert refused(archive, 40) == refused(archive, 50) == "not a folder"
    assert refused(archive, 30) == f"{STATE} is missing"


def test_only_numbers_as_we_write_them_are_archives(archive):
    for name in ("007", "+5", "5 ", "٣", "1e3", "9" * 200, "..30", "30.aside", "-1"):
        (archive.path / name).mkdir()
    assert archive.steps == [20, 30]


@pytest.mark.parametrize("name", [STATE, PROGRESS, MANIFEST])
def test_files_of_absurd_size_are_refused_before_they_are_read(archive, name):
    """Holes make a file of a terabyte that takes no room; reading it would take all memory, or hours."""
    folder = archive.path / "30"
    os.truncate(folder / name, 2**40)
    if name != MANIFEST:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][name]["size"] = 2**40
        (folder / MANIFEST).write_text(json.dumps(manifest))
    assert f"{name} has {2**40} bytes where at most" in refused(archive, 30)


def crafted(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        crafted({"weights": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}),
        crafted({"weights": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        crafted({"weights": {"dtype": "F32", "shape": [7, 3], "data_offsets": [-84, 0]}}),
        (2**63 - 1).to_bytes(8, "little") + b"{}",
        b"",
        pickle.dumps({"weights": 1}),
        b"PK\x03\x04 a zip",
    ],
    ids=["huge", "overflow", "before", "header", "empty", "pickle", "zip"],
)
def test_crafted_arrays_with_sound_checksums_are_refused_before_allocation(archive, content):
    (archive.path / "30" / STATE).write_bytes(content)
    sign(archive.path / "30")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
    try:
        assert refused(archive, 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


class Explosive:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled(archive):
    """Neither as the file of arrays, nor as an array of objects within one of NumPy's own files."""
    np.savez(archive.path / "30" / "objects.npz", weights=np.array([Explosive()]))
    (archive.path / "30" / "objects.npz").replace(archive.path / "30" / STATE)
    sign(archive.path / "30")
    refused(archive, 30)
    (archive.path / "30" / STATE).write_bytes(pickle.dumps(Explosive()))
    sign(archive.path / "30")
    refused(archive, 30)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "3", "null", "[1]", '{"a": 1', "\xff", "9" * 10_000], ids=lambda text: text[:8]
)
@pytest.mark.parametrize("name", [PROGRESS, MANIFEST])
def test_crafted_json_is_refused(archive, name, text):
    (archive.path / "30" / name).write_bytes(text.encode("latin-1"))
    if name == PROGRESS:
        sign(archive.path / "30")
    assert name in refused(archive, 30)


def test_paths_in_a_manifest_are_not_followed(archive, tmp_path):
    """Names are ours; what a manifest says beside is not looked at."""
    folder = archive.path / "30"
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {f"../../{name}": told for name, told in manifest["files"].items()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert refused(archive, 30) == f"{MANIFEST} says nothing of {STATE}"


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"format": None}, {"step": 20}, {"step": "30"}, {"files": 3}], ids=str
)
def test_manifests_of_something_else_are_refused(archive, change):
    path = archive.path / "30" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(archive, 30)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("weights", np.zeros((7, 4), np.float32), "float32(7, 4) where float32(7, 3) for weights"),
        ("weights", np.zeros((7, 3), np.float64), "float64(7, 3) where float32(7, 3) for weights"),
        ("records", np.zeros((ROWS + 1, 2), np.float32), f"float32({ROWS + 1}, 2) where float32({ROWS}, 2)"),
        ("count", None, "nothing where int32() for count"),
    ],
)
def test_sound_archives_of_other_arrays_are_told_from_damaged_ones(archive, name, array, words):
    changed = {**arrays(40), name: array} if array is not None else {k: v for k, v in arrays(40).items() if k != name}
    archive.save(40, changed, {})
    with pytest.raises(LayoutError) as caught:
        archive.load(40, LAYOUT)
    assert words in str(caught.value)
    assert archive.damage(40) is None


def test_what_is_later_is_set_aside_and_what_is_half_done_is_removed(archive):
    (archive.path / ".40.new").mkdir()
    (archive.path / ".40.new" / STATE).write_text("half")
    archive.tidy()
    archive.set_aside_after(20)
    assert sorted(entry.name for entry in archive.path.iterdir()) == ["20", "30.aside"]
    archive.save(30, arrays(30), {"step": 30})
    assert is_whole(archive, 30)


@pytest.mark.parametrize("room", [0, 100, 4096])
def test_a_disk_that_takes_no_more_leaves_the_archives_before(archive, room):
    """The limit of a file's size stands for it: the system refuses the write midway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    big = {**arrays(40), "more": np.zeros(10_000)}
    try:
        with pytest.raises(OSError):
            archive.save(40, big, {"step": 40})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(entry.name for entry in archive.path.iterdir()) == ["20", "30"]
    assert is_whole(archive, 30)
    archive.save(40, arrays(40), {"step": 40})
    assert archive.steps == [30, 40] and is_whole(archive, 40)


def test_a_disk_that_fails_when_asked_to_keep_leaves_the_archives_before(archive, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        archive.save(40, arrays(40), {"step": 40})
    assert archive.steps == [20, 30] and is_whole(archive, 30)
