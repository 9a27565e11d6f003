"""Kills processes that do nothing but write archives and rows: thousands of kills where a training run allows tens.

python -m tests.faults.writer --kills 2000 --log results/reliability/writers.csv
"""

import argparse
import csv
import multiprocessing as mp
import random
import tempfile
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
LONGEST = 600.0  # s that a process may take to its first archive
SHOWN = 100  # kills between two lines of a long campaign


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
        self._context.set_forkserver_preload(["soft_mpcritic.archive"])
        self.safe = 0  # newest step that a process called safe
        self.left = Counter[str]()  # what kills found under way

    def kill(self) -> None:
        """One process and its end; raises `AssertionError` where something was lost."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=write, args=(self._place, theirs), daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(LONGEST), "a writer hangs"
        self.safe = ours.recv()  # a kill before anything happens would prove nothing
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a table of how far it was after every so many kills")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(Path(place) / "run", asked.seed)
        for number in range(1, asked.kills + 1):
            campaign.kill()
            if number % SHOWN == 0 or number == asked.kills:
                left = campaign.left
                rows.append([number, campaign.safe, left[".new"], left[".old"]])
                print(f"{number} kills up to step {campaign.safe}; half done: {dict(left)}; lost: none", flush=True)
                if asked.log is not None:
                    note(asked.log, rows)


def note(log: Path, rows: list[list[int]]) -> None:
    with log.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["kills", "newest_safe_step", "half_written", "half_removed"])
        table.writerows(rows)


if __name__ == "__main__":
    main()
