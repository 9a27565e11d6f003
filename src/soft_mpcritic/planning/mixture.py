"""The proposal: Gaussians of several widths, equally many samples from each, and the exact density of them all.

Wide ones explore; narrow ones make a plan finer than any single width could. Which one a sample came from does not
matter for its weight (the balance heuristic: Veach & Guibas, "Optimally Combining Sampling Techniques", 1995).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from soft_mpcritic.types import Prior


@dataclass(frozen=True)
class Mixture:
    """Component m stands at `centres[m]` and is `width` 2^-m as wide as the prior's own proposal."""

    prior: Prior
    centres: Sequence[Float[Array, "B T A"]]
    width: float = 1.0

    def propose(self, points: Float[Array, "K B T A"]) -> Float[Array, "K B T A"]:
        """Consecutive blocks of samples, one per component: each block of a Sobol sequence is spread evenly too."""
        blocks = np.array_split(np.arange(points.shape[0]), len(self.centres))
        parts = [
            self.prior.propose(points[block[0] : block[-1] + 1], centre, width)
            for block, centre, width in zip(blocks, self.centres, self._widths, strict=True)
            if block.size
        ]
        return jnp.concatenate(parts)

    def log_ratio(self, actions: Float[Array, "K B T A"]) -> Float[Array, "K B T"]:
        """log q(a_t | a_<t) - log p(a_t): what a mixture says of a step depends on the steps before.

        By prefixes: log q(a_0..a_t) is a log-sum-exp over components, and its increase from t-1 to t is wanted.
        """
        ratios = [
            self.prior.log_ratio(actions, centre, width)
            for centre, width in zip(self.centres, self._widths, strict=True)
        ]
        if len(ratios) == 1:
            return ratios[0]
        blocks = np.array_split(np.arange(actions.shape[0]), len(ratios))
        shares = [len(block) / actions.shape[0] for block in blocks]
        prefixes = jnp.stack([jnp.cumsum(r, axis=-1) + _log(share) for r, share in zip(ratios, shares, strict=True)])
        return jnp.diff(jax.nn.logsumexp(prefixes, axis=0), axis=-1, prepend=0.0)

    @property
    def _widths(self) -> list[float]:
        return [self.width * 2.0**-m for m in range(len(self.centres))]


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
