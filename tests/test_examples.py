"""Every example runs, with a budget of seconds, and draws its picture; every Python block of the guides runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.systems import imported, small_config

ROOT = Path(__file__).parent.parent
TINY: dict[str, dict[str, Any]] = {
    "own_environment": {"config": small_config(), "total_steps": 60},
    "own_reward": {"config": small_config(), "total_steps": 60},
    "half_known_model": {"config": small_config(training__evaluate_every=20), "total_steps": 60},
    "controller_in_a_loop": {"config": small_config(), "total_steps": 60},
    "own_model": {"steps": 20, "samples": 8},
    "own_prior": {"samples": 16},
}


def test_all_examples_are_here_and_short():
    paths = sorted((ROOT / "examples").glob("*.py"))
    assert [path.stem for path in paths] == sorted(TINY)
    assert all(len(path.read_text().splitlines()) < 60 for path in paths)


SLOW = ("controller_in_a_loop", "half_known_model", "own_environment", "own_reward")  # these train


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TINY])
def test_an_example_runs_and_draws(name, tmp_path):
    picture = tmp_path / f"{name}.png"
    imported(ROOT / "examples" / f"{name}.py").main(**TINY[name], out=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


LONG = (pytest.param(guide, marks=pytest.mark.slow) for guide in ("own_environment", "own_model", "extending"))


@pytest.mark.parametrize("guide", ["index", *LONG])
def test_the_code_of_a_guide_runs(guide, tmp_path, monkeypatch):
    """Blocks of one guide run one after another in one namespace; training is cut short."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{guide}.md").read_text(), re.DOTALL)
    assert blocks
    namespace: dict[str, Any] = {"__name__": "guide"}
    monkeypatch.setattr("soft_mpcritic.run.preset", lambda _: small_config())
    code = re.sub(r"total_steps=(\d)000", r"total_steps=\g<1>0", "\n\n".join(blocks))
    exec(compile(code, guide, "exec"), namespace)
