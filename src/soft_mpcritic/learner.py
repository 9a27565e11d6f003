"""Learning: amortised fitted value iteration of the critic, and one-step prediction of models and goal.

Pure functions of the agent's state; `Learner` holds only settings.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from soft_mpcritic.agent_state import AgentState, LearningMetrics
from soft_mpcritic.config import Config
from soft_mpcritic.critic import SoftQ
from soft_mpcritic.dynamics import EnsembleDynamics, dynamics_loss, dynamics_optimizer
from soft_mpcritic.goal import GoalErrors, GoalNetworks
from soft_mpcritic.math import polyak
from soft_mpcritic.networks import MLP
from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.types import PlanResult, Transition

Networks = TypeVar("Networks", bound=eqx.Module)

LONGEST_MEAN = 1000  # updates over which the mean critic goes


class Optimizers(NamedTuple):
    """States of the optimisers."""

    dynamics: optax.OptState
    critic: optax.OptState
    goal: optax.OptState | None  # None where there is nothing to learn of the goal


@dataclass(frozen=True)
class Learner:
    """What is learned from the replay, with a planner that tells what states are worth."""

    planner: Planner

    def init_optimizers(self, models: Models) -> Optimizers:
        """The optimisers as they are before the first update."""
        goal = models.goal
        return Optimizers(
            dynamics=self._dynamics_optimizer.init(_params(models.dynamics.members)),
            critic=self._critic_optimizer.init(_params(models.critic.networks)),
            goal=None if goal is None else self._dynamics_optimizer.init(_params(goal.networks)),
        )

    def init_newest(self, asked: Networks) -> Networks | None:
        """What learns, where planning asks only its mean."""
        return jax.tree.map(jnp.copy, asked) if self._config.dynamics.average_step < 1 else None

    def update(self, state: AgentState) -> tuple[AgentState, LearningMetrics]:
        """One round of amortised value iteration and one step of model learning.

        Of networks whose gradient is not finite, nothing changes; `AgentState.health` counts such updates.
        """
        key, critic_key, row_key = jax.random.split(state.key, 3)
        state, critic_figures, critic_sound = self._update_critic(dataclasses.replace(state, key=key), critic_key)
        batch = state.replay.take(state.replay.sample_rows(row_key, self._batches * self._config.dynamics.batch_size))
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
        """y = r + gamma V(s'), V by the target planner from `start`, and `end_value` after a termination.

        -inf where no sample is valid.
        """
        result = self.planner.value(models, key, batch.next_obs, start)
        objective, ended = self._config.objective, batch.terminated
        # Of a finished episode no V is left, even where it is invalid and the product NaN.
        alive = jnp.where(ended < 1, (1 - ended) * result.value, 0.0)
        return batch.reward + objective.discount * (alive + ended * objective.end_value), result

    def surprise(self, batch: Transition) -> Float[Array, "R X"]:
        """What the ensemble is to learn of steps: how far they led from where they were known to lead."""
        return self.planner.state(batch.next_obs) - self.planner.expected(batch.obs, batch.action)

    def _update_critic(
        self, state: AgentState, key: PRNGKeyArray
    ) -> tuple[AgentState, dict[str, Array], Bool[Array, ""]]:
        config, models, replay = self._config.critic, state.models, state.replay
        row_key, plan_key = jax.random.split(key)
        rows = replay.sample_rows(row_key, config.batch_size - self._imagined)
        plans, planned_at = replay.take_plans(rows)
        age = jnp.mean(state.updates.astype(planned_at.dtype) - planned_at)
        batch, start, weight = self._beside_imagined(models, plan_key, replay.take(rows), plans)
        target, result = self.targets(models, plan_key, batch, start)
        refined = result.plan[: rows.shape[0]]
        replay = replay.write_plans(rows, refined, state.updates)

        valid = jnp.isfinite(target) & (weight > 0)
        weight = jnp.where(valid, weight, 0.0)
        features = self.planner.valued(models, batch.obs)
        if config.relative:
            weight = weight * models.target_critic.tolerance(features, batch.action)

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
            mean_critic=self._mean_critic(models.mean_critic, networks, state.updates),
        )
        figures = {
            "critic_loss": loss,
            "q_mean": jnp.mean(values),
            "q_head_gap": jnp.mean(jnp.max(values, axis=0) - jnp.min(values, axis=0)),
            "target_mean": jnp.sum(jnp.where(valid, target, 0.0)) / jnp.maximum(jnp.sum(valid, dtype=loss.dtype), 1),
            "target_effective_samples": jnp.mean(result.stats.effective_samples),
            "target_invalid": jnp.mean(result.stats.invalid_fraction),
            "plan_age": age,
            "plan_change": jnp.sqrt(jnp.mean((refined - plans) ** 2)),
        }
        return dataclasses.replace(state, models=models, replay=replay, critic_optimizer=optimizer), figures, sound

    def _mean_critic(self, mean: SoftQ | None, networks: MLP, updates: Int[Array, ""]) -> SoftQ | None:
        """A mean over the last tenth of all updates, at most some `LONGEST_MEAN`, that came to `networks`.

        Polynomial-decay averaging (Shamir & Zhang, 2013): w <- w + (p + 1) / (n + p) (w_n - w) with p = 9.
        """
        if mean is None:
            return None
        step = jnp.maximum(1 / LONGEST_MEAN, 10 / (updates + 10))
        return dataclasses.replace(mean, networks=polyak(mean.networks, networks, step))

    def _beside_imagined(
        self, models: Models, key: PRNGKeyArray, batch: Transition, start: Float[Array, "J T A"]
    ) -> tuple[Transition, Float[Array, "R T A"], Float[Array, " R"]]:
        """J drawn transitions, and steps beside them that begin where plans of theirs end; starts and weights of all.

        There Q is asked, and nothing that was experienced corrects it: plans that are refined again and again find
        where it errs, and its errors would grow from one target to the next.
        """
        weight, count = jnp.ones(start.shape[0]), self._imagined
        if count == 0:
            return batch, start, weight
        key = jax.random.fold_in(key, 2)  # 0 and 1 are the target solve's own
        imagined = self.planner.imagine(models, key, batch.next_obs[:count], start[:count])
        joined = Transition(*(jnp.concatenate(pair) for pair in zip(batch, imagined.transition, strict=True)))
        starts = jnp.concatenate([start, imagined.start])
        return joined, starts, jnp.concatenate([weight, imagined.alive * (1 - batch.terminated[:count])])

    def _update_dynamics(
        self, state: AgentState, batch: Transition
    ) -> tuple[AgentState, Float[Array, " N"], Bool[Array, ""]]:
        """One step of every member on its own part of the batch, or on all of it."""
        config, models = self._config.dynamics, state.models
        inputs = jnp.concatenate([self.planner.features(models, batch.obs), batch.action], axis=-1)
        targets = models.change_scale.normalize(self.surprise(batch))

        def per_member(flat: Float[Array, "R X"]) -> Float[Array, "N J X"]:
            grouped = flat.reshape(self._batches, config.batch_size, -1)
            return jnp.broadcast_to(grouped, (config.members, *grouped.shape[1:]))

        newest = models.dynamics.members if state.dynamics_newest is None else state.dynamics_newest
        (_, losses), gradient = jax.value_and_grad(dynamics_loss, has_aux=True)(
            newest, per_member(inputs), per_member(targets)
        )
        members, optimizer, sound = _descend(
            self._dynamics_optimizer, gradient, state.dynamics_optimizer, newest, state.health.step_size
        )
        asked, newest = self._averaged(models.dynamics.members, members, state.updates)
        models = dataclasses.replace(models, dynamics=EnsembleDynamics(asked))
        state = dataclasses.replace(state, models=models, dynamics_optimizer=optimizer, dynamics_newest=newest)
        return state, losses, sound

    def _update_goal(self, state: AgentState, batch: Transition) -> tuple[AgentState, GoalErrors, Bool[Array, ""]]:
        """One step of a learned goal on the whole batch."""
        models, goal, optimizer = state.models, state.models.goal, state.goal_optimizer
        if goal is None or optimizer is None:
            return state, GoalErrors(jnp.array(jnp.nan), jnp.array(jnp.nan)), jnp.array(True)
        newest = goal.networks if state.goal_newest is None else state.goal_newest
        features, next_features = (self.planner.features(models, obs) for obs in (batch.obs, batch.next_obs))

        def loss_of(networks: GoalNetworks) -> tuple[Array, GoalErrors]:
            learned = dataclasses.replace(goal, networks=networks)
            return learned.loss(features, batch.action, next_features, batch.reward, batch.terminated)

        (_, errors), gradient = jax.value_and_grad(loss_of, has_aux=True)(newest)
        networks, optimizer, sound = _descend(
            self._dynamics_optimizer, gradient, optimizer, newest, state.health.step_size
        )
        asked, newest = self._averaged(goal.networks, networks, state.updates)
        models = dataclasses.replace(models, goal=dataclasses.replace(goal, networks=asked))
        state = dataclasses.replace(state, models=models, goal_optimizer=optimizer, goal_newest=newest)
        return state, errors, sound

    def _averaged(
        self, mean: Networks, networks: Networks, updates: Int[Array, ""]
    ) -> tuple[Networks, Networks | None]:
        """What planning asks once `networks` were learned, and what learns on, where that is not the same.

        In the running mean, what single batches did to the weights averages out (Polyak & Juditsky, 1992). It is of
        all updates while there are few, of the last 1 / `average_step` or so later.
        """
        step = self._config.dynamics.average_step
        if step == 1:
            return networks, None
        return polyak(mean, networks, jnp.maximum(step, 1 / (updates + 1))), networks

    @property
    def _config(self) -> Config:
        return self.planner.config

    @property
    def _imagined(self) -> int:
        """How many steps of the critic's batch are imagined."""
        return round(self._config.critic.imagined * self._config.critic.batch_size)

    @property
    def _batches(self) -> int:
        """How many minibatches the members share out among them."""
        return self._config.dynamics.members if self._config.dynamics.own_batches else 1

    @cached_property
    def _dynamics_optimizer(self) -> optax.GradientTransformation:
        return dynamics_optimizer(self._config.dynamics)

    @cached_property
    def _critic_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self._config.critic.learning_rate)


def _descend(
    optimizer: optax.GradientTransformation,
    gradient: Networks,
    state: optax.OptState,
    networks: Networks,
    step_size: Float[Array, ""],
) -> tuple[Networks, optax.OptState, Bool[Array, ""]]:
    """One step of an optimiser, times `step_size`; no step where the gradient is not finite. Was there one?

    The squares are asked, not the gradient: where one overflows, Adam would never move that parameter again.
    """
    with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integer powers, whatever is asked of us
        change, moved = optimizer.update(_params(gradient), state, _params(networks))
    sound = jnp.isfinite(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    networks = jax.tree.map(lambda p, c: p + jnp.where(sound, step_size * c, 0.0), networks, change)
    return networks, jax.tree.map(lambda new, old: jnp.where(sound, new, old), moved, state), sound


def _params(networks: eqx.Module) -> Any:
    """Optax's own name for any pytree of arrays does not admit ours."""
    return networks
