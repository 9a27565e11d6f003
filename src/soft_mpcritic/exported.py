"""Real-time control, and the controllers that `soft-mpcritic export` wrote.

This module needs NumPy, JAX and flatbuffers alone. It may be copied, as this one file, to where a controller acts.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np
from jax import export
from numpy.typing import ArrayLike

ARTEFACT = "soft-mpcritic controller"
MOST = 10**7  # plants, components of an observation, action slots
FORMAT = 1  # of the artefact; raised when an old one can no longer be read
MANIFEST, PROGRAM, ARRAYS = "manifest.json", "solve.{}.stablehlo", "models.npz"  # a program for every platform

Solve = Callable[[np.uint32, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(number of the solve, observations [E, S] or [E, 2 S], start [E, T, A]) -> (plan [E, T, A], soft value [E])."""


# ------------------------------------------------------------------ real time


@dataclass(frozen=True)
class Plants:
    """The plants that one controller drives: E of them, all alike."""

    count: int  # E
    obs_size: int  # S
    action_low: tuple[float, ...]  # A numbers, in the plants' units
    action_high: tuple[float, ...]
    slots: int  # T, length of a plan
    observe_change: bool = False  # does the solve ask how observations have changed since the last tick, too?

    @property
    def asked_size(self) -> int:
        """Components of what the solve is asked at."""
        return 2 * self.obs_size if self.observe_change else self.obs_size


class Latencies:
    """Durations counted in bins that grow by 2 %: memory stays as it is, percentiles are right to 2 %."""

    SHORTEST, GROWTH, BINS = 1e-6, math.log(1.02), 1000  # 1 us to 400 s

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._counts = np.zeros(self.BINS, np.int64)
        self.count, self.total, self.max = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        position = math.log(max(seconds / self.SHORTEST, 1.0)) / self.GROWTH
        self._counts[min(int(position), self.BINS - 1)] += 1
        self.count += 1
        self.total += seconds
        self.max = max(self.max, seconds)

    def percentile(self, percent: int | float) -> float:
        """Seconds that `percent` % of the durations did not exceed, rounded up to a bin's edge; NaN of none."""
        if self.count == 0:
            return math.nan
        rank = max(math.ceil(percent / 100 * self.count), 1)
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(self.SHORTEST * math.exp((place + 1) * self.GROWTH), self.max)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan


@dataclass
class Late:
    """A solve that was begun and not yet taken over."""

    result: Future[tuple[np.ndarray, np.ndarray]]
    age: int  # ticks since it was begun
    wanted: np.ndarray  # [E]: False for plants that were reset meanwhile


