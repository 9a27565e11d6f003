"""Action priors, each with the proposal that is drawn around a plan and its exact density ratio.

Points come from a sampler as uniforms on (-1, 1); a prior turns them into actions by inverting the proposal's
distribution function, so that every sampler works with every prior. With z uniform on (-1, 1),
sqrt(2) erfinv(z) is standard normal. A proposal may be narrower than its prior: `width` is in units of the prior's
deviation.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax.scipy.special import erf, erfinv
from jaxtyping import Array, Float

INSIDE = 1 - 2.0**-24  # the float32 next to 1


@dataclass(frozen=True)
class GaussianPrior:
    """p = N(0, Sigma), q = N(plan, width^2 Sigma), Sigma = variance I.

    Samples may leave the box: the box is a property of the plant, which clips.
    """

    variance: float

    def propose(
        self, points: Float[Array, "K B T A"], plan: Float[Array, "B T A"], width: float = 1.0
    ) -> Float[Array, "K B T A"]:
        return plan[None] + width * math.sqrt(2 * self.variance) * erfinv(points)

    def log_ratio(
        self, actions: Float[Array, "K B T A"], plan: Float[Array, "B T A"], width: float = 1.0
    ) -> Float[Array, "K B T"]:
        """The log of N(a; U, w^2 Sigma) / N(a; 0, Sigma): with d = (a - U) / w, (a - d)(a + d) / 2 Sigma - log w."""
        scaled = (actions - plan[None]) / width
        exponent = (actions - scaled) * (actions + scaled) / (2 * self.variance)
        return jnp.sum(exponent - math.log(width), axis=-1)


@dataclass(frozen=True)
class UniformPrior:
    """p = 2^-A on the box [-1, 1]^A; q is the Gaussian N(plan, width^2 variance I) truncated to the box.

    Truncation, rather than drawing outside and masking, keeps every sample useful when the plan is near an edge.
    """

    variance: float

    def propose(
        self, points: Float[Array, "K B T A"], plan: Float[Array, "B T A"], width: float = 1.0
    ) -> Float[Array, "K B T A"]:
        scale = self._scale(width)
        lower, upper = _erf_bounds(plan, scale)
        centred = lower[None] + 0.5 * (1 + points) * (upper - lower)[None]
        centred = jnp.clip(centred, -INSIDE, INSIDE)  # rounded to 1, it would be thrown to the far face
        return jnp.clip(plan[None] + scale * erfinv(centred), -1, 1)

    def log_ratio(
        self, actions: Float[Array, "K B T A"], plan: Float[Array, "B T A"], width: float = 1.0
    ) -> Float[Array, "K B T"]:
        """log of N(a; U, w^2 Sigma) / (P(box | U) 2^-A), a product over components."""
        scale = self._scale(width)
        lower, upper = _erf_bounds(plan, scale)
        log_mass = jnp.log(0.5 * (upper - lower))
        log_normal = -(((actions - plan[None]) / scale) ** 2) - math.log(math.sqrt(math.pi) * scale)
        return jnp.sum(log_normal - log_mass[None] + math.log(2), axis=-1)

    def _scale(self, width: float) -> float:
        """sqrt(2) times the deviation of the untruncated proposal."""
        return width * math.sqrt(2 * self.variance)


def _erf_bounds(plan: Float[Array, "B T A"], scale: float) -> tuple[Float[Array, "B T A"], Float[Array, "B T A"]]:
    """2 CDF - 1 of the untruncated proposal at the box's two faces."""
    return erf((-1 - plan) / scale), erf((1 - plan) / scale)
