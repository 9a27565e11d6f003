"""Real disks that fill up, or that the system turns read-only: small ones are made and mounted for the tests.

Needs the right to mount (root, and loop devices); skipped where it is missing.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from soft_mpcritic.archive import Archive
from soft_mpcritic.files import Table, read_table, write_json
from tests.faults.kills import differences

STEPS = 1200
SETTINGS = {
    "planner.num-samples": 8,
    "planner.horizon": 2,
    "target-planner.num-samples": 4,
    "target-planner.horizon": 2,
    "dynamics.width": 8,
    "dynamics.batch-size": 16,
    "critic.width": 8,
    "critic.batch-size": 16,
    "training.capacity": 2048,
    "training.seed-steps": 20,
    "training.pretrain-updates": 5,
    "training.log-every": 20,
    "training.evaluate-every": 400,
    "training.evaluation-episodes": 1,
    "training.checkpoint-every": 40,
}
TASKS = {"host": "InvertedPendulum-v5", "device": "CartPoleSwingUp"}
PATIENCE = 900.0  # s for a command, on a machine with other work


class Disk:
    """An ext4 file system of 8 MB, in a file."""

    def __init__(self, image: Path, place: Path) -> None:
        self._image, self.place = image, place
        image.write_bytes(bytes(8_000_000))
        place.mkdir()
        system("mkfs.ext4", "-q", "-F", "-m", "0", image)
        self._mount()

    def _mount(self) -> None:
        system("mount", "-o", "loop,errors=remount-ro", self._image, self.place)

    def unmount(self) -> None:
        system("umount", self.place)

    def fill(self) -> None:
        """To the last block."""
        with (self.place / "ballast").open("wb", buffering=0) as file:
            for size in (65536, 1024):
                try:
                    while True:
                        file.write(bytes(size))
                        os.fsync(file.fileno())
                except OSError:
                    pass

    def clear(self) -> None:
        (self.place / "ballast").unlink()

    def protect(self) -> None:
        """As the kernel does when a disk fails: what was not yet synced is lost."""
        device = Path(system("findmnt", "-n", "-o", "SOURCE", self.place).strip()).name
        (Path("/sys/fs/ext4") / device / "trigger_fs_error").write_text("1")

    def mend(self) -> None:
        """As an administrator does then."""
        self.unmount()
        subprocess.run(["e2fsck", "-fy", str(self._image)], check=False, capture_output=True)
        self._mount()


def system(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        made = Disk(tmp_path / "disk.img", tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield made
    made.unmount()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xla")


def training(path: Path, backend: str, cache: Path, resume: bool = False) -> subprocess.Popen[str]:
    flags = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    told = ["train", TASKS[backend], "--backend", backend, "--total-steps", str(STEPS), "--run-dir", str(path), *flags]
    return command([*told, "--resume"] if resume else told, cache)


def command(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    told = [sys.executable, "-m", "soft_mpcritic", *arguments]
    return subprocess.Popen(told, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], status: int) -> list[str]:
    """The lines on standard error of a command that ended with `status`."""
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, told
    assert "Traceback" not in told
    return told.splitlines()


@pytest.fixture(scope="module", params=sorted(TASKS))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run that nothing happened to; the folder's name says the backend."""
    path = tmp_path_factory.mktemp("whole") / request.param
    ended(training(path, request.param, cache), 0)
    return path


def checkpoints(path: Path) -> list[int]:
    folder = path / "checkpoints"
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def after_a_checkpoint(process: subprocess.Popen[str], path: Path, act: Callable[[], None]) -> None:
    """Acts while a training process, which has just written its first checkpoint, stands still."""
    until = time.monotonic() + PATIENCE
    while not checkpoints(path):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    act()
    process.send_signal(signal.SIGCONT)


