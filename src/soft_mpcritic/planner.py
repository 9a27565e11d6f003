"""Planning with what was learned: the one solve that acts in the world and values states for the critic."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from soft_mpcritic.config import Config, ObjectiveConfig, PlannerConfig
from soft_mpcritic.critic import SoftQ
from soft_mpcritic.dynamics import CHANGE_FLOOR, OBS_FLOOR, EnsembleDynamics, Normalizer
from soft_mpcritic.envs import Task
from soft_mpcritic.goal import LearnedGoal
from soft_mpcritic.math import normal_points
from soft_mpcritic.networks import MLP
from soft_mpcritic.parts import NOTHING_OWN, Parts
from soft_mpcritic.planning import (
    MPPI,
    SAMPLERS,
    CVaRReturn,
    EntropicReturn,
    GaussianPrior,
    Scenarios,
    UniformPrior,
    fit_horizon,
    from_box,
    mean_return,
    shift,
    worst_return,
)
from soft_mpcritic.types import PlanResult, ReturnsFn, RiskMeasure, StepOutcome, Trace, Transition

CONTROL_CRITICS = {"newest": "critic", "slow": "target_critic", "mean": "mean_critic"}  # fields of Models
FEARED = 16  # errors over which a cautious termination is averaged

Tree = TypeVar("Tree")


class Models(eqx.Module):
    """What was learned: all that planning needs."""

    dynamics: EnsembleDynamics
    critic: SoftQ
    target_critic: SoftQ
    mean_critic: SoftQ | None  # over the last updates; None where nobody asks it
    obs_scale: Normalizer
    change_scale: Normalizer
    goal: LearnedGoal | None  # None: the task's own is known


class Decision(NamedTuple):
    """What deterministic control does at B observations."""

    env_action: Float[Array, "B A"]  # in the task's units
    start: Float[Array, "B T A"]  # of the next solve
    action: Float[Array, "B A"]  # the same action in the library's box
    value: Float[Array, " B"]  # soft value of the solve, reward units


class Imagined(NamedTuple):
    """Steps that only the models know."""

    transition: Transition  # `terminated` is a probability
    alive: Float[Array, " B"]  # probability that the episode has come so far
    start: Float[Array, "B T A"]  # of a solve at the next observation: what is left of the plan


@dataclass(frozen=True)
class Planner:
    """Soft MPC for one task and one configuration: a pure function of models, observation and where to start."""

    task: Task
    config: Config
    parts: Parts = NOTHING_OWN

    def init_models(self, key: PRNGKeyArray) -> Models:
        """Fresh networks and statistics that have seen nothing."""
        config, size = self.config, self.task.state_size
        floors = (OBS_FLOOR,) * size + (CHANGE_FLOOR,) * (self.task.obs_size - size)
        dynamics_key, critic_key = jax.random.split(key)
        inputs = self._feature_size + self.task.action_size
        asked = self._valued_size + self.task.action_size
        critic = SoftQ.init(critic_key, asked, config.objective.discount, config.critic)
        return Models(
            dynamics=EnsembleDynamics.init(dynamics_key, inputs, size, config.dynamics),
            critic=critic,
            target_critic=jax.tree.map(jnp.copy, critic),
            mean_critic=jax.tree.map(jnp.copy, critic) if config.critic.control == "mean" else None,
            obs_scale=Normalizer.init(self.task.obs_size, floors),
            change_scale=Normalizer.init(size, CHANGE_FLOOR),
            goal=self._init_goal(jax.random.fold_in(key, 2)),  # 0 and 1 are what `split` makes of a key
        )

    def _init_goal(self, key: PRNGKeyArray) -> LearnedGoal | None:
        if not self._learned_goal:
            return None
        return LearnedGoal.init(key, self._feature_size, self.task.action_size, self.config.dynamics)

    def plan(
        self,
        models: Models,
        key: PRNGKeyArray,
        obs: Float[Array, "B S"],
        start: Float[Array, "B T A"],
        as_control: Bool[Array, ""] | bool = False,
    ) -> PlanResult:
        """The online solve at `obs` from `start` that training acts by: to explore, or as control does if `as_control`.

        To explore is to ask the critic as it is now, and to trace plans at least as far as `training.explore_trace`.
        """
        trace, further = self.config.planner.trace, self.config.training.explore_trace
        critic = _choose(as_control, self.control_critic(models), models.critic)
        trace = _choose(as_control, trace, further) if further > trace else trace
        return self._solve(self.config.planner, models, critic, key, obs, start, trace)

    def plan_as_targets(
        self, models: Models, key: PRNGKeyArray, obs: Float[Array, "B S"], start: Float[Array, "B T A"]
    ) -> PlanResult:
        """What the target planner would do at `obs` with the critic as it is now, as far from a plan as `plan` goes."""
        config = dataclasses.replace(self.config.target_planner, width=self.config.planner.width)
        return self._solve(config, models, models.critic, key, obs, fit_horizon(start, config.horizon + 1))

    def control(
        self, models: Models, key: PRNGKeyArray, obs: Float[Array, "B S"], start: Float[Array, "B T A"]
    ) -> Decision:
        """Deterministic control: the first action of the plan."""
        result = self.plan_to_control(models, key, obs, start)
        action = result.plan[:, 0]
        return Decision(self.to_env(action), shift(result.plan), action, result.value)

    def plan_to_control(
        self, models: Models, key: PRNGKeyArray, obs: Float[Array, "B S"], start: Float[Array, "B T A"]
    ) -> PlanResult:
        """The online solve at `obs` from `start`, with the critic that control asks."""
        return self._solve(self.config.planner, models, self.control_critic(models), key, obs, start)

    def control_critic(self, models: Models) -> SoftQ:
        """The critic as it is now, or a copy in which the errors of the last updates average out."""
        asked = getattr(models, CONTROL_CRITICS[self.config.critic.control])
        assert asked is not None, "steered() lets nobody ask a mean that was not kept"
        return asked

    def value(
        self, models: Models, key: PRNGKeyArray, obs: Float[Array, "B S"], start: Float[Array, "B T A"]
    ) -> PlanResult:
        """The target solve at `obs` from `start`, with the slow copy of the critic."""
        return self._solve(self.config.target_planner, models, models.target_critic, key, obs, start)

    def imagine(
        self, models: Models, key: PRNGKeyArray, obs: Float[Array, "B S"], start: Float[Array, "B T A"]
    ) -> Imagined:
        """A step that the models make of one sample of a target solve, a drawn number of steps ahead: 1 to H."""
        mppi, horizon = self.mppi(self.config.target_planner), start.shape[1] - 1
        sample_key, member_key, depth_key = jax.random.split(key, 3)
        actions = mppi.prior.propose(mppi.sampler(sample_key, (1, *start.shape)), start, mppi.width)[0]
        drawn = jax.random.randint(member_key, (start.shape[1],), 0, self.config.dynamics.members)
        depth = jax.random.randint(depth_key, (), min(1, horizon), horizon + 1)

        def step(time: Int[Array, ""], obs: Float[Array, "B S"]) -> StepOutcome:
            member = jax.tree.map(lambda leaf: leaf[drawn[time]], models.dynamics.members)
            return self.model_step(models, member, obs, actions[:, time])

        def advance(time: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            obs, alive, plan = carry
            outcome = step(time, obs)
            return outcome.next_obs, alive * outcome.continuation, shift(plan)

        obs, alive, plan = jax.lax.fori_loop(0, depth, advance, (obs, jnp.ones(obs.shape[0]), start))
        outcome = step(depth, obs)
        action = jnp.clip(actions[:, depth], -1, 1)
        transition = Transition(obs, action, outcome.reward, outcome.next_obs, 1 - outcome.continuation)
        return Imagined(transition, alive, shift(plan))

    def _solve(
        self,
        config: PlannerConfig,
        models: Models,
        critic: SoftQ,
        key: PRNGKeyArray,
        obs: Float[Array, "B S"],
        start: Float[Array, "B T A"],
        trace: Trace | None = None,
    ) -> PlanResult:
        sample_key, scenario_key = jax.random.split(key)
        returns_fn = self.returns_fn(config, models, critic, scenario_key, obs, trace)
        start = start if config.warm_start else jnp.zeros_like(start)
        return self.mppi(config).solve(sample_key, start, returns_fn)

    def returns_fn(
        self,
        config: PlannerConfig,
        models: Models,
        critic: SoftQ,
        key: PRNGKeyArray,
        obs: Float[Array, "B S"],
        trace: Trace | None = None,
    ) -> ReturnsFn:
        """What action sequences from `obs` are worth to the models and `critic`; `key` draws the members.

        A `trace` takes the place of the planner's own.
        """
        scenarios = make_scenarios(self.config.objective, config, self.parts)
        if trace is not None:
            scenarios = dataclasses.replace(scenarios, trace=trace)

        def terminal_value(obs: Float[Array, "R S"], action: Float[Array, "R A"]) -> Float[Array, " R"]:
            return critic.least(self.valued(models, obs), jnp.clip(action, -1, 1))

        def step(member: MLP, obs: Float[Array, "R S"], action: Float[Array, "R A"]) -> StepOutcome:
            return self.model_step(models, member, obs, action)

        value_after = terminal_value if self.config.objective.terminal_value else None

        def returns(actions: Float[Array, "K B T A"]) -> Float[Array, "K B"]:
            return scenarios.returns(key, step, models.dynamics.members, value_after, obs, actions)

        return returns

    def model_step(
        self, models: Models, member: MLP, obs: Float[Array, "R S"], action: Float[Array, "R A"]
    ) -> StepOutcome:
        """What one member makes of a step, with reward and termination of `judge`; actions are clipped here."""
        action = jnp.clip(action, -1, 1)
        inputs = jnp.concatenate([self.features(models, obs), action], axis=-1)
        next_obs = self._observed(obs, self.expected(obs, action) + models.change_scale.denormalize(member(inputs)))
        reward, termination = self.judge(models, obs, action, next_obs)
        continuation = 1 - termination if self.config.objective.terminations else jnp.ones_like(reward)
        return StepOutcome(next_obs, reward, continuation)

    def judge(
        self, models: Models, obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
    ) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
        """Reward and probability of termination of a step, as the task knows them or as they were learned."""
        known, step = self.task.spec, (self.state(obs), self.to_env(action), self.state(next_obs))
        if models.goal is None:
            return known.reward(*step), self._known_end(models, *step)
        reward, termination = models.goal(self.features(models, obs), action, self.features(models, next_obs))
        if "reward" not in self._learned_goal:
            reward = known.reward(*step)
        if "termination" not in self._learned_goal:
            termination = self._known_end(models, *step)
        return reward, termination

    def _known_end(
        self, models: Models, obs: Float[Array, "R S"], env_action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
    ) -> Float[Array, " R"]:
        """The task's own termination; with caution, its mean over states to which the models' errors could lead.

        A plan otherwise goes right up to where the episode ends, and an error of a thousandth decides.
        """
        ends, caution = self.task.spec.termination, self.config.objective.caution
        if caution == 0:
            return ends(obs, env_action, next_obs)
        errors = caution * models.change_scale.deviation[None] * normal_points(FEARED, self.task.state_size)
        return jnp.mean(jax.vmap(lambda error: ends(obs, env_action, next_obs + error[None]))(errors), axis=0)

    def expected(self, obs: Float[Array, "R S"], action: Float[Array, "R A"]) -> Float[Array, "R X"]:
        """The `state` where a step leads as far as is known without learning; nothing known means: nowhere else.

        What the ensemble learns is the rest. The action is in the library's box.
        """
        nominal, state = self.task.spec.nominal, self.state(obs)
        return state if nominal is None else nominal(state, self.to_env(action))

    def state(self, obs: Float[Array, "R S"]) -> Float[Array, "R X"]:
        """What of an observation a model must predict, and rewards ask for: all but how it changed."""
        return obs[:, : self.task.state_size]

    def _observed(self, obs: Float[Array, "R S"], state: Float[Array, "R X"]) -> Float[Array, "R S"]:
        """What is observed at `state`, which `obs` led to."""
        return jnp.concatenate([state, state - self.state(obs)], axis=-1) if self.task.observe_change else state

    def features(self, models: Models, obs: Float[Array, "R S"]) -> Float[Array, "R F"]:
        """What the networks see of an observation: scaled, and without the task's positions unless asked for.

        Angles without bounds can be seen as points on the circle: nothing learned at one turn is lost at the next.
        """
        scaled, turned = models.obs_scale.normalize(obs), obs[:, jnp.array(self._angles, jnp.int32)]
        places, changes = (scaled[:, jnp.array(columns, jnp.int32)] for columns in (self._visible, self._changes))
        return jnp.concatenate([places, jnp.cos(turned), jnp.sin(turned), changes], axis=-1)

    def valued(self, models: Models, obs: Float[Array, "R S"]) -> Float[Array, "R F"]:
        """What the critic sees of an observation: all `features`, or all but how it changed.

        Imagined changes are differences of what models predict, and as wrong as a whole step of theirs.
        """
        return self.features(models, obs)[:, : self._valued_size]

    def to_env(self, action: Float[Array, "R A"]) -> Float[Array, "R A"]:
        """From the library's box [-1, 1] to the task's own."""
        return from_box(action, self.task.action_low, self.task.action_high)

    def mppi(self, config: PlannerConfig) -> MPPI:
        """The planner that `config` asks for, under this configuration's objective."""
        return make_mppi(self.config.objective, config, self.parts)

    @property
    def _learned_goal(self) -> tuple[str, ...]:
        """What of the goal is learned."""
        return self.task.unknowns if self.config.objective.goal == "known" else ("reward", "termination")

    @cached_property
    def _visible(self) -> tuple[int, ...]:
        """The components that the networks see as they are, but for their scale."""
        return tuple(i for i in range(self.task.state_size) if i not in (*self._hidden, *self._angles))

    @property
    def _hidden(self) -> tuple[int, ...]:
        """The components that only rewards ask for."""
        return () if self.config.training.observe_position else self.task.spec.positions

    @property
    def _changes(self) -> tuple[int, ...]:
        """The components that say how the others, but for the hidden ones, have changed."""
        size = self.task.state_size
        return tuple(i for i in range(size, self.task.obs_size) if i - size not in self._hidden)

    @property
    def _angles(self) -> tuple[int, ...]:
        """The components that they see on the circle."""
        return self.task.spec.angles if self.config.training.wrap_angles else ()

    @property
    def _valued_size(self) -> int:
        return self._feature_size if self.config.critic.observe_change else self._feature_size - len(self._changes)

    @property
    def _feature_size(self) -> int:
        return len(self._visible) + 2 * len(self._angles) + len(self._changes)


