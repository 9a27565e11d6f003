"""A goal of one's own on top of a known task: a pendulum that is to spin, instead of standing upright."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from soft_mpcritic import Config, Parts, make_task, train

WANTED = 5.0  # rad/s


def spin(obs, action, next_obs):
    """Rows in, a number a row out; observations are cos, sin and speed, actions torques in N m."""
    return 1 - 0.1 * jnp.abs(next_obs[:, 2] - WANTED) - 0.001 * action[:, 0] ** 2


def main(config: Config | str = "default", total_steps: int = 3000, out: Path = Path("own_reward.png")) -> None:
    figure = Figure()
    axes = figure.subplots()
    parts = Parts(reward=spin)
    run = train("Pendulum-v1", config, total_steps=total_steps, run_dir=out.with_suffix(""), resume=True, parts=parts)
    print("returns by this reward:", [round(episode.ret, 1) for episode in run.evaluate(episodes=5)])
    controller, env = run.controller(), make_task("Pendulum-v1", parts=parts).make_env()
    for seed in range(4):
        controller.reset()
        obs, speeds, done = env.reset(seed=seed)[0], [], False
        while not done:
            obs, _, terminated, truncated, _ = env.step(controller(obs))
            speeds.append(obs[2])
            done = terminated or truncated
        axes.plot(0.05 * np.arange(len(speeds)), speeds)
    axes.axhline(WANTED, color="k", linestyle=":")
    axes.set(xlabel="time, s", ylabel="speed, rad/s", title="a pendulum that is to spin: four episodes")
    figure.savefig(out)


if __name__ == "__main__":
    main()
