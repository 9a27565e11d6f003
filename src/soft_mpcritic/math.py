"""The few formulas that several layers share."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy.special import ndtri
from scipy.stats import qmc


def log_mean_exp(x: Float[Array, "K *rest"]) -> Float[Array, "*rest"]:
    """log (1/K sum_k exp x_k) over the leading axis; -inf where every entry is -inf.

    By log1p and expm1: entries that hardly differ, as at a high temperature, keep their digits.
    """
    largest = jnp.max(x, axis=0)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    return largest + jnp.log1p(jnp.mean(jnp.expm1(x - largest[None]), axis=0))


def effective_sample_size(weights: Float[Array, "K *rest"]) -> Float[Array, "*rest"]:
    """Kish's 1 / sum_k w_k^2 for weights that sum to one; 0 where all weights are 0."""
    squares = jnp.sum(weights**2, axis=0)
    return jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1.0), 0.0)


def polyak(target: PyTree, online: PyTree, step: float | Array) -> PyTree:
    """target + step (online - target), leaf by leaf: the slow copy of a network."""
    return jax.tree.map(lambda t, o: t + step * (o - t), target, online)


def hl_gauss(values: Float[Array, " R"], edges: Float[Array, " J"], spread: float) -> Float[Array, "R I"]:
    """Histogram over the I = J - 1 bins between `edges` of N(value, spread^2), cut to the support and renormalised.

    Source: Imani & White, "Improving Regression Performance with Distributional Losses"; values outside the
    support are moved to its nearest end.
    """
    centred = (edges[None, :] - jnp.clip(values, edges[0], edges[-1])[:, None]) / (spread * jnp.sqrt(2.0))
    cdf = jax.scipy.special.erf(centred)
    return (cdf[:, 1:] - cdf[:, :-1]) / (cdf[:, -1:] - cdf[:, :1])


@cache
def normal_points(count: int, size: int) -> Float[np.ndarray, "M S"]:
    """M points that stand for N(0, I): every component takes the mid-quantiles (m + 1/2) / M once.

    A centred Latin hypercube (McKay, Beckman & Conover, 1979), always the same one: what is averaged over it is a
    function like any other, and half-spaces across an axis have their probability to within 1 / (2 M).
    """
    return ndtri(qmc.LatinHypercube(size, scramble=False, rng=0).random(count)).astype(np.float32)
