"""Planning: priors, samplers, rollouts, scenarios and MPPI. Knows no network and no environment."""

from soft_mpcritic.planning.mppi import MPPI, fit_horizon, from_box, shift
from soft_mpcritic.planning.priors import GaussianPrior, UniformPrior
from soft_mpcritic.planning.samplers import SAMPLERS, antithetic, iid, sobol
from soft_mpcritic.planning.scenarios import CVaRReturn, EntropicReturn, Scenarios, mean_return, worst_return

__all__ = [
    "MPPI",
    "SAMPLERS",
    "CVaRReturn",
    "EntropicReturn",
    "GaussianPrior",
    "Scenarios",
    "UniformPrior",
    "antithetic",
    "fit_horizon",
    "from_box",
    "iid",
    "mean_return",
    "shift",
    "sobol",
    "worst_return",
]
