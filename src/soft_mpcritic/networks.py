"""A multilayer perceptron on rows, and ensembles of them as one stacked set of parameters."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Linear(eqx.Module):
    """y = x W + b with W stored [inputs, outputs], so that a batch of rows is one plain matrix product."""

    weight: Float[Array, "I O"]
    bias: Float[Array, " O"]

    @staticmethod
    def init(key: PRNGKeyArray, inputs: int, outputs: int) -> "Linear":
        """Uniform in +-1/sqrt(inputs), for weight and bias."""
        bound = 1 / math.sqrt(inputs)
        weight_key, bias_key = jax.random.split(key)
        weight = jax.random.uniform(weight_key, (inputs, outputs), minval=-bound, maxval=bound)
        return Linear(weight, jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound))

    def __call__(self, rows: Float[Array, "R I"]) -> Float[Array, "R O"]:
        return rows @ self.weight + self.bias[None, :]


class LayerNorm(eqx.Module):
    """Standardises each row, then scales and shifts it by learned amounts."""

    scale: Float[Array, " I"]
    shift: Float[Array, " I"]

    @staticmethod
    def init(size: int) -> "LayerNorm":
        return LayerNorm(jnp.ones(size), jnp.zeros(size))

    def __call__(self, rows: Float[Array, "R I"]) -> Float[Array, "R I"]:
        return jax.nn.standardize(rows, axis=-1) * self.scale[None, :] + self.shift[None, :]


class MLP(eqx.Module):
    """Linear, optional LayerNorm, SiLU; repeated; then one linear layer."""

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm, ...]  # one per hidden layer, or none at all

    @staticmethod
    def init(
        key: PRNGKeyArray, inputs: int, outputs: int, *, width: int, depth: int, layer_norm: bool = False
    ) -> "MLP":
        """`depth` hidden layers of `width` units."""
        sizes = [inputs] + [width] * depth + [outputs]
        keys = jax.random.split(key, depth + 1)
        layers = tuple(Linear.init(k, i, o) for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True))
        return MLP(layers, tuple(LayerNorm.init(width) for _ in range(depth if layer_norm else 0)))

    def __call__(self, rows: Float[Array, "R I"]) -> Float[Array, "R O"]:
        for index, layer in enumerate(self.layers[:-1]):
            rows = layer(rows)
            if self.norms:
                rows = self.norms[index](rows)
            rows = jax.nn.silu(rows)
        return self.layers[-1](rows)


def init_ensemble(
    key: PRNGKeyArray, size: int, inputs: int, outputs: int, *, width: int, depth: int, layer_norm: bool = False
) -> MLP:
    """`size` independently initialised networks, stacked along a leading axis of every parameter."""

    def init_member(member_key: PRNGKeyArray) -> MLP:
        return MLP.init(member_key, inputs, outputs, width=width, depth=depth, layer_norm=layer_norm)

    return jax.vmap(init_member)(jax.random.split(key, size))
