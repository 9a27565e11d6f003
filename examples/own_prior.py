"""A prior of one's own: N(habit, variance), the actions that an operator would take anyway."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfinv
from jax.scipy.stats import norm
from matplotlib.figure import Figure

from soft_mpcritic import GaussianPrior, KnownModel, ObjectiveConfig, Parts, PlannerConfig, plan


@dataclass(frozen=True)
class HabitPrior:
    """p = N(habit, variance I), in the box [-1, 1]; drawn from is q = N(plan, width^2 variance I)."""

    habit: float
    variance: float

    def propose(self, points, plan, width=1.0):
        """Uniforms of (-1, 1) [K, B, T, A] become actions around the plan [B, T, A]."""
        return plan[None] + width * jnp.sqrt(2 * self.variance) * erfinv(points)

    def log_ratio(self, actions, plan, width=1.0):
        """log q(a_t) - log p(a_t), [K, B, T]."""
        scale = self.variance**0.5
        log_q = norm.logpdf(actions, plan[None], width * scale)
        return jnp.sum(log_q - norm.logpdf(actions, self.habit, scale), axis=-1)


def tank(obs, action):
    """Level of a tank, m: what flows in by the valve, and out by gravity."""
    return obs + 0.1 * (action - 0.4 * jnp.sqrt(jnp.maximum(obs, 0)))


def at_two_metres(obs, action, next_obs):
    return -((next_obs[:, 0] - 2) ** 2)


def main(samples: int = 1024, out: Path = Path("own_prior.png")) -> None:
    figure = Figure()
    axes = figure.subplots()
    model = KnownModel(tank, at_two_metres, 1, (0.0,), (1.0,))
    planner = PlannerConfig(horizon=15, num_samples=samples, iterations=8)
    objective = ObjectiveConfig(temperature=1.0, discount=1.0)
    for name, prior in (("prior around the middle", GaussianPrior(0.1)), ("habit: nearly shut", HabitPrior(-0.8, 0.1))):
        result = plan(model, [1.0], planner, objective, parts=Parts(prior=prior))
        print(f"{name}: soft value {result.value[0]:.2f}, {result.stats.effective_samples[0]:.0f} effective samples")
        axes.step(0.1 * np.arange(15), result.plan[0, :-1, 0], where="post", label=name)
    axes.set(xlabel="time, s", ylabel="valve", title="filling a tank to 2 m, under two priors")
    axes.legend()
    figure.savefig(out)


if __name__ == "__main__":
    main()
