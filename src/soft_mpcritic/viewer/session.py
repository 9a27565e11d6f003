"""A plant under its controller, step by step, with settings that may change under way. Knows no browser."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from soft_mpcritic.agent import Agent
from soft_mpcritic.exported import shift
from soft_mpcritic.planner import Models
from soft_mpcritic.viewer.foresight import Foresight, Imagined, Setting
from soft_mpcritic.viewer.plant import Plant

MEMORY = 10.0  # s of the plant's time that charts show
KEPT = 16  # compiled settings, for going back to them at once


class Moment(NamedTuple):
    """Figures of one control step."""

    time: float  # s, the plant's, since the session began
    value: float  # soft value, reward units
    effective_samples: float
    latency: float  # s that the solve took
    reward: float


class Session:
    """The state of everything that is shown. One thread calls its methods; any may set the attributes below."""

    def __init__(self, agent: Agent, models: Models, seed: int, **options: Any) -> None:
        config = agent.config
        self._seed = seed
        self._compile = lru_cache(KEPT)(partial(Foresight, agent, models, seed=seed))
        self.temperature = config.objective.temperature
        self.wanted = Setting(config.planner.num_samples, config.planner.horizon)
        self._actions = agent.task.action_size
        self.plant = Plant(agent.task, seed, **options)
        self.history: deque[Moment] = deque(maxlen=max(round(MEMORY / self.plant.step_seconds), 2))
        self.time, self.ret, self.episode = 0.0, 0.0, 1
        self.complaint = ""  # of the last setting that could not be compiled
        self._workshop = ThreadPoolExecutor(1, "soft-mpcritic-compile")
        self._under_way: tuple[Setting, Future[Foresight]] | None = None
        self._foresight = self._compile(self.wanted)
        self._solves = 0
        self._start = self._cold()
        self.think()

    @property
    def setting(self) -> Setting:
        """In force; `wanted` is on its way where it differs."""
        return self._foresight.setting

    @property
    def settled(self) -> bool:
        """Is what is wanted in force?"""
        return self.setting == self.wanted

    def tick(self) -> None:
        """Plays the plan's first action, and plans at where that led."""
        experience = self.plant.step(self.solved.env_action)
        self.time += self.plant.step_seconds
        self.ret += float(experience.reward[0])
        self._start = shift(self.solved.plan[None])[0]
        self.history.append(
            Moment(
                self.time,
                self.solved.value,
                self.solved.effective_samples,
                self.latency,
                float(experience.reward[0]),
            )
        )
        if experience.done[0]:
            self._begin_episode()
        self.think()

    def think(self) -> None:
        """Solves at the present observation, with the newest settings that are ready."""
        self._take_over()
        self._asked = self.temperature
        began = time.perf_counter()
        self.solved = self._foresight.solve(self._solves, self.plant.obs, self._start, self._asked)
        self.latency = time.perf_counter() - began
        self._solves += 1

    def refresh(self) -> None:
        """While the plant stands still: solves again where settings have changed."""
        if self._take_over() or self.temperature != self._asked:
            self.think()

    def _take_over(self) -> bool:
        """Takes over settings whose program is ready, begins to compile those that are wanted; did they change?"""
        changed = False
        if self._under_way is not None and self._under_way[1].done():
            (setting, compiled), self._under_way = self._under_way, None
            changed = self._adopt(setting, compiled)
        if self._under_way is None and not self.settled:
            wanted = self.wanted
            self._under_way = (wanted, self._workshop.submit(self._compile, wanted))
        return changed

    def reset(self) -> None:
        """A new episode."""
        self.plant.reset(self._seed + self.episode)
        self._begin_episode()
        self.think()

    def imagine(self) -> Imagined:
        """Where the plan and samples of the last solve lead."""
        return self._foresight.imagine(self.plant.obs, self.solved)

    def close(self) -> None:
        self._workshop.shutdown(cancel_futures=True)
        self.plant.close()

    def _begin_episode(self) -> None:
        self.ret, self.episode = 0.0, self.episode + 1
        self._start = self._cold()

    def _adopt(self, setting: Setting, compiled: Future[Foresight]) -> bool:
        try:
            self._foresight = compiled.result()
        except Exception as error:  # whatever a compiler raises, want of memory say: the old program goes on
            self.complaint = f"{setting}: {' '.join(str(error).split())[:120]}"
            if self.wanted == setting:
                self.wanted = self.setting
            return False
        self.complaint = ""
        kept = self._start[: setting.horizon + 1]
        self._start = np.pad(kept, ((0, setting.horizon + 1 - len(kept)), (0, 0)))
        return True

    def _cold(self) -> Float[np.ndarray, "T A"]:
        return np.zeros((self.setting.horizon + 1, self._actions), np.float32)
