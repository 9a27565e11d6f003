"""Half-known: the kinematics and gravity of a pendulum are told, as equations; friction and the rest are learned."""

from pathlib import Path

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from soft_mpcritic import Config, Parts, override, train


class Rusty(gym.Wrapper):
    """Pendulum-v1 with friction that nobody told."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(gym.make("Pendulum-v1", render_mode=render_mode))

    def step(self, action):
        angle, speed = self.unwrapped.state
        self.unwrapped.state = np.array([angle, speed - 0.05 * (0.4 * speed + 0.8 * np.tanh(10 * speed))])
        return self.env.step(action)


def textbook(obs, action):
    """Where a step would lead without friction: observations are cos, sin and speed of the angle from upright."""
    angle = jnp.arctan2(obs[:, 1], obs[:, 0])
    speed = jnp.clip(obs[:, 2] + 0.05 * (15 * jnp.sin(angle) + 3 * action[:, 0]), -8, 8)
    angle = angle + 0.05 * speed
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed], axis=-1)


OFTEN = override(Config(), {"training.evaluate_every": 500})


def main(config: Config | str = OFTEN, total_steps: int = 2500, out: Path = Path("half_known_model.png")) -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    for name, nominal in (("half-known", textbook), ("learned from nothing", None)):
        folder = out.with_name(f"{out.stem}-{name.split()[0]}")
        parts = Parts(nominal=nominal)
        run = train(Rusty, config, total_steps=total_steps, run_dir=folder, resume=True, parts=parts)
        returns = [episode.ret for episode in run.evaluate(episodes=5)]
        metrics = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)
        metrics = metrics[np.isfinite(metrics["model_error_first"])]  # the rows of evaluations
        print(f"{name}: mean return {np.mean(returns):.0f}, error of a step {metrics['model_error_first'][-1]:.4f}")
        axes.semilogy(metrics["env_step"], metrics["model_error_first"], "o-", label=name)
    axes.set(xlabel="environment steps", ylabel="error of one step", title="a rusty pendulum: error of the models")
    axes.legend()
    figure.savefig(out)


if __name__ == "__main__":
    main()
