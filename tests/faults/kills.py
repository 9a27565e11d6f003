"""Kills training processes at random moments, resumes them, and compares with a run that nobody disturbed.

python -m tests.faults.kills --kills 200 --log results/reliability/kills.csv
"""

import argparse
import csv
import json
import multiprocessing as mp
import random
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors.numpy import load_file

from soft_mpcritic.files import read_table
from tests.faults import child

STEPS = 400
TIMES = ("wall_seconds", "steps_per_second")
STARTING, RUNNING, WRITING = "starting", "running", "writing a checkpoint"
LONGEST = 600.0  # s that a process may take; a hang is a loss


@dataclass
class Kill:
    """One SIGKILL and what it left."""

    number: int
    run: int
    moment: str
    seconds: float  # since the process began, or since it was ready
    newest_checkpoint: int  # -1: none
    half_written: int  # archives that were being written or removed


class Campaign:
    """Runs that are killed again and again until they are done, against one that is not."""

    def __init__(self, place: Path, seed: int, steps: int = STEPS) -> None:
        self._place, self._steps, self._random = place, steps, random.Random(seed)
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.child"])
        self.kills: list[Kill] = []
        self.runs = 0
        self.lost: list[str] = []
        self.whole = place / "whole"
        self._live(self.whole, None)

    def go(self, kills: int) -> None:
        """At least `kills` kills, and the runs that they hit brought to their ends."""
        while len(self.kills) < kills:
            path = self._place / f"run{self.runs}"
            while self._live(path, kills):
                pass
            self.lost += [f"run {self.runs}: {what}" for what in differences(self.whole, path)]
            self.runs += 1

    def _live(self, path: Path, kills: int | None) -> bool:
        """One process; killed at some moment unless it has earned its end. Was it?"""
        ours, theirs = self._context.Pipe(duplex=False)
        told = None if kills is None else theirs
        process = self._context.Process(
            target=child.train, args=(path, self._steps, self._place.parent / "xla", told), daemon=True
        )
        began = time.monotonic()
        process.start()
        theirs.close()
        spared = kills is None or len(self.kills) >= kills
        moment = "" if spared else self._await_moment(ours, process)
        if moment:
            process.kill()
        process.join(LONGEST)
        if process.is_alive():
            process.kill()
            raise RuntimeError(f"{path}: a process did not end within {LONGEST:g} s")
        if not moment:
            if process.exitcode != 0:
                raise RuntimeError(f"{path}: a process ended with {process.exitcode}")
            return False
        self.kills.append(self._note(path, moment, time.monotonic() - began))
        return True

    def _await_moment(self, ours, process) -> str:
        """Sleeps until it is time to kill; empty when the process was done first."""
        kind = self._random.choices((STARTING, RUNNING, WRITING), (1, 2, 4))[0]
        if kind == STARTING:
            return kind if not _ended(process, self._random.uniform(0.0, 3.0)) else ""
        if not _wait_for(ours, child.READY, LONGEST):
            return ""
        if kind == RUNNING:
            return kind if not _ended(process, self._random.expovariate(1 / 0.6)) else ""
        for _ in range(self._random.randint(1, 40)):
            if not _wait_for(ours, child.WRITING, LONGEST):
                return ""
        time.sleep(self._random.uniform(0, child.SLOWEST))
        return kind

    def _note(self, path: Path, moment: str, seconds: float) -> Kill:
        entries = [entry.name for entry in (path / "checkpoints").glob("*")]
        newest = max((int(name) for name in entries if name.isdigit()), default=-1)
        half = sum(name.startswith(".") for name in entries)
        return Kill(len(self.kills), self.runs, moment, round(seconds, 2), newest, half)


def _ended(process, seconds: float) -> bool:
    process.join(seconds)
    return not process.is_alive()


def _wait_for(ours, word: str, seconds: float) -> bool:
    """Reads what the process tells until it says `word`; False when it ends or is silent for long."""
    try:
        while ours.poll(seconds):
            if ours.recv() == word:
                return True
    except EOFError:
        pass
    return False


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal, to the bit, in two finished runs; times apart."""
    found = []
    newest = [
        max(int(entry.name) for entry in (path / "checkpoints").iterdir() if entry.name.isdigit())
        for path in (one, other)
    ]
    folders = [path / "checkpoints" / str(step) for path, step in zip((one, other), newest, strict=True)]
    a, b = (load_file(folder / "state.safetensors") for folder in folders)
    found += [
        name for name in a.keys() | b.keys() if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()
    ]
    counters = [json.loads((folder / "progress.json").read_text()) for folder in folders]
    for record in counters:
        for name in ("wall_seconds", "loop_seconds"):
            del record[name]
    found += [] if json.dumps(counters[0]) == json.dumps(counters[1]) else ["progress.json"]
    for table in ("metrics.csv", "evaluations.csv"):
        rows = [
            [{k: v for k, v in row.items() if k not in TIMES} for row in read_table(path / table)]
            for path in (one, other)
        ]
        found += [] if rows[0] == rows[1] else [table]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a table to which every kill is added as a row")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        kill_training(Path(place) / "runs", asked.kills, asked.seed, asked.log)


def kill_training(place: Path, kills: int, seed: int, log: Path | None) -> None:
    campaign = Campaign(place, seed)
    campaign.go(kills)
    if log is not None:
        append(log, seed, campaign.kills)
    moments = dict(Counter(kill.moment for kill in campaign.kills))
    caught = sum(kill.half_written > 0 for kill in campaign.kills)
    print(f"{len(campaign.kills)} kills in {campaign.runs} runs: {moments}; archives half done at {caught} of them")
    print(f"runs that differ from one that was left alone: {campaign.lost or 'none'}")


def append(log: Path, seed: int, kills: list[Kill]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    fresh = not log.is_file()
    with log.open("a", newline="") as file:
        rows = csv.DictWriter(file, ["seed", *(field.name for field in fields(Kill))], lineterminator="\n")
        if fresh:
            rows.writeheader()
        rows.writerows({"seed": seed, **asdict(kill)} for kill in kills)


if __name__ == "__main__":
    main()
