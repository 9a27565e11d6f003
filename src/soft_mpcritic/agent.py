"""The agent: plans with what it learned, and learns from what it plans.

Everything here is a pure function of explicit state, fit for jit, scan, and vmap over seeds. `Agent` holds only
settings; `AgentState` is the pytree of all that changes.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from soft_mpcritic.config import Config
from soft_mpcritic.dynamics import EnsembleDynamics, dynamics_loss
from soft_mpcritic.envs import Task
from soft_mpcritic.goal import GoalErrors, LearnedGoal
from soft_mpcritic.math import polyak
from soft_mpcritic.networks import MLP
from soft_mpcritic.parts import NOTHING_OWN, Parts
from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.planning import fit_horizon, shift
from soft_mpcritic.replay import Replay
from soft_mpcritic.types import Experience, PlanResult, Transition

Explore = Literal["sample", "mean"]


class Pending(eqx.Module):
    """The step that is under way in each of E environments."""

    obs: Float[Array, "E S"]
    action: Float[Array, "E A"]
    plan: Float[Array, "E T A"]  # made at `obs`; between steps: the start of the next solve


class Health(eqx.Module):
    """How learning fares. An update that would not be finite is not applied."""

    skipped: Int[Array, ""]  # updates of which a part was not applied
    in_a_row: Int[Array, ""]  # of these, the last ones without a sound one in between
    step_size: Float[Array, ""]  # factor of all learning rates: 1, or less after a return to a checkpoint

    @staticmethod
    def init() -> "Health":
        return Health(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.ones(()))

    def after(self, sound: Bool[Array, ""]) -> "Health":
        """One update later."""
        bad = 1 - sound.astype(self.skipped.dtype)
        return Health(self.skipped + bad, bad * (self.in_a_row + 1), self.step_size)


class AgentState(eqx.Module):
    """Everything that changes while learning."""

    models: Models
    dynamics_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    goal_optimizer: optax.OptState | None  # None where there is nothing to learn of the goal
    replay: Replay
    pending: Pending
    key: PRNGKeyArray
    updates: Int[Array, ""]
    health: Health


class LearningMetrics(NamedTuple):
    """Figures of one update; means over the minibatch, its samples or the members."""

    critic_loss: Float[Array, ""]  # in the critic's unit
    dynamics_loss: Float[Array, ""]  # in normalised changes
    member_spread: Float[Array, ""]  # between the members' losses, relative to their mean
    q_mean: Float[Array, ""]
    q_head_gap: Float[Array, ""]  # distance between the two heads
    target_mean: Float[Array, ""]  # of valid targets
    target_effective_samples: Float[Array, ""]
    target_invalid: Float[Array, ""]  # fraction of target samples
    plan_age: Float[Array, ""]  # updates since the replayed plans were last refined
    plan_change: Float[Array, ""]  # root mean square of what the refinement changed
    reward_error: Float[Array, ""]  # of a learned goal, as in `GoalErrors`; NaN for a known one
    termination_loss: Float[Array, ""]
    skipped: Float[Array, ""]  # updates in a row, up to this one, that were not finite and not applied


class PlanningMetrics(NamedTuple):
    """Figures of the online solves; means over environments."""

    value: Float[Array, ""]
    effective_samples: Float[Array, ""]
    best_return: Float[Array, ""]
    mean_return: Float[Array, ""]
    clip_fraction: Float[Array, ""]
    invalid_fraction: Float[Array, ""]

    @staticmethod
    def of(result: PlanResult) -> "PlanningMetrics":
        return PlanningMetrics(jnp.mean(result.value), *(jnp.mean(figure) for figure in result.stats))


LEARNING_NAMES = LearningMetrics._fields
METRIC_NAMES = (*LEARNING_NAMES, *PlanningMetrics._fields)


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
        envs, slots = config.training.num_envs, config.planner.horizon + 1
        target_slots = config.target_planner.horizon + 1
        return AgentState(
            models=models,
            dynamics_optimizer=self._dynamics_optimizer.init(_params(models.dynamics.members)),
            critic_optimizer=self._critic_optimizer.init(_params(models.critic.networks)),
            goal_optimizer=None if models.goal is None else self._dynamics_optimizer.init(_params(models.goal.network)),
            replay=Replay.init(config.training.capacity, task.obs_size, task.action_size, target_slots),
            pending=Pending(
                obs=jnp.zeros((envs, task.obs_size)),
                action=jnp.zeros((envs, task.action_size)),
                plan=jnp.zeros((envs, slots, task.action_size)),
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
        state = self.act_randomly(self.observe(state, experience))
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
            acted = self.act_randomly(state)
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
                change_scale=models.change_scale.update(self._surprise(transition)),
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
        tried in the world.
        """
        key, plan_key = jax.random.split(state.key)
        result = self.planner.plan(state.models, plan_key, state.pending.obs, state.pending.plan)
        action = _first_action(result, explore)
        if self.config.training.target_steps > 0:
            tried_key, choice_key = jax.random.split(jax.random.fold_in(plan_key, 2))  # 0 and 1: the plan's own
            tried = self.planner.plan_as_targets(state.models, tried_key, state.pending.obs, result.plan)
            chosen = jax.random.bernoulli(choice_key, self.config.training.target_steps, (action.shape[0], 1))
            action = jnp.where(chosen, _first_action(tried, explore), action)
        pending = dataclasses.replace(state.pending, action=action, plan=result.plan)
        return dataclasses.replace(state, pending=pending, key=key), result

    def act_randomly(self, state: AgentState) -> AgentState:
        """Chooses the pending actions uniformly in the box."""
        key, action_key = jax.random.split(state.key)
        action = jax.random.uniform(action_key, state.pending.action.shape, minval=-1, maxval=1)
        pending = dataclasses.replace(state.pending, action=action, plan=jnp.zeros_like(state.pending.plan))
        return dataclasses.replace(state, pending=pending, key=key)

    # --------------------------------------------------------------- learning

    def learn(self, state: AgentState, updates: Int[Array, ""]) -> tuple[AgentState, LearningMetrics]:
        """`updates` gradient updates of critic and models, any number with one compilation; the last one's figures."""
        start = (state, LearningMetrics(*[jnp.zeros(())] * len(LearningMetrics._fields)))
        return jax.lax.fori_loop(0, updates, lambda _, carry: self.update(carry[0]), start)

    def update(self, state: AgentState) -> tuple[AgentState, LearningMetrics]:
        """One round of amortised value iteration and one step of model learning.

        Of networks whose gradient is not finite, nothing changes; `AgentState.health` counts such updates.
        """
        key, critic_key, row_key = jax.random.split(state.key, 3)
        state, critic_figures, critic_sound = self._update_critic(dataclasses.replace(state, key=key), critic_key)
        batch = state.replay.take(state.replay.sample_rows(row_key, self._batches * self.config.dynamics.batch_size))
        state, member_losses, members_sound = self._update_dynamics(state, batch)
        state, goal_errors, goal_sound = self._update_goal(state, batch)
        health = state.health.after(critic_sound & members_sound & goal_sound)
        loss = jnp.mean(member_losses)
        spread = jnp.std(member_losses) / jnp.maximum(loss, 1e-12)
        figures = LearningMetrics(
            dynamics_loss=loss,
            member_spread=spread,
            skipped=health.in_a_row.astype(loss.dtype),
            **critic_figures,
            **goal_errors._asdict(),
        )
        return dataclasses.replace(state, updates=state.updates + 1, health=health), figures

    def targets(
        self, models: Models, key: PRNGKeyArray, batch: Transition, start: Float[Array, "R T A"]
    ) -> tuple[Float[Array, " R"], PlanResult]:
        """y = r + gamma (1 - terminated) V(s'), V by the target planner from `start`; -inf where no sample is valid."""
        result = self.planner.value(models, key, batch.next_obs, start)
        alive = batch.terminated == 0  # a product with V would turn an invalid V of a finished episode into NaN
        future = jnp.where(alive, self.config.objective.discount * result.value, 0.0)
        return batch.reward + future, result

    def _update_critic(
        self, state: AgentState, key: PRNGKeyArray
    ) -> tuple[AgentState, dict[str, Array], Bool[Array, ""]]:
        config, models, replay = self.config.critic, state.models, state.replay
        row_key, plan_key = jax.random.split(key)
        rows = replay.sample_rows(row_key, config.batch_size)
        batch = replay.take(rows)
        start, planned_at = replay.take_plans(rows)
        age = jnp.mean(state.updates.astype(planned_at.dtype) - planned_at)
        target, result = self.targets(models, plan_key, batch, start)
        replay = replay.write_plans(rows, result.plan, state.updates)

        weight = jnp.isfinite(target).astype(target.dtype)
        features = self.planner.features(models, batch.obs)

        def loss_of(networks: MLP) -> tuple[Array, Array]:
            critic = dataclasses.replace(models.critic, networks=networks)
            return critic.loss(features, batch.action, target, weight)

        (loss, values), gradient = jax.value_and_grad(loss_of, has_aux=True)(models.critic.networks)
        networks, optimizer, sound = _descend(
            self._critic_optimizer, gradient, state.critic_optimizer, models.critic.networks, state.health.step_size
        )
        due = (state.updates + 1) % config.target_every == 0
        target_step = jnp.where(due, config.target_step, 0.0)
        models = dataclasses.replace(
            models,
            critic=dataclasses.replace(models.critic, networks=networks),
            target_critic=dataclasses.replace(
                models.target_critic, networks=polyak(models.target_critic.networks, networks, target_step)
            ),
        )
        figures = {
            "critic_loss": loss,
            "q_mean": jnp.mean(values),
            "q_head_gap": jnp.mean(jnp.max(values, axis=0) - jnp.min(values, axis=0)),
            "target_mean": jnp.sum(jnp.where(weight > 0, target, 0.0)) / jnp.maximum(jnp.sum(weight), 1),
            "target_effective_samples": jnp.mean(result.stats.effective_samples),
            "target_invalid": jnp.mean(result.stats.invalid_fraction),
            "plan_age": age,
            "plan_change": jnp.sqrt(jnp.mean((result.plan - start) ** 2)),
        }
        return dataclasses.replace(state, models=models, replay=replay, critic_optimizer=optimizer), figures, sound

    def _update_dynamics(
        self, state: AgentState, batch: Transition
    ) -> tuple[AgentState, Float[Array, " N"], Bool[Array, ""]]:
        """One step of every member on its own part of the batch, or on all of it."""
        config, models = self.config.dynamics, state.models
        inputs = jnp.concatenate([self.planner.features(models, batch.obs), batch.action], axis=-1)
        targets = models.change_scale.normalize(self._surprise(batch))

        def per_member(flat: Float[Array, "R X"]) -> Float[Array, "N J X"]:
            grouped = flat.reshape(self._batches, config.batch_size, -1)
            return jnp.broadcast_to(grouped, (config.members, *grouped.shape[1:]))

        (_, losses), gradient = jax.value_and_grad(dynamics_loss, has_aux=True)(
            models.dynamics.members, per_member(inputs), per_member(targets)
        )
        members, optimizer, sound = _descend(
            self._dynamics_optimizer,
            gradient,
            state.dynamics_optimizer,
            models.dynamics.members,
            state.health.step_size,
        )
        models = dataclasses.replace(models, dynamics=EnsembleDynamics(members))
        return dataclasses.replace(state, models=models, dynamics_optimizer=optimizer), losses, sound

    def _surprise(self, batch: Transition) -> Float[Array, "R S"]:
        """What the ensemble is to learn of steps: how far they led from where they were known to lead."""
        return batch.next_obs - self.planner.expected(batch.obs, batch.action)

    def _update_goal(self, state: AgentState, batch: Transition) -> tuple[AgentState, GoalErrors, Bool[Array, ""]]:
        """One step of a learned goal on the whole batch."""
        models, goal, optimizer = state.models, state.models.goal, state.goal_optimizer
        if goal is None or optimizer is None:
            return state, GoalErrors(jnp.array(jnp.nan), jnp.array(jnp.nan)), jnp.array(True)
        features, next_features = (self.planner.features(models, obs) for obs in (batch.obs, batch.next_obs))

        def loss_of(network: MLP) -> tuple[Array, GoalErrors]:
            learned = dataclasses.replace(goal, network=network)
            return learned.loss(features, batch.action, next_features, batch.reward, batch.terminated)

        (_, errors), gradient = jax.value_and_grad(loss_of, has_aux=True)(goal.network)
        network, optimizer, sound = _descend(
            self._dynamics_optimizer, gradient, optimizer, goal.network, state.health.step_size
        )
        models = dataclasses.replace(models, goal=LearnedGoal(network, goal.reward_scale))
        return dataclasses.replace(state, models=models, goal_optimizer=optimizer), errors, sound

    # --------------------------------------------------------------- settings

    @cached_property
    def planner(self) -> Planner:
        return Planner(self.task, self.config, self.parts)

    @property
    def _batches(self) -> int:
        """How many minibatches the members share out among them."""
        return self.config.dynamics.members if self.config.dynamics.own_batches else 1

    @cached_property
    def _dynamics_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.dynamics.learning_rate)

    @cached_property
    def _critic_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.critic.learning_rate)


def _first_action(result: PlanResult, explore: Explore) -> Float[Array, "B A"]:
    return (result.sample if explore == "sample" else result.plan)[:, 0]


def _descend(
    optimizer: optax.GradientTransformation,
    gradient: MLP,
    state: optax.OptState,
    networks: MLP,
    step_size: Float[Array, ""],
) -> tuple[MLP, optax.OptState, Bool[Array, ""]]:
    """One step of an optimiser, times `step_size`; no step where the gradient is not finite. Was there one?

    The squares are asked, not the gradient: where one overflows, Adam would never move that parameter again.
    """
    with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integer powers, whatever is asked of us
        change, moved = optimizer.update(_params(gradient), state)
    sound = jnp.isfinite(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    networks = jax.tree.map(lambda p, c: p + jnp.where(sound, step_size * c, 0.0), networks, change)
    return networks, jax.tree.map(lambda new, old: jnp.where(sound, new, old), moved, state), sound


def _params(networks: MLP) -> Any:
    """Optax's own name for any pytree of arrays does not admit ours."""
    return networks