def _choose(condition: Bool[Array, ""] | bool, chosen: Tree, otherwise: Tree) -> Tree:
    """One of two pytrees; with a plain `bool` the other one costs nothing in a compiled function."""
    if isinstance(condition, bool):
        return chosen if condition else otherwise
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)


def make_scenarios(objective: ObjectiveConfig, config: PlannerConfig, parts: Parts = NOTHING_OWN) -> Scenarios:
    """How a planner's sampled sequences meet the members, and how an objective joins what these say."""
    risks: dict[str, RiskMeasure] = {
        "mean": mean_return,
        "entropic": EntropicReturn(objective.risk_parameter),
        "cvar": CVaRReturn(objective.risk_parameter),
        "worst": worst_return,
    }
    risk = parts.risk or risks[objective.risk]
    return Scenarios(config.scenarios, objective.discount, risk, config.trace, objective.end_value)


def make_mppi(objective: ObjectiveConfig, config: PlannerConfig, parts: Parts = NOTHING_OWN) -> MPPI:
    """MPPI as `config` has it, under an objective."""
    prior = {"gaussian": GaussianPrior, "uniform": UniformPrior}[objective.prior]
    return MPPI(
        prior=parts.prior or prior(objective.variance),
        sampler=parts.sampler or SAMPLERS[config.sampler],
        num_samples=config.num_samples,
        temperature=objective.temperature,
        ratio_discount=objective.discount if objective.ratio_weights == "discounted" else 1.0,
        iterations=config.iterations,
        keep_nominal=config.keep_nominal,
        width=config.width,
        widths=config.widths,
        guided=config.guided,
        step_size=config.step_size,
    )
