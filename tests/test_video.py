"""Films, with and without OpenGL."""

import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from PIL import Image

from soft_mpcritic import video
from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.envs import Task, make_task
from tests.systems import small_config


def film_without_opengl(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "render_options", lambda task: {})
    agent = Agent(make_task("InvertedDoublePendulum-v5"), small_config())
    models = jit(agent.init)(jax.random.key(0)).models
    video.record_episode(agent, models, 0, out)


def test_an_episode_is_filmed_as_a_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    film_without_opengl(tmp_path / "film.gif", monkeypatch)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (480, 480)
        assert getattr(film, "n_frames", 1) >= 3
        first = np.asarray(film.convert("RGB"), int)
        film.seek(2)
        assert np.abs(first - np.asarray(film.convert("RGB"), int)).max() > 50


def test_an_episode_is_filmed_as_an_mp4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    film_without_opengl(tmp_path / "film.mp4", monkeypatch)
    content = (tmp_path / "film.mp4").read_bytes()
    assert content[4:8] == b"ftyp"
    assert len(content) > 1000


def test_the_drawing_shows_where_the_pole_is():
    """Upright, the poles' colour stands above the rail and not below; leaning right, right of the cart."""
    env = make_task("InvertedDoublePendulum-v5").make_env()
    env.reset(seed=0)
    inner = env.unwrapped
    view = video.SideView(inner)

    def pole_pixels(angle: float) -> tuple[float, float]:
        inner.set_state(np.array([0, angle, 0.0]), np.zeros(3))  # pyright: ignore[reportAttributeAccessIssue]
        rows, columns = np.nonzero(np.all(view() == (0, 178, 178), axis=-1))
        return float(rows.mean()), float(columns.mean() - 240)

    upright, leaning = pole_pixels(0.0), pole_pixels(0.5)
    assert upright[0] < 0.6 * video.SIZE
    assert abs(upright[1]) < 3
    assert leaning[1] > 3


def test_nothing_is_said_of_a_graphics_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    """Neither by warnings nor by the destructors of what was half made."""
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)

    class HalfMade:
        def __del__(self) -> None:
            raise AttributeError("no driver")

    class Driverless(gym.Env):
        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return None, {}

        def render(self) -> Any:
            warnings.warn("no driver", stacklevel=1)
            HalfMade()
            raise RuntimeError("no driver")

    monkeypatch.setattr(Task, "make_env", lambda *_, **__: Driverless())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert video.render_options(make_task("Pendulum-v1")) == {}
    assert (raised, warned) == ([], [])
