"""Kills processes that do nothing but write archives and rows: thousands of kills where a training run allows tens."""

import multiprocessing as mp
import random
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from soft_mpcritic.archive import Archive, Leaf
from soft_mpcritic.files import Table, read_table

SIZE = 20_000
LAYOUT = {"numbers": Leaf(np.dtype(np.float64), (SIZE,))}
COLUMNS = ("env_step", "value")
EVERY = 3  # rows between archives


def numbers(step: int) -> np.ndarray:
    return np.random.default_rng(step).random(SIZE)


def write(path: Path, told: Connection) -> None:
    """Goes on from the newest sound archive, without end; tells every step whose archive is safe."""
    archive = Archive(path / "checkpoints", keep=2)
    step = newest_sound(archive)
    archive.tidy()
    archive.set_aside_after(step)
    table = Table(path / "metrics.csv", COLUMNS, step)
    while True:
        step += 1
        table.append({"env_step": step, "value": step / 7})
        if step % EVERY == 0:
            table.sync()
            archive.save(step, {"numbers": numbers(step)}, {"step": step})
            told.send(step)


def newest_sound(archive: Archive) -> int:
    return next((step for step in reversed(archive.steps) if archive.damage(step) is None), 0)


class Campaign:
    """One folder, written by one process after another, each of which is killed."""

    def __init__(self, place: Path, seed: int) -> None:
        self._place, self._random = place, random.Random(seed)
        place.mkdir(parents=True)
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", "tests.faults.writer"])
        self.safe = 0  # newest step that a process called safe
        self.left = Counter[str]()  # what kills found under way

    def kill(self) -> None:
        """One process and its end; raises `AssertionError` where something was lost."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=write, args=(self._place, theirs), daemon=True)
        process.start()
        theirs.close()
        ours.poll(60)  # the first archive is safe; a kill before anything happens would prove nothing
        time.sleep(self._random.uniform(0.0, 0.25))
        process.kill()
        process.join()
        try:
            while ours.poll():
                self.safe = ours.recv()
        except EOFError:
            pass
        self._check()

    def _check(self) -> None:
        archive = Archive(self._place / "checkpoints", keep=2)
        for entry in archive.path.glob(".*"):
            self.left[entry.suffix] += 1
        for step in archive.steps:  # whatever has a number is whole
            arrays, progress = archive.load(step, LAYOUT)
            assert np.array_equal(arrays["numbers"], numbers(step)) and progress == {"step": step}
        newest = newest_sound(archive)
        assert newest >= self.safe, f"{newest} is the newest archive, {self.safe} was called safe"
        if newest:
            steps = [int(row["env_step"]) for row in read_table(self._place / "metrics.csv")]
            assert steps[:newest] == list(range(1, newest + 1)), "rows are missing, or there twice"
