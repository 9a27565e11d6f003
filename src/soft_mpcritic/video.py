"""Films of a controller at work, with OpenGL where the machine has it and as a drawing where it has not."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio
import numpy as np
from PIL import Image, ImageDraw

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import check
from soft_mpcritic.envs import EnvVector, Task
from soft_mpcritic.evaluation import controlled_steps
from soft_mpcritic.files import delivered
from soft_mpcritic.planner import Models

SIZE = 480  # pixels, both ways
MAX_FRAMES = 1000


def record_episode(agent: Agent, models: Models, seed: int, out: Path) -> None:
    """Writes one deterministic episode as a film in real time; the format follows from the file's ending."""
    envs = EnvVector(agent.task, 1, **render_options(agent.task))
    try:
        frame = _frame_source(envs.first_env)
        steps = controlled_steps(agent, jit(agent.planner.control), models, envs, [seed])
        rate = envs.first_env.metadata.get("render_fps", 30) / agent.task.action_repeat
        stride = max(int(rate // 50), 1)
        with delivered(out) as file, _film(file, rate / stride) as film:
            for count, step in enumerate(steps):
                if step.done[0] or count >= MAX_FRAMES:  # the environment has already begun the next episode
                    break
                if count % stride == 0:
                    film.append_data(frame())
    finally:
        envs.close()


@contextmanager
def _film(out: Path, rate: float) -> Iterator[Any]:
    timing: dict[str, Any] = {"duration": 1000 / rate, "loop": 0} if out.suffix == ".gif" else {"fps": rate}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # JAX warns of forks; this one goes on to run the encoder only
        film: Any = imageio.get_writer(out, **timing)
        try:
            with film:
                yield film
        except OSError:
            film.close = film.instance.close = lambda: None  # destructors would try again, and print tracebacks
            raise


def render_options(task: Task) -> dict[str, Any]:
    """OpenGL off screen if it works here, found out on an environment of its own."""
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    options = {"render_mode": "rgb_array"}
    with _unheard():
        try:
            with closing(task.make_env(**options)) as env:
                env.reset(seed=0)
                return options if isinstance(env.render(), np.ndarray) else {}
        except Exception:  # each way in which a graphics driver or the rendering itself is missing raises another
            return {}


@contextmanager
def _unheard() -> Iterator[None]:
    """Nothing is said of a driver that is missing, neither in warnings nor by destructors of what it half made."""
    told, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = told


def _frame_source(env: gym.Env) -> Callable[[], np.ndarray]:
    if env.render_mode == "rgb_array":
        return lambda: np.asarray(env.render())
    drawable = hasattr(env.unwrapped, "model") and hasattr(env.unwrapped, "data")
    check(drawable, "video", "be of an environment that renders or has a MuJoCo model", env.unwrapped, "leave it out")
    return SideView(env.unwrapped)


class SideView:
    """Draws a MuJoCo model from the side (x-z) without OpenGL: every moving geom as a thick line, the ground as one.

    The camera follows along x; its distance is that of the first frame.
    """

    def __init__(self, env: gym.Env) -> None:
        unwrapped: Any = env
        self._model, self._data = unwrapped.model, unwrapped.data
        self._moving = np.flatnonzero(self._model.geom_bodyid > 0)

    @cached_property
    def _scale(self) -> float:
        """Pixels per metre."""
        ends = self._ends()
        return 0.4 * SIZE / float(max(np.ptp(ends[..., 0]), np.abs(ends[..., 2]).max()))

    def __call__(self) -> np.ndarray:
        """One frame [480, 480, 3]."""
        image = Image.new("RGB", (SIZE, SIZE), (245, 246, 248))
        canvas = ImageDraw.Draw(image)
        canvas.line((0, 0.6 * SIZE, SIZE, 0.6 * SIZE), fill=(180, 184, 190), width=2)
        ends = self._ends()
        columns = SIZE / 2 + self._scale * (ends[..., 0] - ends[..., 0].mean())
        rows = 0.6 * SIZE - self._scale * ends[..., 2]
        for geom, x, y in zip(self._moving, columns, rows, strict=True):
            colour = self._colour(int(geom))
            half = max(self._scale * self._model.geom_size[geom, 0], 1)
            canvas.line((x[0], y[0], x[1], y[1]), fill=colour, width=int(2 * half))
            for tip in zip(x, y, strict=True):
                canvas.circle(tip, half, fill=colour)
        return np.asarray(image)

    def _colour(self, geom: int) -> tuple[int, ...]:
        """Red, green and blue, of the geom's material where it has one."""
        material = self._model.geom_matid[geom]
        rgba = self._model.geom_rgba[geom] if material < 0 else self._model.mat_rgba[material]
        return tuple(int(255 * part) for part in rgba[:3])

    def _ends(self) -> np.ndarray:
        """Both ends [geoms, 2, 3] of every moving geom's long axis, m."""
        axes = self._data.geom_xmat[self._moving].reshape(-1, 3, 3)[:, :, 2]
        reach = axes * self._model.geom_size[self._moving, 1:2]
        centres = self._data.geom_xpos[self._moving]
        return np.stack([centres - reach, centres + reach], axis=1)
