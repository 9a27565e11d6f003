"""The soft terminal Q-function, its target network's job, and its loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from soft_mpcritic.config import CriticConfig
from soft_mpcritic.math import hl_gauss
from soft_mpcritic.networks import MLP, init_ensemble

BIN_SPREAD = 0.75  # deviation of HL-Gauss histograms in bins, as in Farebrother et al., "Stop Regressing"


class SoftQ(eqx.Module):
    """One or two heads from (features, action) to the discounted return.

    Networks work in the critic's `unit`: with 1 / (1 - gamma), outputs have the size of a single reward whatever
    the horizon of the discount, and regress as easily.
    """

    networks: MLP  # leading axis M
    unit: float = eqx.field(static=True)
    config: CriticConfig = eqx.field(static=True)

    @staticmethod
    def init(key: PRNGKeyArray, inputs: int, discount: float, config: CriticConfig) -> "SoftQ":
        """`inputs` is the size of features and action together."""
        outputs = config.bins if config.loss == "hl_gauss" else 1
        networks = init_ensemble(
            key,
            config.heads,
            inputs,
            outputs,
            width=config.width,
            depth=config.depth,
            layer_norm=config.layer_norm,
        )
        unit = 1 / (1 - discount) if config.unit == "return" else 1.0
        return SoftQ(networks, config.scale * unit, config)

    def heads(self, features: Float[Array, "R F"], action: Float[Array, "R A"]) -> Float[Array, "M R"]:
        """The value of every head, in units of reward."""
        return self._value(self._outputs(features, action))

    def least(self, features: Float[Array, "R F"], action: Float[Array, "R A"]) -> Float[Array, " R"]:
        """The least of the heads: planning looks for the critic's errors, and overestimates hurt most."""
        return jnp.min(self.heads(features, action), axis=0)

    def tolerance(self, features: Float[Array, "R F"], action: Float[Array, "R A"]) -> Float[Array, " R"]:
        """Weights 1 / (1 + |Q| / unit)^2: errors count in units where values are small, relative to them elsewhere.

        Ten percent of a value of -5,000, into which random actions once ran, then cost what ten percent of one of
        -300 do; unweighted, errors of the first would drown all differences among good actions.
        """
        size = jnp.mean(jnp.abs(self.heads(features, action)), axis=0) / self.unit
        return (1 + size) ** -2

    def loss(
        self,
        features: Float[Array, "R F"],
        action: Float[Array, "R A"],
        target: Float[Array, " R"],
        weight: Float[Array, " R"],
    ) -> tuple[Float[Array, ""], Float[Array, "M R"]]:
        """Mean of weighted squared errors, or HL-Gauss cross-entropies, in units, summed over heads; and the values.

        Rows of weight 0 do not count, whatever their target. The mean of the others is by their number: by the sum of
        their weights, a row would weigh more in one batch than in another.
        """
        outputs = self._outputs(features, action)
        target = jnp.where(weight > 0, target, 0.0) / self.unit
        if self.config.loss == "mse":
            errors = (outputs[..., 0] - target[None]) ** 2
        else:
            width = (self.config.support[1] - self.config.support[0]) / self.config.bins
            labels = hl_gauss(target, self._edges, BIN_SPREAD * width)
            errors = -jnp.sum(labels[None] * jax.nn.log_softmax(outputs, axis=-1), axis=-1)
        weighted = jnp.sum(errors * weight[None]) / jnp.maximum(jnp.sum(weight > 0, dtype=errors.dtype), 1)
        return weighted, self._value(outputs)

    def _outputs(self, features: Float[Array, "R F"], action: Float[Array, "R A"]) -> Float[Array, "M R O"]:
        rows = jnp.concatenate([features, action], axis=-1)
        return jax.vmap(lambda network: network(rows))(self.networks)

    def _value(self, outputs: Float[Array, "M R O"]) -> Float[Array, "M R"]:
        if self.config.loss == "mse":
            regressed = outputs[..., 0]
        else:
            centres = 0.5 * (self._edges[1:] + self._edges[:-1])
            regressed = jax.nn.softmax(outputs, axis=-1) @ centres
        return self.unit * regressed

    @property
    def _edges(self) -> Float[Array, " J"]:
        return jnp.linspace(*self.config.support, self.config.bins + 1)
