"""What is learned of the goal where it is not known: reward and termination of a step, by a network each."""

import dataclasses
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from soft_mpcritic.config import DynamicsConfig
from soft_mpcritic.dynamics import Normalizer
from soft_mpcritic.networks import MLP

REWARD_FLOOR = 1e-3  # least deviation of the reward: of one that never changes, no finer differences are learned
FIRST_TERMINATION = 1e-3  # probability that a fresh network tells, about: it must not end every rollout


class GoalErrors(NamedTuple):
    """How far a learned goal is from what was experienced; means over rows."""

    reward_error: Float[Array, ""]  # root mean square, units of reward
    termination_loss: Float[Array, ""]  # cross-entropy, nats


class GoalNetworks(eqx.Module):
    """What is trained of a learned goal."""

    reward: MLP  # of (features, action, next features), in deviations from its mean
    termination: MLP  # of next features alone: its logit


class LearnedGoal(eqx.Module):
    """Reward and termination of a step (obs, action, next obs), the shape in which tasks tell theirs.

    It sees features, and actions in the library's box. All members of the ensemble share it: they differ in where
    they think that a step leads, not in what is good there. An end is judged by where the step led: ends are few, and
    a network that sees how they came about remembers each by that, and knows none that come about otherwise.
    """

    networks: GoalNetworks
    reward_scale: Normalizer  # one component

    @staticmethod
    def init(key: PRNGKeyArray, features: int, action_size: int, config: DynamicsConfig) -> "LearnedGoal":
        """Networks half as wide as the models."""
        reward_key, termination_key = jax.random.split(key)
        shape = {"width": max(config.width // 2, 1), "depth": config.depth, "layer_norm": config.layer_norm}
        termination = MLP.init(termination_key, features, 1, **shape)
        shift = math.log(FIRST_TERMINATION / (1 - FIRST_TERMINATION))
        networks = GoalNetworks(
            reward=MLP.init(reward_key, 2 * features + action_size, 1, **shape),
            termination=eqx.tree_at(lambda n: n.layers[-1].bias, termination, replace_fn=lambda bias: bias + shift),
        )
        return LearnedGoal(networks, Normalizer.init(1, REWARD_FLOOR))

    def observe(self, reward: Float[Array, " R"]) -> "LearnedGoal":
        """With R more rewards in the scale."""
        return dataclasses.replace(self, reward_scale=self.reward_scale.update(reward[:, None]))

    def __call__(
        self, features: Float[Array, "R F"], action: Float[Array, "R A"], next_features: Float[Array, "R F"]
    ) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
        """Reward, in its own units, and probability of termination."""
        reward, logit = self._outputs(features, action, next_features)
        return reward, jax.nn.sigmoid(logit)

    def loss(
        self,
        features: Float[Array, "R F"],
        action: Float[Array, "R A"],
        next_features: Float[Array, "R F"],
        reward: Float[Array, " R"],
        terminated: Float[Array, " R"],
    ) -> tuple[Float[Array, ""], GoalErrors]:
        """Mean squared error of the reward in its deviations, plus cross-entropy of the termination.

        Rewards are not clipped: a rare large one counts in full, or plans would not go for it.
        """
        predicted, logit = self._outputs(features, action, next_features)
        squared = jnp.mean((predicted - reward) ** 2)
        entropy = jnp.mean(jax.nn.softplus(logit) - terminated * logit)
        return squared / self.reward_scale.deviation[0] ** 2 + entropy, GoalErrors(jnp.sqrt(squared), entropy)

    def _outputs(
        self, features: Float[Array, "R F"], action: Float[Array, "R A"], next_features: Float[Array, "R F"]
    ) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
        """Reward, in its own units, and logit of termination."""
        reward = self.networks.reward(jnp.concatenate([features, action, next_features], axis=-1))
        return self.reward_scale.denormalize(reward)[:, 0], self.networks.termination(next_features)[:, 0]
