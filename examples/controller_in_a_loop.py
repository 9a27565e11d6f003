"""A trained controller in a control loop of one's own, with a deadline and a disturbance."""

from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

from soft_mpcritic import Config, train

PERIOD = 0.05  # s, the plant's


def main(
    config: Config | str = "default", total_steps: int = 3000, out: Path = Path("controller_in_a_loop.png")
) -> None:
    run = train("Pendulum-v1", config, total_steps=total_steps, run_dir=out.with_suffix(""), resume=True)
    controller = run.controller(deadline=PERIOD)  # elsewhere, later: Controller.load(run_dir, deadline=PERIOD)
    plant = gym.make("Pendulum-v1")
    obs, _ = plant.reset(seed=3)
    angles, values = [], []
    for tick in range(200):
        if tick == 120:
            plant.unwrapped.state[1] += 4.0  # somebody pushes it
        obs, *_ = plant.step(controller(obs))
        angles.append(np.arctan2(obs[1], obs[0]))
        values.append(float(controller.value))
    latencies = controller.latencies
    print(f"{latencies.count} ticks, {controller.misses} missed {1000 * PERIOD:.0f} ms;", end=" ")
    print(f"median {1000 * latencies.percentile(50):.1f} ms, longest {1000 * latencies.max:.1f} ms")
    figure = Figure()
    upper, lower = figure.subplots(2, sharex=True)
    time = PERIOD * np.arange(200)
    upper.plot(time, angles)
    upper.set(ylabel="angle, rad", title="swung up, pushed at 6 s")
    lower.plot(time, values)
    lower.set(xlabel="time, s", ylabel="soft value")
    figure.savefig(out)


if __name__ == "__main__":
    main()
