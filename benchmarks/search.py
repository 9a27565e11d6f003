"""How good a plan becomes with repeated visits: proposals of one or several widths, guided by the gradient or not.

    python benchmarks/search.py RUN_DIR --out results/search/NAME.csv

The problems are states of the replay, started from their stored plans (warm) or from zeros (cold). Each visit is one
iteration with members drawn anew, as in training; the plan's return is a mean over fixed draws of the members.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import PlannerConfig
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state

VISITS = (1, 2, 4, 8, 16, 32)
PROPOSALS = ((1, False), (4, False), (1, True), (4, True))  # widths, guided
SAMPLE_COUNTS = (5, 8, 64)
JUDGING_DRAWS = 16
COLUMNS = ("start", "num_samples", "widths", "guided", "visits", "plan_return")


@dataclass(frozen=True)
class Search:
    """Solves the same problems again and again with every proposal."""

    run_dir: tyro.conf.Positional[Path]
    out: Path
    horizon: int = 4
    states: int = 32
    """Problems, drawn from the replay."""

    def run(self) -> None:
        """Writes one row per start, proposal, sample count and number of visits."""
        folder = RunFolder(self.run_dir)
        agent, state = load_state(folder, folder.read_settings())
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in self._rows(agent, state):
                writer.writerow(row)
                file.flush()
                print(*row.values())

    def _rows(self, agent: Agent, state: AgentState) -> Iterator[dict[str, object]]:
        drawn = state.replay.sample_rows(jax.random.key(1), self.states)
        obs = state.replay.take(drawn).next_obs
        stored, _ = state.replay.take_plans(drawn)
        missing = max(self.horizon + 1 - stored.shape[1], 0)
        warm = jnp.pad(stored, ((0, 0), (0, missing), (0, 0)))[:, : self.horizon + 1]
        judge = self._judge(agent, state, obs)
        for start, plan in (("warm", warm), ("cold", jnp.zeros_like(warm))):
            yield dict(zip(COLUMNS, (start, 0, 0, False, 0, float(judge(plan))), strict=True))
            for widths, guided in PROPOSALS:
                for count in SAMPLE_COUNTS:
                    config = PlannerConfig(self.horizon, count, widths=widths, guided=guided)
                    for visits, reached in self._visits(agent, state, obs, plan, config):
                        values = (start, count, widths, guided, visits, float(judge(reached)))
                        yield dict(zip(COLUMNS, values, strict=True))

    def _visits(
        self, agent: Agent, state: AgentState, obs: jax.Array, plan: jax.Array, config: PlannerConfig
    ) -> Iterator[tuple[int, jax.Array]]:
        mppi = agent.planner.mppi(config)

        def visit(key: jax.Array, plan: jax.Array) -> jax.Array:
            sample_key, member_key = jax.random.split(key)
            returns_fn = agent.planner.returns_fn(config, state.models, state.models.critic, member_key, obs)
            return mppi.solve(sample_key, plan, returns_fn).plan

        compiled = jit(visit)
        for number, key in enumerate(jax.random.split(jax.random.key(2), max(VISITS)), start=1):
            plan = compiled(key, plan)
            if number in VISITS:
                yield number, plan

    def _judge(self, agent: Agent, state: AgentState, obs: jax.Array):
        """Mean return of plans [B T A] over problems and draws of the members."""

        def draw(plan: jax.Array, key: jax.Array) -> jax.Array:
            returns_fn = agent.planner.returns_fn(PlannerConfig(), state.models, state.models.critic, key, obs)
            return jnp.mean(returns_fn(plan[None]))

        keys = jax.random.split(jax.random.key(3), JUDGING_DRAWS)
        return jit(lambda plan: jnp.mean(jax.lax.map(lambda key: draw(plan, key), keys)))


if __name__ == "__main__":
    tyro.cli(Search).run()