class ControlLoop:
    """A warm-started solve for E plants, called once every tick.

    A call takes observations [E, S], or [S] of a single plant, and gives actions of the same kind in the plants' units.
    It shifts the plan of the last call by one step, improves it by a solve, and plays its first action.

    With a `deadline`, in seconds from the call, the solve runs on a thread of its own. When the deadline passes first,
    the shifted plan is played as it is, at once. The late solve is not lost: the next call first waits for it, within
    its own deadline, shifts its plan by the ticks since, and only then begins its own solve, from there. So at most one
    solve is under way, and plans never come out of order. Every call that takes longer than the deadline is a miss,
    also where the solve was done in time and the calling thread was kept waiting for a processor.
    """

    def __init__(self, solve: Solve, plants: Plants, deadline: float | None = None) -> None:
        if deadline is not None and not 0 < deadline < math.inf:
            raise ValueError(f"deadline must be > 0 seconds, got {deadline}: use the control period, or None for none.")
        self.plants = plants
        self.deadline = deadline
        self.latencies = Latencies()
        self.misses = 0
        self._solve = solve
        self._low, self._high = (np.array(bound, np.float32) for bound in (plants.action_low, plants.action_high))
        self._worker = None if deadline is None else ThreadPoolExecutor(1, "soft-mpcritic-solve")
        self._late: Late | None = None
        self._seen = np.full((plants.count, plants.obs_size), np.nan)
        self._value = np.full(plants.count, np.nan, np.float32)
        self.reset()

    def __call__(self, obs: ArrayLike) -> np.ndarray:
        called = perf_counter()
        rows = self._checked(obs)
        improved = self._improve(self._beside_changes(rows), called)
        self._plan, self._start = self._start, shift(self._start)
        action = self._to_plant(self._plan[:, 0])
        action = action if np.ndim(obs) == 2 else action[0]
        self.latencies.add(perf_counter() - called)
        # Last of all, so that a thread which is kept waiting anywhere before is seen to be late.
        if not improved or (self.deadline is not None and perf_counter() - called > self.deadline):
            self.misses += 1
        return action

    def reset(self, which: ArrayLike | None = None) -> None:
        """Starts plans anew, at the centre of the action box: all of them and the noise, or those of a mask [E]."""
        plants = self.plants
        if which is None:
            self._solves = 0
            self._plan = self._start = np.zeros((plants.count, plants.slots, len(plants.action_low)), np.float32)
            restarted = np.ones(plants.count, bool)
        else:
            restarted = np.asarray(which)
            if restarted.shape != (plants.count,) or restarted.dtype != bool:
                got = f"{restarted.dtype}{restarted.shape}"
                raise ValueError(f"which must be a mask of {plants.count} booleans, got {got}: one for each plant.")
            self._plan, self._start = (_cleared(plan, restarted) for plan in (self._plan, self._start))
        self._seen[restarted] = np.nan
        if self._late is not None:
            self._late.wanted = self._late.wanted & ~restarted

    @property
    def plan(self) -> np.ndarray:
        """The plan in force [E, T, A], [T, A] of a single plant, in the plants' units; its first action was played."""
        return self._alone(self._to_plant(self._plan))

    @property
    def value(self) -> np.ndarray | np.float32:
        """Soft value [E], or a single one, that the last finished solve found; NaN before the first."""
        return self._alone(self._value)

    def _improve(self, obs: np.ndarray, called: float) -> bool:
        """Solves at `obs` from the plan in `_start` and puts the result in its place; was that done in time?"""
        if self._worker is None or self.deadline is None:
            self._start, self._value = self._solve(self._next_number(), obs, self._start)
            return True
        until = called + self.deadline
        if not self._caught_up(until):
            return False
        result = self._worker.submit(self._solve, self._next_number(), obs, self._start)
        self._late = Late(result, 0, np.ones(self.plants.count, bool))
        return self._caught_up(until)

    def _caught_up(self, until: float) -> bool:
        """Waits for the solve under way and takes its plan over, as old as it is; False when `until` comes first."""
        late = self._late
        if late is None:
            return True
        wait([late.result], timeout=max(until - perf_counter(), 0))
        if not late.result.done():
            late.age += 1
            return False
        self._late = None
        plan, self._value = late.result.result()
        for _ in range(late.age):
            plan = shift(plan)
        self._start = np.where(late.wanted[:, None, None], plan, self._start)
        return True

    def _next_number(self) -> np.uint32:
        number = np.uint32(self._solves % 2**32)
        self._solves += 1
        return number

    def _checked(self, obs: ArrayLike) -> np.ndarray:
        """A copy [E, S], which the caller cannot change under a late solve."""
        rows = np.array(obs, float)
        plants = self.plants
        expected = [(plants.count, plants.obs_size), *([(plants.obs_size,)] if plants.count == 1 else [])]
        if rows.shape not in expected:
            shapes = " or ".join(map(str, expected))
            raise ValueError(f"observation must have shape {shapes}, got {rows.shape}: give a row to every plant.")
        rows = rows.reshape(expected[0])
        for plant, component in np.argwhere(~(np.abs(rows) <= np.finfo(np.float32).max)):
            where, value = f"component {component} of the observation of plant {plant}", rows[plant, component]
            raise ValueError(f"{where} must be finite, got {value}: mend the sensor, or stop the plant.")
        return rows

    def _beside_changes(self, rows: np.ndarray) -> np.ndarray:
        """What the solve is asked at: a plant that is new, or was reset, has not changed."""
        if not self.plants.observe_change:
            return rows.astype(np.float32)
        changes = np.where(np.isnan(self._seen), 0.0, rows - self._seen)
        self._seen = rows
        return np.concatenate([rows, changes], axis=1).astype(np.float32)

    def _to_plant(self, action: np.ndarray) -> np.ndarray:
        """From the planner's box [-1, 1] to the plants' own."""
        mapped = self._low + np.float32(0.5) * (action + np.float32(1)) * (self._high - self._low)
        return np.minimum(np.maximum(mapped, self._low), self._high)

    def _alone(self, rows: np.ndarray) -> Any:
        return rows[0] if self.plants.count == 1 else rows


def shift(plan: np.ndarray) -> np.ndarray:
    """The plan [E, T, A] one step later: (U_1, .., U_H, 0)."""
    return np.concatenate([plan[:, 1:], np.zeros_like(plan[:, :1])], axis=1)