def test_what_was_written_is_there_after_a_disk_has_failed(disk: Disk):
    """All but the newest rows, which are synced with the checkpoint that speaks for them."""
    path = disk.place / "run"
    path.mkdir()
    write_json(path / "config.json", {"seed": 0})
    table = Table(path / "metrics.csv", ("env_step", "value"))
    table.append({"env_step": 1, "value": 2})
    table.sync()
    archive = Archive(path / "checkpoints", keep=2)
    archive.save(1, {"numbers": np.ones(1000)}, {"step": 1})
    disk.protect()
    more: list[Callable[[], object]] = [
        lambda: write_json(path / "config.json", {}),
        lambda: archive.save(2, {}, {}),
        lambda: table.append({"env_step": 2, "value": 3}),
    ]
    for write in more:
        with pytest.raises(OSError, match="Read-only file system"):
            write()
    disk.mend()
    assert json.loads((path / "config.json").read_text()) == {"seed": 0}
    assert [row["value"] for row in read_table(path / "metrics.csv")] == ["2"]
    assert archive.steps == [1] and archive.damage(1) is None


def test_a_full_disk_takes_nothing_from_what_is_on_it_and_gives_back_the_room(disk: Disk):
    path = disk.place / "run"
    archive, table = Archive(path / "checkpoints", keep=2), Table(disk.place / "metrics.csv", ("env_step", "value"))
    archive.save(1, {"numbers": np.ones(100_000)}, {"step": 1})
    disk.fill()
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            archive.save(2, {"numbers": np.ones(100_000)}, {"step": 2})
        with pytest.raises(OSError, match="No space left"):
            write_json(disk.place / "config.json", {"long": "x" * 10_000})
    with suppress(OSError):
        for step in range(1000):
            table.append({"env_step": step, "value": step})
    disk.clear()
    assert sorted(entry.name for entry in archive.path.iterdir()) == ["1"] and archive.damage(1) is None
    table.sync()
    steps = [int(row["env_step"]) for row in read_table(disk.place / "metrics.csv")]
    assert steps == list(range(len(steps))) and steps
    archive.save(2, {"numbers": np.ones(100_000)}, {"step": 2})
    assert archive.steps == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_run_whose_disk_fails_goes_on_from_its_last_checkpoint(whole: Path, disk: Disk, cache: Path, fault: str):
    backend, path = whole.name, disk.place / "run"
    strike, mend = (disk.fill, disk.clear) if fault == "full" else (disk.protect, disk.mend)
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[fault]

    process = training(path, backend, cache)
    after_a_checkpoint(process, path, strike)
    *_, last = ended(process, 2)
    kept = checkpoints(path)
    assert last.startswith(f"soft-mpcritic: run folder {path} cannot be written: ") and reason in last
    assert f"that of step {kept[-1]} stands: make " in last and kept[-1] < STEPS

    assert reason in ended(training(path, backend, cache, resume=True), 2)[-1]
    if backend == "host":
        ended(command(["evaluate", str(path), "--episodes", "1"], cache), 0)
        (line,) = ended(command(["diagnose", str(path), "--episodes", "1"], cache), 2)
        assert line.startswith(f"soft-mpcritic: {path}/diagnose") and reason in line

    mend()
    assert checkpoints(path) == kept
    ended(training(path, backend, cache, resume=True), 0)
    assert differences(whole, path) == []


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_is_one_line(disk: Disk, cache: Path):
    disk.fill()
    (line,) = ended(training(disk.place / "run", "host", cache), 2)
    assert "cannot be written: No space left on device" in line


@pytest.mark.slow
def test_a_film_on_a_full_disk_leaves_the_old_one(whole: Path, disk: Disk, cache: Path):
    if whole.name == "device":
        pytest.skip("the host's task renders")
    path, film = disk.place / "run", disk.place / "film.gif"
    shutil.copytree(whole, path)
    film.write_bytes(b"older")
    disk.fill()
    (line,) = ended(command(["evaluate", str(path), "--episodes", "1", "--video", str(film)], cache), 2)
    assert line.startswith(f"soft-mpcritic: {film} cannot be written: ")
    assert film.read_bytes() == b"older" and sorted(entry.name for entry in disk.place.glob("*film*")) == ["film.gif"]
