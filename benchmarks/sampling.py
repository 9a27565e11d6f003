"""Quality per sample: value and plan of a solve with few samples, against one with 20,000, at a trained agent's states.

    python benchmarks/sampling.py RUN_DIR --out results/sampling/NAME.csv

Members are drawn once for all solves, so that only the samplers differ. Starts are the plans kept in the replay
(warm) or zeros (cold). The reference draws iid samples around the same start and has no nominal plan among them.
"""

import csv
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import PlannerConfig
from soft_mpcritic.planning import SAMPLERS
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state
from soft_mpcritic.types import PlanResult

SAMPLE_COUNTS = (8, 16, 20, 64, 200)
REFERENCE_SAMPLES = 20_000
COLUMNS = ("start", "sampler", "keep_nominal", "num_samples", "value_bias", "value_rms", "plan_rms", "regret")


@dataclass(frozen=True)
class Sampling:
    """Solves the same problems with every sampler and many sample counts."""

    run_dir: tyro.conf.Positional[Path]
    out: Path
    states: int = 32
    """Problems, drawn from the replay."""
    repeats: int = 32
    """Independent solves of every problem."""

    def run(self) -> None:
        """Writes one row per start, sampler and sample count."""
        folder = RunFolder(self.run_dir)
        agent, state = load_state(folder, folder.read_settings())
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("w", newline="") as file:
            writer = csv.DictWriter[str](file, COLUMNS)
            writer.writeheader()
            for row in self._rows(agent, state):
                writer.writerow(row)
                print(*(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()))

    def _rows(self, agent: Agent, state: AgentState) -> Iterator[dict[str, object]]:
        drawn = state.replay.sample_rows(jax.random.key(1), self.states)
        obs = state.replay.take(drawn).next_obs
        warm, _ = state.replay.take_plans(drawn)
        for name, start in (("warm", warm), ("cold", jnp.zeros_like(warm))):
            reference = self._reference(agent, state, obs, start)
            for sampler in SAMPLERS:
                for keep_nominal in (False, True):
                    for count in SAMPLE_COUNTS:
                        config = PlannerConfig(num_samples=count, sampler=sampler, keep_nominal=keep_nominal)  # pyright: ignore[reportArgumentType]
                        solve = self._solver(agent, state, obs, start, config)
                        solved = solve(jax.random.split(jax.random.key(2), self.repeats))
                        value = np.asarray(solved.value) - np.asarray(reference.value)
                        plan = np.asarray(solved.plan) - np.asarray(reference.plan)
                        best = np.asarray(self._plan_returns(agent, state, obs, reference.plan[None]))
                        reached = np.asarray(self._plan_returns(agent, state, obs, solved.plan))
                        yield {
                            "start": name,
                            "sampler": sampler,
                            "keep_nominal": keep_nominal,
                            "num_samples": count,
                            "value_bias": float(value.mean()),
                            "value_rms": float(np.sqrt((value**2).mean())),
                            "plan_rms": float(np.sqrt((plan**2).mean())),
                            "regret": float((best - reached).mean()),
                        }

    def _reference(self, agent: Agent, state: AgentState, obs: jax.Array, start: jax.Array) -> PlanResult:
        config = PlannerConfig(num_samples=REFERENCE_SAMPLES, sampler="iid", keep_nominal=False)
        solve = self._solver(agent, state, obs, start, config)
        return jax.tree.map(lambda leaf: leaf[0], solve(jax.random.key(3)[None]))

    def _solver(self, agent: Agent, state: AgentState, obs: jax.Array, start: jax.Array, config: PlannerConfig):
        mppi = agent.planner.mppi(dataclasses.replace(config, horizon=agent.config.target_planner.horizon))

        def solve(key: jax.Array) -> PlanResult:
            returns_fn = agent.planner.returns_fn(config, state.models, state.models.critic, jax.random.key(4), obs)
            return mppi.solve(key, start, returns_fn)

        return jit(lambda keys: jax.lax.map(solve, keys))

    def _plan_returns(self, agent: Agent, state: AgentState, obs: jax.Array, plans: jax.Array) -> jax.Array:
        """What the models say of plans [R, B, T, A]: returns [R, B]."""
        models = state.models
        return agent.planner.returns_fn(PlannerConfig(), models, models.critic, jax.random.key(4), obs)(plans)


if __name__ == "__main__":
    tyro.cli(Sampling).run()
