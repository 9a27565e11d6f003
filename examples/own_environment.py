"""An environment of one's own: a point mass in the plane, pushed by forces between -2 and 5. Its reward is learned."""

from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from matplotlib.figure import Figure

from soft_mpcritic import Config, override, train


class PointMass(gym.Env):
    observation_space = Box(-np.inf, np.inf, (4,), np.float32)  # position and speed
    action_space = Box(-2, 5, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.append(self.np_random.uniform(-1, 1, 2), [0, 0]).astype(np.float32)
        self.time = 0
        return self.state, {}

    def step(self, action):
        self.time += 1
        speed = 0.95 * self.state[2:] + 0.1 * action
        self.state = np.append(self.state[:2] + 0.1 * speed, speed).astype(np.float32)
        return self.state, -float(self.state[:2] @ self.state[:2] + 0.01 * action @ action), False, self.time >= 60, {}


WIDE = override(Config(), {"critic.relative": True})  # the first, random, episodes cost a thousand times a good one


def main(config: Config | str = WIDE, total_steps: int = 3000, out: Path = Path("own_environment.png")) -> None:
    figure = Figure()
    axes = figure.subplots()
    run = train(PointMass, config, total_steps=total_steps, run_dir=out.with_suffix(""), resume=True)
    print("returns:", [round(episode.ret, 2) for episode in run.evaluate(episodes=5)])
    print("learning curve:", run.plot())
    controller, env = run.controller(), PointMass()
    for seed in range(6):
        controller.reset()
        path = [env.reset(seed=seed)[0]]
        while env.time < 60:
            path.append(env.step(controller(path[-1]))[0])
        axes.plot(*np.transpose(path)[:2], ".-", markersize=3)
    axes.plot(0, 0, "k+", markersize=15)
    axes.set(xlabel="x", ylabel="y", title="point mass: six episodes", aspect="equal")
    figure.savefig(out)


if __name__ == "__main__":
    main()
