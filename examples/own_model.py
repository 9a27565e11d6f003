"""A model of one's own, and nothing learned: a pendulum swings up by its equations, for one mass or for any of five."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from soft_mpcritic import KnownModel, ModelPlanner, ObjectiveConfig, PlannerConfig

DT, GRAVITY, LENGTH = 0.05, 9.81, 1.0


def pendulum(obs, action, mass=1.0):
    """Angle from upright and speed, [R, 2]; the torque cannot hold it level."""
    angle, speed = obs[:, 0], obs[:, 1]
    speed = speed + DT * (1.5 * GRAVITY / LENGTH * jnp.sin(angle) + 3 / (mass * LENGTH**2) * action[:, 0])
    return jnp.stack([angle + DT * speed, speed], axis=-1)


def upright(obs, action, next_obs):
    return jnp.cos(next_obs[:, 0]) - 0.01 * next_obs[:, 1] ** 2 - 0.001 * action[:, 0] ** 2


BOX = (-2.5,), (2.5,)
KNOWN = KnownModel(pendulum, upright, 2, *BOX)
UNSURE = KnownModel(pendulum, upright, 2, *BOX, parameters=jnp.linspace(0.8, 1.2, 5))  # masses


def main(steps: int = 150, samples: int = 256, out: Path = Path("own_model.png")) -> None:
    figure = Figure()
    axes = figure.subplots()
    planner = PlannerConfig(horizon=30, num_samples=samples, scenarios="all_members")
    careful = ObjectiveConfig(variance=0.3, risk="worst")
    for name, model in (("mass known", KNOWN), ("mass 0.8 to 1.2 kg, the worst counts", UNSURE)):
        controller = ModelPlanner(model, planner, careful).controller(seed=1)
        obs, heights = np.array([np.pi, 0.0]), []
        for _ in range(steps):
            action = controller(obs)
            obs = np.asarray(pendulum(jnp.asarray(obs[None]), jnp.asarray(action[None]), mass=1.15))[0]
            heights.append(np.cos(obs[0]))
        print(f"{name}: height of the last second {np.mean(heights[-20:]):.3f} m, median solve", end=" ")
        print(f"{1000 * controller.latencies.percentile(50):.1f} ms")
        axes.plot(DT * np.arange(steps), heights, label=name)
    axes.set(xlabel="time, s", ylabel="height, m", title="a pendulum of 1.15 kg swings up")
    axes.legend()
    figure.savefig(out)


if __name__ == "__main__":
    main()
