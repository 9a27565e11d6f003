"""Planning with a known model: equations in, plans and real-time control out, and nothing is learned."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt
from numpy.typing import ArrayLike

from soft_mpcritic.compilation import compiler_options, jit
from soft_mpcritic.config import ConfigError, ObjectiveConfig, PlannerConfig, check
from soft_mpcritic.envs.tasks import never
from soft_mpcritic.exported import ControlLoop, Plants, compiled_solve
from soft_mpcritic.parts import NOTHING_OWN, Parts, check_traceable
from soft_mpcritic.planner import make_mppi, make_scenarios
from soft_mpcritic.planning import fit_horizon, from_box
from soft_mpcritic.types import PlanResult, Reward, StepOutcome, TerminalValue, Termination

LONG_SIGHT = PlannerConfig(horizon=20, num_samples=256, iterations=4, widths=2, scenarios="all_members")
PLAIN = ObjectiveConfig()


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A system written down in JAX, as functions of rows of observations and actions in its own units.

    With `parameters`, a pytree with a leading axis N, it is an ensemble of N models: `dynamics` then takes those of one
    member as its third argument. That is domain randomisation; scenarios and risk measures are those of learned
    ensembles. Raises `ConfigError`, naming function and shape, for functions that do not fit.
    """

    dynamics: Callable[..., Float[Array, "R S"]]  # (obs [R S], action [R A]) -> next_obs [R S]
    reward: Reward
    obs_size: int  # S
    action_low: tuple[float, ...]  # A numbers
    action_high: tuple[float, ...]
    termination: Termination = never
    terminal_value: TerminalValue | None = None  # None: nothing counts after the horizon
    parameters: PyTree = None

    def __post_init__(self) -> None:
        low, high = self.action_low, self.action_high
        check(self.obs_size >= 1, "obs_size", "be >= 1", self.obs_size, "count what dynamics takes")
        fits = len(low) == len(high) >= 1 and all(-1e9 < a < b < 1e9 for a, b in zip(low, high, strict=True))
        check(fits, "action_low and action_high", "be finite and ordered", f"{low} and {high}", "try (-1,) and (1,)")
        actions = len(low)
        members = [len(leaf) if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(self.parameters)]
        alike = not members or members == [members[0] or -1] * len(members)
        check(alike, "parameters", "have one leading axis N >= 1", members, "stack them with jnp.stack")
        check_traceable("dynamics", self._of_first(), (self.obs_size, actions), self.obs_size)
        for role, judge in (("reward", self.reward), ("termination", self.termination)):
            check_traceable(role, judge, (self.obs_size, actions, self.obs_size))
        if self.terminal_value is not None:
            check_traceable("terminal value", self.terminal_value, (self.obs_size, actions))

    @property
    def members(self) -> PyTree:
        """What scenarios deal out: the parameters, or of a single model a mark that stands for it."""
        return jnp.zeros(1) if self.parameters is None else self.parameters

    def step(self, member: Any, obs: Float[Array, "R S"], action: Float[Array, "R A"]) -> StepOutcome:
        """What one member makes of a step; the action is in the box [-1, 1], and clipped to it."""
        action = self.to_plant(action)
        next_obs = self._next(member, obs, action)
        ends = self.termination(obs, action, next_obs)
        return StepOutcome(next_obs, self.reward(obs, action, next_obs), 1 - ends)

    def to_plant(self, action: Float[Array, "R A"]) -> Float[Array, "R A"]:
        return from_box(jnp.clip(action, -1, 1), self.action_low, self.action_high)

    def _of_first(self) -> Callable[..., Any]:
        """The dynamics of the first member, under their own name."""
        if self.parameters is None:
            return self.dynamics
        first = jax.tree.map(lambda leaf: leaf[0], self.parameters)
        return wraps(self.dynamics)(lambda obs, action: self.dynamics(obs, action, first))

    def _next(self, member: Any, obs: Float[Array, "R S"], action: Float[Array, "R A"]) -> Float[Array, "R S"]:
        return self.dynamics(obs, action) if self.parameters is None else self.dynamics(obs, action, member)


