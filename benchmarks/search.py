"""Do repeated visits better a plan? Proposals and step sizes, with few samples and with many.

    python benchmarks/search.py RUN_DIR --out results/search/NAME.csv

The problems are states of the replay, started from their stored plans. Each visit is one iteration with members drawn
anew and the slow critic, as the targets of training are; a plan's return is a mean over fixed draws of the members.
"""

import csv
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import PlannerConfig
from soft_mpcritic.planning import fit_horizon
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state

VISITS = (1, 2, 4, 8, 16, 32, 64, 128)
PROPOSALS: tuple[dict[str, Any], ...] = (
    {},
    {"keep_nominal": True},
    {"step_size": 0.5},
    {"step_size": 0.25},
    {"step_size": 0.1},
    {"step_size": 0.25, "keep_nominal": True},
    {"widths": 4},
    {"widths": 4, "guided": True},
)
SAMPLE_COUNTS = (8, 64)
JUDGING_DRAWS = 16
COLUMNS = ("num_samples", "step_size", "keep_nominal", "widths", "guided", "visits", "plan_return", "value")


@dataclass(frozen=True)
class Search:
    """Solves the same problems again and again with every proposal."""

    run_dir: tyro.conf.Positional[Path]
    out: Path
    horizon: int = 4
    states: int = 64
    """Problems, drawn from the replay."""

    def run(self) -> None:
        """Writes one row per proposal, sample count and number of visits; the first row is where all start."""
        folder = RunFolder(self.run_dir)
        agent, state = load_state(folder, folder.read_settings())
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("w", newline="") as file:
            writer = csv.DictWriter[str](file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in self._rows(agent, state):
                writer.writerow(row)
                file.flush()
                print(*row.values())

    def _rows(self, agent: Agent, state: AgentState) -> Iterator[dict[str, Any]]:
        drawn = state.replay.sample_rows(jax.random.key(1), self.states)
        obs = state.replay.take(drawn).next_obs
        stored = fit_horizon(state.replay.take_plans(drawn)[0], self.horizon + 1)
        judge = self._judge(agent, state, obs)
        yield dict.fromkeys(COLUMNS, "") | {"visits": 0, "plan_return": float(judge(stored))}
        for proposal in PROPOSALS:
            for count in SAMPLE_COUNTS:
                config = dataclasses.replace(PlannerConfig(self.horizon, count, keep_nominal=False), **proposal)
                settings = {name: getattr(config, name) for name in COLUMNS[:5]}
                for visits, plan, value in self._visits(agent, state, obs, stored, config):
                    yield settings | {"visits": visits, "plan_return": float(judge(plan)), "value": float(value)}

    def _visits(
        self, agent: Agent, state: AgentState, obs: jax.Array, plan: jax.Array, config: PlannerConfig
    ) -> Iterator[tuple[int, jax.Array, jax.Array]]:
        """Number of the visit, plans after it, and the mean of the values it gave."""
        mppi = agent.planner.mppi(config)

        def visit(key: jax.Array, plan: jax.Array) -> tuple[jax.Array, jax.Array]:
            sample_key, member_key = jax.random.split(key)
            returns_fn = agent.planner.returns_fn(config, state.models, state.models.target_critic, member_key, obs)
            result = mppi.solve(sample_key, plan, returns_fn)
            return result.plan, jnp.mean(result.value)

        compiled = jit(visit)
        for number, key in enumerate(jax.random.split(jax.random.key(2), max(VISITS)), start=1):
            plan, value = compiled(key, plan)
            if number in VISITS:
                yield number, plan, value

    def _judge(self, agent: Agent, state: AgentState, obs: jax.Array):
        """Mean return of plans [B T A] over problems and draws of the members."""
        config, critic = PlannerConfig(self.horizon), state.models.target_critic

        def draw(plan: jax.Array, key: jax.Array) -> jax.Array:
            return jnp.mean(agent.planner.returns_fn(config, state.models, critic, key, obs)(plan[None]))

        keys = jax.random.split(jax.random.key(3), JUDGING_DRAWS)
        return jit(lambda plan: jnp.mean(jax.lax.map(lambda key: draw(plan, key), keys)))


if __name__ == "__main__":
    tyro.cli(Search).run()
