"""The agent: plans with what it learned, and learns from what it plans.

Everything here is a pure function of explicit state, fit for jit, scan, and vmap over seeds. `Agent` holds only
settings; `AgentState` is the pytree of all that changes.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from soft_mpcritic.agent_state import AgentState, Health, LearningMetrics, Pending, PlanningMetrics
from soft_mpcritic.config import Config
from soft_mpcritic.envs import Task
from soft_mpcritic.learner import Learner
from soft_mpcritic.parts import NOTHING_OWN, Parts
from soft_mpcritic.planner import Planner
from soft_mpcritic.planning import fit_horizon, shift
from soft_mpcritic.replay import Replay
from soft_mpcritic.types import Experience, PlanResult, Transition

Explore = Literal["sample", "mean"]


@dataclass(frozen=True)
class Agent:
    """Soft MPCritic for one task and one configuration."""

    task: Task
    config: Config
    parts: Parts = NOTHING_OWN  # prior, sampler and risk measure in the place of the settings' own

    # ---------------------------------------------------------------- state

    def init(self, key: PRNGKeyArray) -> AgentState:
        """Fresh networks, an empty replay, and plans of zeros."""
        config, task = self.config, self.task
        models_key, key = jax.random.split(key)
        models = self.planner.init_models(models_key)
        optimizers = self.learner.init_optimizers(models)
        envs, slots = config.training.num_envs, config.planner.horizon + 1
        target_slots = config.target_planner.horizon + 1
        return AgentState(
            models=models,
            dynamics_optimizer=optimizers.dynamics,
            critic_optimizer=optimizers.critic,
            goal_optimizer=optimizers.goal,
            dynamics_newest=self.learner.init_newest(models.dynamics.members),
            goal_newest=None if models.goal is None else self.learner.init_newest(models.goal.networks),
            replay=Replay.init(config.training.capacity, task.obs_size, task.action_size, target_slots),
            pending=Pending(
                obs=jnp.zeros((envs, task.obs_size)),
                action=jnp.zeros((envs, task.action_size)),
                plan=jnp.zeros((envs, slots, task.action_size)),
                push=jnp.zeros((envs, task.action_size)) if config.training.push > 0 else None,
            ),
            key=key,
            updates=jnp.zeros((), jnp.int32),
            health=Health.init(),
        )

    # ------------------------------------------------- one environment step

    def begin(self, state: AgentState, obs: Float[Array, "E S"]) -> tuple[AgentState, Array]:
        """First actions [E, A], in the task's units, for first observations: random, as nothing was learned yet."""
        pending = dataclasses.replace(state.pending, obs=jnp.asarray(obs))
        state = self.act_randomly(dataclasses.replace(state, pending=pending))
        return state, self.planner.to_env(state.pending.action)

    def random_step(self, state: AgentState, experience: Experience) -> tuple[AgentState, Array]:
        """A step of the seed phase: stores what came of the pending actions, and acts at random."""
        state = self.act_randomly(self.observe(state, experience), self.config.training.seed_hold)
        return state, self.planner.to_env(state.pending.action)

    def planned_step(
        self, state: AgentState, experience: Experience, explore: Explore
    ) -> tuple[AgentState, Array, PlanningMetrics]:
        """Stores what came of the pending actions, and plans the next: actions [E, A] in the task's units."""
        state, result = self.act(self.observe(state, experience), explore)
        return state, self.planner.to_env(state.pending.action), PlanningMetrics.of(result)

    def step(
        self,
        state: AgentState,
        experience: Experience,
        updates: Int[Array, ""],
        explore: Explore,
        at_random: Bool[Array, ""] | None = None,
        sound: Bool[Array, ""] | None = None,
    ) -> tuple[AgentState, Array, Float[Array, " F"]]:
        """`planned_step`, then `learn`: for loops that run on the device as a whole.

        With `at_random` true it acts at random instead of planning; with `sound` false the step is not kept. Returns
        the next actions and the figures that `METRIC_NAMES` names, as one array.
        """
        state = self.observe(state, experience, sound)
        state, planned = self._act_by_phase(state, explore, at_random)
        state, learned = self.learn(state, updates)
        return state, self.planner.to_env(state.pending.action), jnp.stack([*learned, *planned])

    def _act_by_phase(
        self, state: AgentState, explore: Explore, at_random: Bool[Array, ""] | None
    ) -> tuple[AgentState, PlanningMetrics]:
        def by_plan() -> tuple[Pending, PRNGKeyArray, PlanningMetrics]:
            acted, result = self.act(state, explore)
            return acted.pending, acted.key, PlanningMetrics.of(result)

        def by_chance() -> tuple[Pending, PRNGKeyArray, PlanningMetrics]:
            acted = self.act_randomly(state, self.config.training.seed_hold)
            return acted.pending, acted.key, PlanningMetrics(*[jnp.zeros(())] * len(PlanningMetrics._fields))

        # Both branches answer with the little that they change: the replay must not go through them.
        pending, key, planned = by_plan() if at_random is None else jax.lax.cond(at_random, by_chance, by_plan)
        return dataclasses.replace(state, pending=pending, key=key), planned

    def observe(self, state: AgentState, experience: Experience, sound: Bool[Array, ""] | None = None) -> AgentState:
        """Stores E transitions with their shifted plans; plans start anew where an episode ended.

        With `sound` false nothing is stored, and all plans start anew.
        """
        pending = state.pending
        transition = Transition(
            pending.obs,
            pending.action,
            jnp.asarray(experience.reward),
            jnp.asarray(experience.next_obs),
            jnp.asarray(experience.terminated, jnp.float32),
        )
        shifted = shift(pending.plan)
        next_plans = fit_horizon(shifted, self.config.target_planner.horizon + 1)
        anew = experience.done if sound is None else experience.done | ~sound
        start_plan = jnp.where(anew[:, None, None], 0.0, shifted)
        models = state.models
        if self.config.dynamics.normalize:
            models = dataclasses.replace(
                models,
                obs_scale=models.obs_scale.update(transition.obs),
                change_scale=models.change_scale.update(self.learner.surprise(transition)),
            )
        if models.goal is not None:
            models = dataclasses.replace(models, goal=models.goal.observe(transition.reward))
        if sound is not None:
            models = jax.tree.map(
                lambda new, old: new if new is old else jnp.where(sound, new, old), models, state.models
            )
        return dataclasses.replace(
            state,
            models=models,
            replay=state.replay.add(transition, next_plans, state.updates, sound),
            pending=dataclasses.replace(pending, obs=jnp.asarray(experience.start_obs), plan=start_plan),
        )

    def act(self, state: AgentState, explore: Explore) -> tuple[AgentState, PlanResult]:
        """Chooses the pending actions by planning: the plan's mean, or a sample of the soft policy.

        On a share of steps, `training.target_steps`, the target planner chooses, from where that plan has led. A sharp
        online search hardly strays from its plan, while targets suppose that the agent does: what they imagine is then
        tried in the world. With `training.push`, actions are off by a push that lasts, so that the plant is also seen
        where no plan leads it. In every other stretch of `training.control_stretch` steps the agent does nothing but
        what deterministic control does, with the critic and the trace of control: where that leads is learned, too.
        """
        training, models, as_control = self.config.training, state.models, self._acts_as_control(state)
        key, plan_key = jax.random.split(state.key)
        result = self.planner.plan(models, plan_key, state.pending.obs, state.pending.plan, as_control)
        action = jnp.where(as_control, _first_action(result, "mean"), _first_action(result, explore))
        if training.target_steps > 0:
            tried_key, choice_key = jax.random.split(jax.random.fold_in(plan_key, 2))  # 0 and 1: the plan's own
            tried = self.planner.plan_as_targets(models, tried_key, state.pending.obs, result.plan)
            chosen = jax.random.bernoulli(choice_key, training.target_steps, (action.shape[0], 1))
            action = jnp.where(chosen & jnp.logical_not(as_control), _first_action(tried, explore), action)
        push = state.pending.push
        if push is not None:
            push = _drawn_or_held(jax.random.fold_in(plan_key, 3), push, training.push_hold)
            action = jnp.where(as_control, action, jnp.clip(action + training.push * push, -1, 1))
        pending = dataclasses.replace(state.pending, action=action, plan=result.plan, push=push)
        return dataclasses.replace(state, pending=pending, key=key), result

    def _acts_as_control(self, state: AgentState) -> Bool[Array, ""] | bool:
        """Is this one of the stretches in which the agent only controls?

        Counted in steps that the replay holds; a stretch is half of it at most, so that it holds both kinds.
        """
        training = self.config.training
        if training.control_stretch == 0:
            return False
        steps = min(training.control_stretch * training.num_envs, max(training.capacity // 2, 1))
        return state.replay.position // steps % 2 == 0

    def act_randomly(self, state: AgentState, hold: float = 1.0) -> AgentState:
        """Chooses the pending actions uniformly in the box, each anew with probability 1 / `hold`, or as before.

        Actions that are held push a plant further than a new one at every step, which averages out: swings and hills
        that need a run-up are found by chance.
        """
        key, action_key = jax.random.split(state.key)
        action = _drawn_or_held(action_key, state.pending.action, hold)
        pending = dataclasses.replace(state.pending, action=action, plan=jnp.zeros_like(state.pending.plan))
        return dataclasses.replace(state, pending=pending, key=key)

    # --------------------------------------------------------------- learning

    def learn(self, state: AgentState, updates: Int[Array, ""]) -> tuple[AgentState, LearningMetrics]:
        """`updates` gradient updates of critic and models, any number with one compilation; the last one's figures."""
        start = (state, LearningMetrics(*[jnp.zeros(())] * len(LearningMetrics._fields)))
        return jax.lax.fori_loop(0, updates, lambda _, carry: self.learner.update(carry[0]), start)

    # --------------------------------------------------------------- settings

    @cached_property
    def planner(self) -> Planner:
        return Planner(self.task, self.config, self.parts)

    @cached_property
    def learner(self) -> Learner:
        return Learner(self.planner)


def _drawn_or_held(key: PRNGKeyArray, held: Float[Array, "E A"], hold: float) -> Float[Array, "E A"]:
    """Uniform in the box, each row anew with probability 1 / `hold`, or as before."""
    drawn = jax.random.uniform(key, held.shape, minval=-1, maxval=1)
    if hold == 1:
        return drawn
    renewed = jax.random.bernoulli(jax.random.fold_in(key, 1), 1 / hold, (held.shape[0], 1))
    return jnp.where(renewed, drawn, held)


def _first_action(result: PlanResult, explore: Explore) -> Float[Array, "B A"]:
    return (result.sample if explore == "sample" else result.plan)[:, 0]
