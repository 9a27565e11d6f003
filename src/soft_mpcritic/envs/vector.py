"""Vectors of Gymnasium environments, stepped by host code, that can be put back where they were."""

import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from soft_mpcritic.envs.device import HostedVector
from soft_mpcritic.envs.guard import FAULT, EnvironmentFaultError, Guarded
from soft_mpcritic.envs.registry import Task
from soft_mpcritic.types import Experience


@runtime_checkable
class Vector(Protocol):
    """E environments of one task, stepped from the host."""

    num_envs: int

    def reset(self, seed: int | Sequence[int]) -> np.ndarray: ...

    def step(self, actions: np.ndarray) -> Experience: ...

    def close(self) -> None: ...


PATIENCE = 8  # time-outs in a row that an environment may need for one step: to fail, and to be made and reset anew
LONGEST_RELIVED = 20_000  # steps of an episode


class Resumable(gym.Wrapper):
    """Remembers how its running episode came about, so that it can be lived again.

    A snapshot holds the random state that the episode's reset started from and the actions since. That is plain
    data, and it is exact for every environment that draws its randomness from Gymnasium's `np_random`. Of an episode
    longer than `LONGEST_RELIVED` it holds nothing: checkpoints stay small, and a new episode takes its place.
    """

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self.index = index
        self._origin: dict[str, Any] = {}
        self._actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is None:
            self._origin = {"random_state": self.unwrapped.np_random.bit_generator.state}
        else:
            self._origin = {"seed": seed}
        self._actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        taken = action.copy()
        answer = self.env.step(action)
        if len(self._actions) <= LONGEST_RELIVED:
            self._actions.append(taken)  # not one that the environment raised at: it is to be tried again
        return answer

    def snapshot(self) -> dict[str, Any]:
        """JSON-ready: where the episode started and the actions since; empty of one that is too long."""
        if len(self._actions) > LONGEST_RELIVED:
            return {}
        return {**self._origin, "actions": [action.tolist() for action in self._actions]}

    def restore(self, snapshots: Sequence[dict[str, Any]]) -> np.ndarray:
        """Lives the episode of this environment's own snapshot again; the observation it ends on.

        Of an empty snapshot, a new episode's first.
        """
        snapshot = snapshots[self.index]
        if "random_state" in snapshot:
            self.unwrapped.np_random.bit_generator.state = snapshot["random_state"]
        obs, _ = self.reset(seed=snapshot.get("seed"))
        for action in snapshot.get("actions", []):
            obs, *_ = self.step(np.asarray(action, self.action_space.dtype))
        return np.asarray(obs)


class Cut(gym.Wrapper):
    """Ends episodes after `longest` steps, as a time limit does; 0 never does."""

    longest = 0

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._time = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._time += 1
        return obs, reward, terminated, truncated or 0 < self.longest <= self._time, info


class EnvVector:
    """E environments of one task. Episodes that end start anew within the same step.

    An environment that does something wrong has its episode cut. With `forgiving`, `step` leaves what was wrong in
    `faults`; without, it raises `EnvironmentFaultError`. One that does not answer within `timeout` seconds is replaced;
    0 waits for ever. `options` go to `gymnasium.make`.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        vectorization: str = "sync",
        *,
        forgiving: bool = False,
        timeout: float = 0.0,
        **options: Any,
    ) -> None:
        def maker(index: int):
            return lambda: Guarded(lambda: Resumable(Cut(task.make_env(**options)), index), index, timeout)

        # A goal of one's own is JAX's, which does not survive in a forked process.
        spawning = partial(AsyncVectorEnv, context="spawn" if task.judged else None)
        vector = SyncVectorEnv if vectorization == "sync" else spawning
        self._envs = vector([maker(i) for i in range(num_envs)], autoreset_mode=AutoresetMode.SAME_STEP)
        self._dtype = self._envs.single_action_space.dtype
        self._forgiving, self._timeout = forgiving, timeout
        self._longest = 0
        self.num_envs = num_envs
        self.faults: dict[int, EnvironmentFaultError] = {}  # of the last step, by environment

    def reset(self, seed: int | Sequence[int]) -> np.ndarray:
        """First observations [E, S]; environment e gets seed + e, or the e-th of a list."""
        obs, info = self._ask(lambda: self._envs.reset(seed=seed if isinstance(seed, int) else list(seed)))
        self._note(info)
        return obs.astype(np.float32)

    def cut_after(self, longest: int) -> None:
        """From now on episodes end after `longest` steps, if the task does not end them before; 0: they never do.

        Raises `EnvironmentFaultError` where the process of an environment has died.
        """
        if longest != self._longest:
            self._ask(lambda: self._envs.set_attr("longest", longest))
            self._longest = longest

    def step(self, actions: np.ndarray) -> Experience:
        """Steps all by actions [E, A] in the task's units; raises `EnvironmentFaultError` as the class says."""
        obs, reward, terminated, truncated, info = self._ask(lambda: self._step(actions.astype(self._dtype)))
        start_obs = obs.astype(np.float32)
        done = terminated | truncated
        next_obs = start_obs
        if done.any():
            next_obs = start_obs.copy()
            for index in np.flatnonzero(done):
                next_obs[index] = info["final_obs"][index]
        self._note(info)
        return Experience(reward.astype(np.float32), next_obs, terminated, done, start_obs)

    def _step(self, actions: np.ndarray) -> Any:
        """A process that does not let its own threads look at the clock is watched from here."""
        if not isinstance(self._envs, AsyncVectorEnv) or not self._timeout:
            return self._envs.step(actions)
        self._envs.step_async(actions)
        return self._envs.step_wait(PATIENCE * self._timeout)

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Processes of environments may also die, or hang for good, and everybody's answers with them."""
        try:
            return question()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._abandon()
            raise EnvironmentFaultError("the process of an environment has died") from error
        except multiprocessing.TimeoutError as error:
            self._abandon()
            raise EnvironmentFaultError("the process of an environment hangs") from error

    def _abandon(self) -> None:
        """Processes of which one is lost cannot be asked to close."""
        for process in getattr(self._envs, "processes", ()):
            process.kill()
            process.join()
        self._envs.closed = True

    def _note(self, info: dict[str, Any]) -> None:
        told = [part[FAULT] for part in (info.get("final_info", {}), info) if FAULT in part]
        self.faults = {i: EnvironmentFaultError.of(text) for texts in told for i, text in enumerate(texts) if text}
        if self.faults:
            self._longest = 0  # a new one in the place of a faulty one has not been told
        if self.faults and not self._forgiving:
            raise next(iter(self.faults.values()))

    def snapshot(self) -> list[dict[str, Any]]:
        """What `restore` needs to bring all environments back here."""
        return list(self._envs.call("snapshot"))

    def restore(self, snapshots: Sequence[dict[str, Any]]) -> np.ndarray:
        """Observations [E, S] after every environment has lived its running episode again."""
        return np.stack(self._envs.call("restore", snapshots)).astype(np.float32)

    @property
    def first_env(self) -> gym.Env:
        """The first environment itself, for rendering; synchronous vectors only."""
        return self._envs.envs[0].env  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        self._envs.close()


def make_vector(task: Task, num_envs: int, timeout: float = 0.0) -> Vector:
    """Gymnasium's environments, or for a task that it does not have the device's."""
    if task.has_gymnasium:
        return EnvVector(task, num_envs, timeout=timeout)
    return HostedVector(task.make_device_env(), num_envs)
