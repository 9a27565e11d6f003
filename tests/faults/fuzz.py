"""Configurations drawn at random: each is refused in one line, or trains with finite numbers.

python -m tests.faults.fuzz --examples 10000
"""

import argparse
import math
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.config import Config, ConfigError, override, to_dict
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.memory import Footprint, available_memory
from tests.systems import SMALL, System, learn, never

STEPS = 50
TINY = {**SMALL, "dynamics.width": 8, "critic.width": 8, "training.capacity": 64}
BASE = override(Config(), TINY)
SYSTEM = System(
    step=lambda obs, action: 0.9 * obs + 0.1 * jnp.concatenate([action, -action], axis=-1),
    spec=TaskSpec(lambda obs, action, next_obs: -jnp.sum(next_obs**2, axis=-1), never),
    obs_size=2,
)
ODD = [-1, 0, 10**18, -(10**18), math.nan, math.inf, -math.inf, 1e-300, 1e300, "x", None, True, 2.5]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]  # compiling takes time
NONSENSE = st.sampled_from(ODD)
WITHIN: dict[str, st.SearchStrategy[Any]] = {  # what a tiny run can afford; the rest is a matter of patience
    "objective.variance": st.floats(1e-6, 1e3),
    "objective.temperature": st.floats(1e-6, 1e6),
    "objective.discount": st.floats(0, 1),
    "objective.risk_parameter": st.floats(1e-3, 1e3),
    "planner.horizon": st.integers(0, 12),
    "target_planner.horizon": st.integers(0, 12),
    "planner.num_samples": st.integers(1, 33),
    "target_planner.num_samples": st.integers(1, 9),
    "planner.iterations": st.integers(1, 3),
    "planner.widths": st.integers(1, 16),
    "target_planner.widths": st.integers(1, 16),
    "dynamics.members": st.integers(1, 5),
    "dynamics.depth": st.integers(1, 4),
    "dynamics.learning_rate": st.floats(1e-8, 1.0),
    "dynamics.batch_size": st.integers(1, 33),
    "critic.learning_rate": st.floats(1e-8, 1.0),
    "critic.batch_size": st.integers(1, 33),
    "critic.bins": st.integers(2, 51),
    "critic.scale": st.floats(1e-3, 1e3),
    "critic.target_step": st.floats(1e-6, 1.0),
    "critic.target_every": st.integers(1, 9),
    "training.num_envs": st.integers(1, 5),
    "training.seed_steps": st.integers(0, 60),
    "training.target_steps": st.floats(0, 1),
}
KNOWN = {f"{section}.{name}": value for section, values in to_dict(BASE).items() for name, value in values.items()}
CHOICES = {
    "objective.prior": ["gaussian", "uniform"],
    "objective.ratio_weights": ["discounted", "unit"],
    "planner.scenarios": ["per_step", "per_sample", "all_members"],
    "objective.risk": ["mean", "entropic", "cvar", "worst"],
    "objective.goal": ["known", "learned"],
    "planner.sampler": ["iid", "antithetic", "sobol"],
    "target_planner.sampler": ["iid", "antithetic", "sobol"],
    "critic.loss": ["mse", "hl_gauss"],
    "critic.unit": ["reward", "return"],
    "critic.heads": [1, 2],
}


def value_of(name: str, sound: bool) -> st.SearchStrategy[Any]:
    if not sound:
        return NONSENSE
    if name in WITHIN:
        return WITHIN[name]
    if name in CHOICES:
        return st.sampled_from(CHOICES[name])
    return st.booleans() if isinstance(KNOWN[name], bool) else st.just(KNOWN[name])


@st.composite
def assignments(draw: st.DrawFn, nonsense: bool) -> dict[str, Any]:
    """Some settings with values that may work; and, with `nonsense`, one or two that hardly can."""
    names = draw(st.lists(st.sampled_from(sorted(KNOWN)), min_size=1, max_size=6, unique=True))
    bad = draw(st.integers(1, 2)) if nonsense else 0
    return {name: draw(value_of(name, index >= bad)) for index, name in enumerate(names)}


def accepted(changes: dict[str, Any]) -> Config | None:
    """The configuration, or None where it is refused as it should be: a line with field, value and remedy."""
    try:
        config = override(BASE, changes)
        Footprint(SYSTEM.task, config).check(1, *available_memory())
        return config
    except ConfigError as error:
        text = str(error)
        named = [name.rpartition(".")[2] for name in changes] + ["GiB"]
        assert "\n" not in text and len(text) < 300 and text.endswith("."), text
        assert any(name in text for name in named), text
        assert ", got " in text and ":" in text, text
        return None


def trained(config: Config) -> AgentState:
    """The agent after `STEPS` steps of a tiny system."""
    return learn(SYSTEM, config, jax.random.key(0), STEPS)


def check_finite(state: AgentState) -> None:
    for name, part in (("models", state.models), ("replay", state.replay), ("pending", state.pending)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            assert np.isfinite(np.asarray(leaf)).all(), name + jax.tree_util.keystr(path)
    assert np.all(np.abs(np.asarray(state.pending.action)) <= 1)
    assert np.all(np.abs(np.asarray(state.replay.plans[:, :-1])) <= 1)


def campaign(examples: int, number: int, seconds: float) -> Counter[str]:
    """Draws `examples` configurations, or as many as `seconds` allow; half of them with nonsense."""
    told, began = Counter[str](), time.monotonic()

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=SLOW)
    @given(st.booleans().flatmap(assignments))
    def draw(changes: dict[str, Any]) -> None:
        if time.monotonic() - began > seconds:
            return
        config = accepted(changes)
        told["refused" if config is None else "trained"] += 1
        if config is not None:
            check_finite(trained(config))
            jax.clear_caches()

    draw()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf)
    asked = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    print(dict(campaign(asked.examples, asked.seed, asked.seconds)), "none failed")


if __name__ == "__main__":
    main()
