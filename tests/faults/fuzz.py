"""Configurations drawn at random: each is refused in one line, or makes an agent that trains with finite numbers.

python -m tests.faults.fuzz --examples 10000 --trained 500 --log results/reliability/fuzz.csv
"""

import argparse
import csv
import faulthandler
import math
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from soft_mpcritic.agent import AgentState
from soft_mpcritic.config import Config, ConfigError, override, to_dict
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.memory import Footprint, available_memory
from tests.systems import SMALL, System, learn, never

STEPS = 50
LONGEST = 900.0  # s that one configuration may take, on a machine with other work; more is a hang
SHOWN = 100  # configurations between two lines of a long campaign
OUTCOMES = ("drawn", "refused", "evaluated", "trained")
TINY = {**SMALL, "dynamics.width": 8, "critic.width": 8, "training.capacity": 64}
BASE = override(Config(), TINY)
SYSTEM = System(
    step=lambda obs, action: 0.9 * obs + 0.1 * jnp.concatenate([action, -action], axis=-1),
    spec=TaskSpec(lambda obs, action, next_obs: -jnp.sum(next_obs**2, axis=-1), never),
    obs_size=2,
)
ODD = [-1, 0, 10**18, -(10**18), math.nan, math.inf, -math.inf, 1e-300, 1e300, "x", None, True, 2.5]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]  # compiling takes time
GENERATED = [Phase.generate]  # to shrink a failure would compile it many times over
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


def evaluated(config: Config) -> None:
    """Initialises, steps and learns with shapes and types alone: what compiling begins with."""
    whole = partial(learn.__wrapped__, SYSTEM, config, steps=STEPS)
    state = jax.eval_shape(whole, jax.random.key(0))
    assert state.pending.action.shape == (config.training.num_envs, 1)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.models)} == {"float32"}


def trained(config: Config) -> AgentState:
    """The agent after `STEPS` steps of a tiny system."""
    return learn(SYSTEM, config, jax.random.key(0), STEPS)


def check_finite(state: AgentState) -> None:
    for name, part in (("models", state.models), ("replay", state.replay), ("pending", state.pending)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            assert np.isfinite(np.asarray(leaf)).all(), name + jax.tree_util.keystr(path)
    assert np.all(np.abs(np.asarray(state.pending.action)) <= 1)
    assert np.all(np.abs(np.asarray(state.replay.plans[:, :-1])) <= 1)


class Campaign:
    """Draws configurations, half of them with nonsense; what came of them, by setting."""

    def __init__(self, log: Path | None = None) -> None:
        self.told = Counter[str]()
        self._by_setting = {name: Counter[str]() for name in sorted(KNOWN)}
        self._log = log

    def go(self, examples: int, number: int, trained_at_most: int, seconds: float = math.inf) -> None:
        """Every configuration that is accepted is evaluated abstractly; the first ones also train, for `seconds`."""
        began = time.monotonic()

        @seed(number)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=SLOW, phases=GENERATED)
        @given(st.booleans().flatmap(assignments))
        def draw(changes: dict[str, Any]) -> None:
            time_is_left = time.monotonic() - began < seconds
            self._count(changes, self._try(changes, time_is_left and self.told["trained"] < trained_at_most))

        draw()
        self._write()

    def _try(self, changes: dict[str, Any], train: bool) -> list[str]:
        """What came of one; a case that takes longer than `LONGEST` ends the process with a traceback."""
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            config = accepted(changes)
            if config is None:
                return ["refused"]
            evaluated(config)
            if not train:
                return ["evaluated"]
            check_finite(trained(config))
            return ["evaluated", "trained"]
        except BaseException:
            print(f"failed with {changes}", flush=True)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            jax.clear_caches()

    def _count(self, changes: dict[str, Any], outcomes: list[str]) -> None:
        self.told.update(["drawn", *outcomes])
        for name in changes:
            self._by_setting[name].update(["drawn", *outcomes])
        if self.told["drawn"] % SHOWN == 0:
            print(dict(self.told), "none failed", flush=True)
            self._write()

    def _write(self) -> None:
        if self._log is None:
            return
        with self._log.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["setting", *OUTCOMES])
            for name, counts in [("any", self.told), *self._by_setting.items()]:
                table.writerow([name, *(counts[outcome] for outcome in OUTCOMES)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--trained", type=int, default=500, help="how many of those accepted train for 50 steps")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which none trains any more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a table of what came of the configurations, by setting")
    asked = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    campaign = Campaign(asked.log)
    campaign.go(asked.examples, asked.seed, asked.trained, asked.seconds)
    print(dict(campaign.told), "none failed")


if __name__ == "__main__":
    main()