@dataclass(frozen=True)
class ModelPlanner:
    """Soft MPC with a known model: a pure function of key, observations and where to start."""

    model: KnownModel
    planner: PlannerConfig = LONG_SIGHT
    objective: ObjectiveConfig = PLAIN
    parts: Parts = NOTHING_OWN  # a prior, a sampler, a risk measure of one's own

    def solve(self, key: PRNGKeyArray, obs: Float[Array, "B S"], start: Float[Array, "B T A"]) -> PlanResult:
        """The plans at `obs`, from `start`; both plans are in the box [-1, 1]."""
        sample_key, scenario_key = jax.random.split(key)
        scenarios, model = make_scenarios(self.objective, self.planner, self.parts), self.model

        def value_after(obs: Float[Array, "R S"], action: Float[Array, "R A"]) -> Float[Array, " R"]:
            assert model.terminal_value is not None
            return model.terminal_value(obs, model.to_plant(action))

        end = None if model.terminal_value is None or not self.objective.terminal_value else value_after

        def returns_fn(actions: Float[Array, "K B T A"]) -> Float[Array, "K B"]:
            return scenarios.returns(scenario_key, model.step, model.members, end, obs, actions)

        start = start if self.planner.warm_start else jnp.zeros_like(start)
        return make_mppi(self.objective, self.planner, self.parts).solve(sample_key, start, returns_fn)

    def controller(self, plants: int = 1, deadline: float | None = None, seed: int = 0) -> ControlLoop:
        """A warm-started controller in real time, compiled ahead; `deadline` in seconds. Raises `ConfigError`."""
        check(plants >= 1, "plants", "be >= 1", plants, "use 1 for a single plant")
        sizes = Plants(plants, self.model.obs_size, self.model.action_low, self.model.action_high, self.slots)

        def program(
            _: list[Array],
            seed: UInt[Array, ""],
            number: UInt[Array, ""],
            obs: Float[Array, "E S"],
            start: Float[Array, "E T A"],
        ) -> tuple[Float[Array, "E T A"], Float[Array, " E"]]:
            result = self.solve(jax.random.fold_in(jax.random.key(seed), number), obs, start)
            return result.plan, result.value

        return ControlLoop(compiled_solve(program, [], sizes, seed, compiler_options()), sizes, deadline)

    @property
    def slots(self) -> int:
        return self.planner.horizon + 1


def plan(
    model: KnownModel,
    obs: ArrayLike,
    planner: PlannerConfig = LONG_SIGHT,
    objective: ObjectiveConfig = PLAIN,
    *,
    parts: Parts = NOTHING_OWN,
    start: ArrayLike | None = None,
    seed: int = 0,
) -> PlanResult:
    """The plan [B, T, A] at observations [B, S], or [S] of a single problem; T = horizon + 1.

    `plan` and `sample` of the result, and `start`, are in the plant's units; without a start, it is the middle of the
    box. The last action of a plan is the one that a terminal value is asked about, and of no use without one. Compiled
    once for a model and settings. Raises `ConfigError` for observations or starts of other shapes, or not finite.
    """
    solver, low, high = ModelPlanner(model, planner, objective, parts), model.action_low, model.action_high
    rows = jnp.atleast_2d(jnp.asarray(obs, jnp.float32))
    _check_rows("obs", rows, (rows.shape[0], model.obs_size))
    shape = (rows.shape[0], solver.slots, len(low))
    box_start = jnp.zeros(shape)
    if start is not None:
        given = jnp.asarray(start, jnp.float32)
        given = given.reshape(-1, *given.shape[-2:])
        box_start = fit_horizon(_to_box(given, low, high), solver.slots)
        _check_rows("start", box_start, shape)
    result = _compiled(solver)(jax.random.key(seed), rows, box_start)
    in_units = {name: _from_box(getattr(result, name), low, high) for name in ("plan", "sample")}
    return result._replace(**in_units)


@lru_cache
def _compiled(solver: ModelPlanner) -> Any:
    return jit(solver.solve)


def _check_rows(name: str, rows: Array, shape: tuple[int, ...]) -> None:
    check(rows.shape == shape, name, f"have shape {shape}", rows.shape, "give a row to every problem")
    if not bool(jnp.isfinite(rows).all()):
        raise ConfigError(f"{name} must be finite, got {rows}: mend what measures it.")


def _from_box(plan: Array, low: tuple[float, ...], high: tuple[float, ...]) -> Array:
    return from_box(plan.reshape(-1, len(low)), low, high).reshape(plan.shape)


def _to_box(plan: Array, low: tuple[float, ...], high: tuple[float, ...]) -> Array:
    lower, upper = (jnp.array(bound)[None, None] for bound in (low, high))
    return 2 * (plan - lower) / (upper - lower) - 1
