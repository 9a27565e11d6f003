"""What stands between a run and an environment that misbehaves while it is stepped.

An environment may raise, hang, answer in a wrong shape, or with numbers that nobody can learn from. Whatever it does,
the vector that it belongs to gets a sound answer: the episode is cut, and the step is reported as a fault.
"""

import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

LARGEST = 1e15  # of any number; squares of larger ones, summed up, overflow float32 and would spoil scales for good
RESETS = 3  # tries to begin an episode before the environment is given up
FAULT = "fault"  # where the info of a step names what went wrong


class EnvironmentFaultError(RuntimeError):
    """An environment did what a run cannot go on with; the message, one line, names where and what.

    `trace` is the traceback of what the environment raised, if it did. Other processes tell of both in one text.
    """

    def __init__(self, told: str, trace: str = "") -> None:
        super().__init__(told)
        self.trace = trace

    @staticmethod
    def of(text: str) -> "EnvironmentFaultError":
        """From message and traceback, a line break between them."""
        told, _, trace = text.partition("\n")
        return EnvironmentFaultError(told, trace)

    @property
    def text(self) -> str:
        """The inverse of `of`."""
        return f"{self}\n{self.trace}" if self.trace else str(self)

    def worded(self, before: str = "", after: str = "") -> "EnvironmentFaultError":
        """The same with more words around the message."""
        return EnvironmentFaultError(f"{before}{self}{after}", self.trace)


class Guarded(gym.Wrapper):
    """Catches whatever one environment does wrong.

    A step that fails answers with the last sound observation, a reward of 0 and a truncation, and its info names the
    fault; other infos, which nobody reads, stop here. An environment that hangs longer than `timeout` seconds (0: as
    long as it likes) is replaced by a new one; so is one that cannot be reset. Raises `EnvironmentFaultError` when a
    new one cannot be reset either.
    """

    def __init__(self, make: Callable[[], gym.Env], index: int, timeout: float = 0.0) -> None:
        super().__init__(make())
        self._make, self._index, self._timeout = make, index, timeout
        self._watched = Watched() if timeout > 0 else None
        space = self.env.observation_space
        assert isinstance(space, Box), "make_task admits no other"
        self._last = np.zeros(space.shape, space.dtype)
        self._seed, self._faults = 0, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            obs, reward, terminated, truncated, _ = self._call(self.env.step, action)
            reward = self._checked_reward(reward)
            self._last = self._checked_obs(obs, "observation")
            return self._last, reward, bool(terminated), bool(truncated), {}
        except Exception as error:
            return self._last, 0.0, False, True, {FAULT: self._fault(error).text}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """An episode's first observation; new environments are tried where that fails, with seeds of their own."""
        if seed is not None:
            self._seed = seed
        faults: list[EnvironmentFaultError] = []
        while len(faults) < RESETS:
            try:
                if faults:
                    self.env = self._call(self._make)
                    seed = self._fresh_seed()
                obs, _ = self._call(self.env.reset, seed=seed, options=options)
                self._last = self._checked_obs(obs, "first observation")
                return self._last, {FAULT: _joined(faults).text} if faults else {}
            except Exception as error:
                faults.append(self._fault(error))
        raise faults[-1]

    def snapshot(self) -> dict[str, Any]:
        return self.env.get_wrapper_attr("snapshot")()

    def restore(self, snapshots: Sequence[dict[str, Any]]) -> np.ndarray:
        """As the environment does it; where it cannot, the first observation of a new episode."""
        try:
            self._last = self._checked_obs(self._call(self.env.get_wrapper_attr("restore"), snapshots), "observation")
            return self._last
        except Exception as error:
            self._fault(error)
            return self.reset()[0]

    def close(self) -> None:
        """An environment that fails at its very end has nothing left to lose."""
        try:
            self._call(self.env.close)
        except Exception as error:
            self._fault(error)

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self._watched is None:
            return function(*arguments, **options)
        return self._watched.call(lambda: function(*arguments, **options), self._timeout)

    def _checked_reward(self, reward: Any) -> float:
        value = np.asarray(reward)
        if value.size != 1 or value.dtype.kind not in "fiub":
            raise EnvironmentFaultError(f"the reward of {self._name} is {_brief(reward)}, not a number")
        number = float(value.reshape(()))
        if not abs(number) <= LARGEST:
            raise EnvironmentFaultError(f"the reward of {self._name} is {number}")
        return number

    def _checked_obs(self, obs: Any, what: str) -> np.ndarray:
        rows = np.asarray(obs)
        if rows.shape != self._last.shape:
            shapes = f"{rows.shape} instead of {self._last.shape}"
            raise EnvironmentFaultError(f"the {what} of {self._name} has shape {shapes}")
        if rows.dtype.kind not in "fiub":
            raise EnvironmentFaultError(f"the {what} of {self._name} has dtype {rows.dtype}")
        bad = ~(np.abs(rows) <= LARGEST)
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            component = place[0] if len(place) == 1 else place
            raise EnvironmentFaultError(f"component {component} of the {what} of {self._name} is {rows[place]}")
        return rows.astype(self._last.dtype)

    def _fault(self, error: Exception) -> EnvironmentFaultError:
        """The error with this environment's name. After a hang the environment is busy: a new one takes its place."""
        self._faults += 1
        if isinstance(error, EnvironmentFaultError):
            return error
        if isinstance(error, StillBusyError):
            self._watched = Watched()
            self.env = self._call(self._make)
            return EnvironmentFaultError(f"{self._name} did not answer within {self._timeout:g} s")
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {_brief(error)}" if str(error) else type(error).__name__
        trace = "".join(traceback.format_exception(error)).rstrip()
        return EnvironmentFaultError(f"{self._name} raised {told} (line {frame.lineno} of {frame.filename})", trace)

    def _fresh_seed(self) -> int:
        """Of an environment that takes the place of another: not that one's over again, and the same in every run."""
        return int(np.random.SeedSequence([self._seed, self._faults]).generate_state(1)[0])

    @property
    def _name(self) -> str:
        return f"environment {self._index}"


class StillBusyError(Exception):
    """A call that was not done in time."""


class Watched:
    """A thread that calls functions while another one looks at the clock."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="soft-mpcritic-environment").start()

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """What `function()` answers or raises; `StillBusyError` when that takes longer than `seconds`.

        Such a thread cannot be stopped: it is to be left alone from then on.
        """
        self._asked.put(function)
        try:
            answer, error = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise StillBusyError from None
        if error is not None:
            raise error
        return answer

    def _work(self) -> None:
        while True:
            function = self._asked.get()
            try:
                self._answers.put((function(), None))
            except Exception as error:
                self._answers.put((None, error))


def _joined(faults: Sequence[EnvironmentFaultError]) -> EnvironmentFaultError:
    """Several as one, with the traceback of the last."""
    return faults[-1].worded(before="".join(f"{earlier}; " for earlier in faults[:-1]))


def _brief(what: object) -> str:
    return " ".join(str(what).split())[:200]
