"""Films of a controller at work, with OpenGL where the machine has it and as a drawing where it has not."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio
import jax
import numpy as np
from PIL import Image, ImageDraw

from soft_mpcritic.agent import Agent
from soft_mpcritic.envs import EnvVector
from soft_mpcritic.evaluation import controlled_steps
from soft_mpcritic.planner import Models

SIZE = 480  # pixels, both ways
MAX_FRAMES = 1000


def record_episode(agent: Agent, models: Models, seed: int, out: Path) -> None:
    """Writes one deterministic episode as a film in real time; the format follows from the file's ending."""
    envs = EnvVector(agent.task, 1, **_render_options(agent))
    try:
        frame = _frame_source(envs.first_env)
        steps = controlled_steps(agent, jax.jit(agent.planner.control), models, envs, seed)
        rate = int(envs.first_env.metadata.get("render_fps", 30))
        stride = max(rate // 50, 1)
        film: Any
        with imageio.get_writer(out, fps=rate / stride) as film:
            for count, (_, done) in enumerate(steps):
                if done[0] or count >= MAX_FRAMES:  # the environment has already begun the next episode
                    break
                if count % stride == 0:
                    film.append_data(frame())
    finally:
        envs.close()


def _render_options(agent: Agent) -> dict[str, str]:
    """OpenGL off screen if it works here, found out on an environment of its own."""
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    options = {"render_mode": "rgb_array"}
    env = agent.task.make_env(**options)
    try:
        env.reset(seed=0)
        return options if isinstance(env.render(), np.ndarray) else {}
    except Exception:  # every way in which a graphics driver can be missing has an exception type of its own
        return {}
    finally:
        env.close()


def _frame_source(env: gym.Env) -> Callable[[], np.ndarray]:
    if env.render_mode == "rgb_array":
        return lambda: np.asarray(env.render())
    return lambda: draw_side_view(env.unwrapped)


def draw_side_view(env: gym.Env) -> np.ndarray:
    """[480, 480, 3] side view (x-z) of a MuJoCo model: every capsule, sphere or box as a thick line, the floor as one.

    Raises `AttributeError` for environments without a MuJoCo model.
    """
    model, data = env.model, env.data  # pyright: ignore[reportAttributeAccessIssue]
    image = Image.new("RGB", (SIZE, SIZE), (245, 246, 248))
    canvas = ImageDraw.Draw(image)
    movable = np.flatnonzero(model.geom_bodyid > 0)
    centre_x = float(data.geom_xpos[movable, 0].mean())
    scale = SIZE / (2.5 * max(float(model.stat.extent), 1.0))

    def pixel(point: np.ndarray) -> tuple[float, float]:
        return SIZE / 2 + scale * (point[0] - centre_x), 0.62 * SIZE - scale * point[2]

    ground = pixel(np.zeros(3))[1]
    canvas.line((0, ground, SIZE, ground), fill=(180, 184, 190), width=2)
    for geom in movable:
        radius, half_length = model.geom_size[geom, 0], model.geom_size[geom, 1]
        axis = data.geom_xmat[geom].reshape(3, 3)[:, 2] * half_length
        ends = [pixel(data.geom_xpos[geom] + sign * axis) for sign in (-1, 1)]
        colour = tuple(int(255 * c) for c in model.geom_rgba[geom, :3])
        width = max(int(2 * scale * radius), 2)
        canvas.line([*ends[0], *ends[1]], fill=colour, width=width)
        for x, y in ends:
            canvas.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)
    return np.asarray(image)
