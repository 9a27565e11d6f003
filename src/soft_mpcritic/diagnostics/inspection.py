"""Looks at an agent and at what it played."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.compilation import jit
from soft_mpcritic.diagnostics.draws import SEED, filled, some
from soft_mpcritic.diagnostics.figures import Diagnosis
from soft_mpcritic.diagnostics.models import ModelErrors, change_deviation, draw_windows, model_errors
from soft_mpcritic.diagnostics.solves import SolveSample, compare_solves, draw_problems
from soft_mpcritic.diagnostics.values import ValueSample, action_values, counted_steps, discounted_returns
from soft_mpcritic.planner import Models
from soft_mpcritic.types import Trajectory


@dataclass(frozen=True)
class Effort:
    """How much is looked at."""

    steps: int = 512  # played steps whose Q is compared with their return
    windows: int = 512  # played steps from which models are rolled out
    solves: int = 16  # replayed states of one batch of solves
    batches: int = 1  # of solves; each meets another draw of the ensemble's members
    reference_samples: int = 2000


REPORT_EFFORT = Effort(steps=10_000, windows=4096, batches=8)  # of a report that is asked for


class Diagnostics:
    """Diagnoses states of one agent; compiled functions are kept between calls."""

    def __init__(self, agent: Agent, effort: Effort | None = None) -> None:
        self._effort = effort or Effort()
        self._objective = agent.config.objective
        self._steps_ahead = max(agent.config.planner.horizon, 1)
        planner = agent.planner
        self._q = jit(partial(action_values, planner))
        self._solve = jit(partial(compare_solves, planner, self._effort.reference_samples))
        self._roll = jit(partial(model_errors, planner))
        self._draw = jit(partial(draw_problems, self._effort.solves))
        self._deviation = jit(change_deviation)

    def __call__(self, state: AgentState, played: Sequence[Trajectory]) -> Diagnosis:
        """What `played`, the episodes of the deterministic controller, and the replay say of a state."""
        rng = np.random.default_rng(SEED)
        return Diagnosis(self._values(state.models, played, rng), self._solves(state), self._models(state, played, rng))

    def _values(self, models: Models, played: Sequence[Trajectory], rng: np.random.Generator) -> ValueSample:
        discount, end_value = self._objective.discount, self._objective.end_value
        counted = [counted_steps(trajectory, discount) for trajectory in played]
        ret = np.concatenate(
            [
                discounted_returns(t.reward, discount, end_value if t.terminated else 0.0)[:n]
                for t, n in zip(played, counted, strict=True)
            ]
        )
        obs, action, soft_value = (
            np.concatenate([column[:n] for column, n in zip(columns, counted, strict=True)])
            for columns in ([t.obs for t in played], [t.action for t in played], [t.soft_value for t in played])
        )
        rows = some(rng, len(ret), self._effort.steps)
        q = self._q(models, filled(obs[rows], self._effort.steps), filled(action[rows], self._effort.steps))
        return ValueSample(np.asarray(q, float)[: len(rows)], soft_value[rows].astype(float), ret[rows])

    def _solves(self, state: AgentState) -> SolveSample:
        parts = []
        for key in jax.random.split(jax.random.key(SEED), self._effort.batches):
            row_key, solve_key = jax.random.split(key)
            batch, start, age = self._draw(state, row_key)
            sample = np.asarray(self._solve(state.models, solve_key, batch.next_obs, start, age), float)
            counts = (np.asarray(batch.terminated) == 0) & np.isfinite(sample).all(axis=0)
            parts.append(sample[:, counts])
        return SolveSample(*np.concatenate(parts, axis=1))

    def _models(self, state: AgentState, played: Sequence[Trajectory], rng: np.random.Generator) -> ModelErrors:
        windows = draw_windows(played, rng, self._effort.windows, self._steps_ahead)
        errors = self._roll(state.models, windows, self._deviation(state.replay))
        errors = ModelErrors(*(np.asarray(part, float) for part in errors))
        begun = windows.live[:, 0]
        return errors._replace(spread=errors.spread[begun], miss=errors.miss[begun])
