"""Configurations drawn at random: each is refused in one line, or makes an agent that trains with finite numbers.

python -m tests.faults.fuzz --examples 10000 --log results/reliability/fuzz.csv
"""

import argparse
import csv
import faulthandler
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jaxtyping import Array

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.config import Config, ConfigError, override, to_dict
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.memory import Footprint, available_memory
from tests.systems import SMALL, System, learn, learning, never

STEPS = 50
LONGEST = 3600.0  # s that one configuration may take, on a machine with other work; more is a hang
SHOWN = 20  # configurations between two lines of a long campaign
OUTCOMES = ("drawn", "refused", "built", "evaluated", "compiled", "trained")
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
    "objective.caution": st.floats(0, 1e3),
    "objective.risk_parameter": st.floats(1e-3, 1e3),
    "planner.horizon": st.integers(0, 12),
    "target_planner.horizon": st.integers(0, 12),
    "planner.num_samples": st.integers(1, 33),
    "target_planner.num_samples": st.integers(1, 9),
    "planner.iterations": st.integers(1, 3),
    "planner.step_size": st.floats(1e-6, 1.0),
    "target_planner.step_size": st.floats(1e-6, 1.0),
    "planner.widths": st.integers(1, 16),
    "target_planner.widths": st.integers(1, 16),
    "dynamics.members": st.integers(1, 5),
    "dynamics.depth": st.integers(1, 4),
    "dynamics.learning_rate": st.floats(1e-8, 1.0),
    "dynamics.weight_decay": st.floats(0, 0.99),
    "dynamics.average_step": st.floats(1e-6, 1.0),
    "dynamics.batch_size": st.integers(1, 33),
    "critic.learning_rate": st.floats(1e-8, 1.0),
    "critic.batch_size": st.integers(1, 33),
    "critic.bins": st.integers(2, 51),
    "critic.imagined": st.floats(0, 0.5),
    "critic.scale": st.floats(1e-3, 1e3),
    "critic.target_step": st.floats(1e-6, 1.0),
    "critic.target_every": st.integers(1, 9),
    "training.num_envs": st.integers(1, 5),
    "training.seed_steps": st.integers(0, 60),
    "training.target_steps": st.floats(0, 1),
    "training.explore_trace": st.floats(0, 1),
    "training.control_stretch": st.integers(0, 6),
    "training.push": st.sampled_from([0.0, 0.3]),
}
OPEN = {  # settings that a compiled loop can be handed as data, and their bounds
    "objective.temperature": (1e-6, 1e6),
    "objective.risk_parameter": (1e-3, 1.0),
    "dynamics.learning_rate": (1e-8, 1.0),
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
    "critic.control": ["newest", "slow", "mean"],
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


def built(config: Config) -> None:
    """Makes the agent and, of its first state, shapes and types."""
    shapes = jax.eval_shape(Agent(SYSTEM.task, config).init, jax.random.key(0))
    assert shapes.pending.action.shape == (config.training.num_envs, 1)


def evaluated(config: Config) -> None:
    """Initialises, steps and learns with shapes and types alone: what compiling begins with."""
    whole = partial(learning, SYSTEM, config, steps=STEPS)
    state = jax.eval_shape(whole, jax.random.key(0))
    assert state.pending.action.shape == (config.training.num_envs, 1)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.models)} == {"float32"}


def trained(config: Config) -> AgentState:
    """The agent after `STEPS` steps of a tiny system."""
    return learn(SYSTEM, config, jax.random.key(0), STEPS)


def trained_often(config: Config, often: int) -> Iterator[tuple[dict[str, float], AgentState]]:
    """`trained` as it is and with `often` draws of the `OPEN` settings and the key, all by one compilation."""
    rng = np.random.default_rng(0)

    @jax.jit
    def train(values: dict[str, Array], key: Array) -> AgentState:
        return learning(SYSTEM, _laid_over(config, values), key, STEPS)

    told = to_dict(config)
    draws = [{name: told[name.partition(".")[0]][name.partition(".")[2]] for name in OPEN}]
    for _ in range(often):
        drawn = {name: float(np.exp(rng.uniform(np.log(low), np.log(high)))) for name, (low, high) in OPEN.items()}
        override(config, drawn)  # to be told if they were not admitted
        draws.append(drawn)
    for index, drawn in enumerate(draws):
        yield drawn, train({name: jnp.float32(value) for name, value in drawn.items()}, jax.random.key(index))


def _laid_over(config: Config, values: Mapping[str, Array]) -> Config:
    """`config` with values that only the compiled loop knows, past the checks that want numbers."""
    config = copy(config)
    for name, value in values.items():
        section, _, field = name.partition(".")
        part = copy(getattr(config, section))
        object.__setattr__(part, field, value)
        object.__setattr__(config, section, part)
    return config


def check_finite(state: AgentState) -> None:
    for name, part in (("models", state.models), ("replay", state.replay), ("pending", state.pending)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            assert np.isfinite(np.asarray(leaf)).all(), name + jax.tree_util.keystr(path)
    assert np.all(np.abs(np.asarray(state.pending.action)) <= 1)
    assert np.all(np.abs(np.asarray(state.replay.plans[:, :-1])) <= 1)


@dataclass(frozen=True)
class Effort:
    """What is done with configurations that are accepted: compiling one takes 12 s of a processor, tracing one 1 s."""

    evaluate_every: int = 1  # every so many of them are evaluated abstractly
    train_every: int = 20  # and trained
    draws: int = 8  # with so many draws of the settings that need no compilation of their own


class Campaign:
    """Draws configurations, half of them with nonsense; what came of them, by setting."""

    def __init__(self, effort: Effort, log: Path | None = None) -> None:
        self.told = Counter[str]()
        self._effort, self._log = effort, log
        self._by_setting = {name: Counter[str]() for name in sorted(KNOWN)}

    def go(self, examples: int, number: int) -> None:
        @seed(number)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=SLOW, phases=GENERATED)
        @given(st.booleans().flatmap(assignments))
        def draw(changes: dict[str, Any]) -> None:
            self._count(changes, self._try(changes))

        draw()
        self._write()

    def _try(self, changes: dict[str, Any]) -> Counter[str]:
        """What came of one; a case that takes longer than `LONGEST` ends the process with a traceback."""
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            config = accepted(changes)
            if config is None:
                return Counter(drawn=1, refused=1)
            built(config)
            came, number, effort = Counter(drawn=1, built=1), self.told["built"], self._effort
            if number % effort.evaluate_every == 0:
                evaluated(config)
                came["evaluated"] += 1
            if number % effort.train_every == 0:
                for drawn, state in trained_often(config, effort.draws):
                    changes = changes | drawn
                    check_finite(state)
                came["compiled"] += 1
                came["trained"] += 1 + effort.draws
            return came
        except BaseException:
            print(f"failed with {changes}", flush=True)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            jax.clear_caches()

    def _count(self, changes: dict[str, Any], came: Counter[str]) -> None:
        for counts in (self.told, *(self._by_setting[name] for name in changes)):
            counts.update(came)
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
    parser.add_argument("--evaluate-every", type=int, default=Effort.evaluate_every)
    parser.add_argument("--train-every", type=int, default=Effort.train_every)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a table of what came of the configurations, by setting")
    asked = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    campaign = Campaign(Effort(asked.evaluate_every, asked.train_every), asked.log)
    campaign.go(asked.examples, asked.seed)
    print(dict(campaign.told), "none failed")


if __name__ == "__main__":
    main()