def compiled_solve(
    program: Callable[..., Any], arrays: list[jax.Array], plants: Plants, seed: int, compiler_options: Mapping[str, Any]
) -> Solve:
    """Compiles `program(arrays, seed, number, obs, start) -> (plan, value)` ahead of time, and runs it once."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2^32), got {seed}: use a smaller whole number.")
    size = len(plants.action_low)
    obs = np.zeros((plants.count, plants.asked_size), np.float32)
    start = np.zeros((plants.count, plants.slots, size), np.float32)
    fixed = (arrays, np.uint32(seed))
    lowered = jax.jit(program).lower(*fixed, np.uint32(0), obs, start)
    try:
        compiled = lowered.compile(dict(compiler_options))
    except jax.errors.JaxRuntimeError as error:
        if "compile option" not in str(error):
            raise
        compiled = lowered.compile()  # by another version of XLA, which knows other options

    def solve(number: np.uint32, obs: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plan, value = jax.device_get(compiled(*fixed, number, obs, start))
        return plan, value

    solve(np.uint32(0), obs, start)
    return solve


def _cleared(plan: np.ndarray, which: np.ndarray) -> np.ndarray:
    return np.where(which[:, None, None], np.float32(0), plan)


# ------------------------------------------------------------------- artefact


class ExportedController(ControlLoop):
    """The controller in a file that `soft-mpcritic export` wrote; `manifest` says what it is.

    Acts like the `Controller` that was exported, for the same seed and the same observations.
    """

    def __init__(self, path: str | PathLike[str], deadline: float | None = None, seed: int = 0) -> None:
        path = Path(path)
        self.manifest, parts = read_artefact(path)
        plants = Plants(
            self.manifest["plants"],
            self.manifest["obs_size"],
            tuple(self.manifest["action_low"]),
            tuple(self.manifest["action_high"]),
            self.manifest["plan_slots"],
            self.manifest.get("observe_change", False),
        )
        platform = export.default_export_platform()
        if platform not in self.manifest["platforms"]:
            made_for = ", ".join(self.manifest["platforms"])
            raise ValueError(f"{path} is for {made_for}, this process runs on {platform}: set JAX_PLATFORMS.")
        program = _deserialized(path, parts[PROGRAM.format(platform)], self.manifest["jax"])
        try:
            arrays = [jax.device_put(array) for array in _read_arrays(parts[ARRAYS], self.manifest["arrays"])]
        except Exception as error:  # NumPy and zipfile meet damage with exceptions of many kinds
            raise ValueError(f"{path} is damaged: {ARRAYS}: {_brief(error)}; export it again.") from error
        options = self.manifest["compiler_options"].get(platform, {})
        super().__init__(compiled_solve(program.call, arrays, plants, seed, options), plants, deadline)


def read_artefact(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and parts of an artefact; raises `ValueError`, in one line, for a file that is none."""
    try:
        with zipfile.ZipFile(path) as file:
            _check_sizes(file.infolist(), path.stat().st_size)
            parts = {name: file.read(name) for name in file.namelist()}
        manifest = json.loads(parts[MANIFEST])
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}; name a file that export wrote.") from error
    except Exception as error:  # zipfile meets damage with exceptions of many kinds
        raise ValueError(f"{path} is damaged, or no exported controller: {_brief(error)}; export it again.") from error
    _check_kind(path, manifest)
    wrong = _wrong_entries(manifest)
    if wrong:
        raise ValueError(f"{path} is damaged: its manifest says nothing sound of {', '.join(wrong)}; export it again.")
    for name in [ARRAYS, *(PROGRAM.format(platform) for platform in manifest["platforms"])]:
        if hashlib.sha256(parts.get(name, b"")).hexdigest() != manifest["sha256"].get(name):
            raise ValueError(f"{path} is damaged: {name} is not what its checksum says; export it again.")
    return manifest, parts


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Export stores parts as they are: they cannot be larger than the file, and nothing is to be unpacked."""
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"parts are packed, or larger than the file: {', '.join(packed)}")


def _wrong_entries(manifest: dict[str, Any]) -> list[str]:
    """Names of what a manifest lacks, or holds as something else."""
    texts, numbers = (lambda v: _is_list(v, str)), (lambda v: _is_list(v, int | float))
    kinds = {
        "plants": lambda v: type(v) is int and 1 <= v <= MOST,
        "obs_size": lambda v: type(v) is int and 1 <= v <= MOST,
        "plan_slots": lambda v: type(v) is int and 1 <= v <= MOST,
        "observe_change": lambda v: v is None or type(v) is bool,
        "action_low": numbers,
        "action_high": lambda v: numbers(v) and _is_list(manifest.get("action_low"), len_of=v),
        "platforms": texts,
        "arrays": texts,
        "sha256": lambda v: isinstance(v, dict),
        "compiler_options": lambda v: isinstance(v, dict),
        "jax": lambda v: isinstance(v, str),
    }
    return [name for name, fits in kinds.items() if not fits(manifest.get(name))]


def _is_list(value: Any, kind: Any = object, len_of: Any = None) -> bool:
    fits = isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
    return fits and (len_of is None or len(value) == len(len_of))


def _read_arrays(content: bytes, names: list[str]) -> list[np.ndarray]:
    """The named arrays of an .npz; a header that promises more than there is, is refused before allocation."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        _check_sizes(file.infolist(), len(content))
        for entry in file.infolist():
            with file.open(entry) as array:
                version = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} promises {dtype}{shape}")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return [stored[name] for name in names]


def _check_kind(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("artefact") != ARTEFACT:
        raise ValueError(f"{path} is no exported controller: name a file that export wrote.")
    if manifest.get("format") != FORMAT:
        version = manifest.get("version", "that wrote it")
        raise ValueError(
            f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: use soft-mpcritic {version}."
        )


def _deserialized(path: Path, program: bytes, written_with: str) -> export.Exported:
    try:
        return export.deserialize(bytearray(program))
    except ImportError as error:
        raise ImportError("an exported controller needs flatbuffers: pip install flatbuffers.") from error
    except Exception as error:  # whatever JAX raises for a program of another age
        raise ValueError(
            f"{path} was exported with JAX {written_with}, JAX {jax.__version__} cannot read it ({_brief(error)}): "
            "export it again."
        ) from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
