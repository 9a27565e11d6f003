"""What is learned of the system: an ensemble of one-step models, and the scales of what they see."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from soft_mpcritic.config import DynamicsConfig
from soft_mpcritic.networks import MLP, init_ensemble

OBS_FLOOR = 0.03  # least deviation of an observation component: one that is almost always 0 must not turn its
CHANGE_FLOOR = 0.003  # rare spikes into inputs of 1e4; changes are smaller than observations
CLIP = 10.0  # deviations; beyond, an input says "far out" and no more


class Normalizer(eqx.Module):
    """Running mean and deviation of every component over all that was seen (Welford, merged batch by batch).

    The n-th sample moves the statistics by 1/n, so they never jump under a trained network. With `count` 0 it is
    the identity, which is how normalisation is switched off.
    """

    count: Float[Array, ""]
    mean: Float[Array, " S"]
    squares: Float[Array, " S"]  # sum of squared deviations from the mean
    floor: float | tuple[float, ...] = eqx.field(static=True)  # of all components, or of each

    @staticmethod
    def init(size: int, floor: float | tuple[float, ...]) -> "Normalizer":
        return Normalizer(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size), floor)

    def update(self, rows: Float[Array, "R S"]) -> "Normalizer":
        """The statistics with R more samples (Chan's parallel form of Welford's sums)."""
        added = rows.shape[0]
        count = self.count + added
        difference = jnp.mean(rows, axis=0) - self.mean
        mean = self.mean + difference * (added / count)
        squares = self.squares + added * jnp.var(rows, axis=0) + difference**2 * (self.count * added / count)
        return dataclasses.replace(self, count=count, mean=mean, squares=squares)

    @property
    def deviation(self) -> Float[Array, " S"]:
        """Standard deviation with a floor; 1 before anything was seen."""
        spread = jnp.sqrt(self.squares / jnp.maximum(self.count, 1))
        return jnp.where(self.count > 0, jnp.maximum(spread, jnp.array(self.floor)), 1.0)

    def normalize(self, rows: Float[Array, "R S"]) -> Float[Array, "R S"]:
        """Deviations from the mean, clipped; the rows themselves before anything was seen."""
        scaled = (rows - self.mean[None, :]) / self.deviation[None, :]
        return jnp.clip(scaled, -self._clip, self._clip)

    def denormalize(self, rows: Float[Array, "R S"]) -> Float[Array, "R S"]:
        return rows * self.deviation[None, :] + self.mean[None, :]

    @property
    def _clip(self) -> Float[Array, ""]:
        return jnp.where(self.count > 0, CLIP, jnp.inf)


class EnsembleDynamics(eqx.Module):
    """N networks from what is known of (obs, action) to the normalised change; N is an axis of the parameters."""

    members: MLP

    @staticmethod
    def init(key: PRNGKeyArray, inputs: int, outputs: int, config: DynamicsConfig) -> "EnsembleDynamics":
        """`inputs` and `outputs` are the sizes of the rows that the networks see and predict."""
        width, depth, layer_norm = config.width, config.depth, config.layer_norm
        members = init_ensemble(key, config.members, inputs, outputs, width=width, depth=depth, layer_norm=layer_norm)
        return EnsembleDynamics(members)


def dynamics_loss(
    members: MLP, inputs: Float[Array, "N R I"], targets: Float[Array, "N R O"]
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """Mean squared error of the normalised change: summed over members, which do not interact, and each alone."""
    predictions = jax.vmap(lambda member, rows: member(rows))(members, inputs)
    errors = jnp.mean((predictions - targets) ** 2, axis=(1, 2))
    return jnp.sum(errors), errors


def dynamics_optimizer(config: DynamicsConfig) -> optax.GradientTransformation:
    """Adam, or AdamW where weights are to decay (Loshchilov & Hutter, 2019)."""
    if config.weight_decay == 0:
        return optax.adam(config.learning_rate)
    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay, mask=_matrices)


def _matrices(networks: Any) -> Any:
    """Which parameters decay. Offsets and scales have nothing to overfit with."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.GetAttrKey("weight"), networks)
