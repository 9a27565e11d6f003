"""Films, with and without OpenGL."""

import warnings
from typing import Any

import imageio.v2 as imageio
import jax
import numpy as np
import pytest

from soft_mpcritic import video
from soft_mpcritic.agent import Agent
from soft_mpcritic.envs import make_task
from tests.systems import small_config


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_an_episode_is_filmed_without_opengl(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(video, "_render_options", lambda agent: {})
    agent = Agent(make_task("InvertedDoublePendulum-v5"), small_config())
    models = jax.jit(agent.init)(jax.random.key(0)).models
    out = tmp_path / f"film{ending}"
    video.record_episode(agent, models, 0, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the decoder is forked beside JAX
        film: Any
        with imageio.get_reader(out) as film:
            frames = [np.asarray(frame) for frame in film.iter_data()]
    assert len(frames) >= 3
    assert frames[0].shape[:2] == (480, 480)
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).max() > 50


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
