"""All that changes while an agent learns, and the figures that it tells of itself."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from soft_mpcritic.goal import GoalNetworks
from soft_mpcritic.networks import MLP
from soft_mpcritic.planner import Models
from soft_mpcritic.replay import Replay
from soft_mpcritic.types import PlanResult


class Pending(eqx.Module):
    """The step that is under way in each of E environments."""

    obs: Float[Array, "E S"]
    action: Float[Array, "E A"]
    plan: Float[Array, "E T A"]  # made at `obs`; between steps: the start of the next solve
    push: Float[Array, "E A"] | None  # which exploring steps are under, in [-1, 1]; None where nobody pushes


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
    dynamics_newest: MLP | None  # what learns, where planning asks its mean over time; None where planning asks it
    goal_newest: GoalNetworks | None  # the same
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
