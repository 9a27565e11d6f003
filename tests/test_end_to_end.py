"""The commands as a user gives them, on networks small enough for a test; and what the README says."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from soft_mpcritic.cli import main
from soft_mpcritic.diagnosis import diagnose_run, in_words
from soft_mpcritic.diagnostics import Effort
from soft_mpcritic.run_folder import RunFolder
from tests.systems import SMALL

README = Path(__file__).parent.parent / "README.md"
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "InvertedDoublePendulum-v5", "--run-dir", str(path), "--total-steps", "60", *FLAGS]) == 0
    return path


def test_evaluate_prints_one_json_object_and_nothing_else(trained, capsys):
    assert main(["evaluate", str(trained), "--episodes", "3", "--json"]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 1
    record = json.loads(printed[0])
    assert len(record["returns"]) == 3
    assert record["return_min"] <= record["return_mean"] <= record["return_max"]


def test_the_checkpoint_that_is_evaluated_is_told_by_its_step(trained, capsys):
    means = RunFolder(trained).mean_returns()
    best = max(means, key=lambda step: (means[step], step))
    for told, step in (("newest", 60), ("best", best), ("60", 60)):
        assert main(["evaluate", str(trained), "--episodes", "1", "--checkpoint", told, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["checkpoint"] == step


def test_a_checkpoint_that_is_not_kept_is_refused_in_one_line(trained, capsys):
    assert main(["evaluate", str(trained), "--checkpoint", "7"]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "checkpoint must be newest, best or a step that is kept (" in told and told.endswith("60), got 7: name one.")


def test_evaluation_is_repeatable_and_does_not_depend_on_the_number_of_episodes(trained, capsys):
    returns = []
    for _ in range(2):
        assert main(["evaluate", str(trained), "--episodes", "2", "--json"]) == 0
        returns.append(json.loads(capsys.readouterr().out)["returns"])
    assert returns[0] == returns[1]


def test_plot_draws_a_picture(trained, tmp_path, capsys):
    out = tmp_path / "curve.png"
    assert main(["plot", str(trained), str(trained), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(out)


def test_diagnose_leaves_a_picture_and_numbers_and_says_what_they_say(trained, capsys, monkeypatch):
    """With little effort; 60 steps suffice for numbers, not for good ones. JSON holds no NaN."""
    little = Effort(steps=50, windows=50, solves=4, reference_samples=32)
    monkeypatch.setattr("soft_mpcritic.cli.looking.diagnose_run", partial(diagnose_run, effort=little))
    assert main(["diagnose", str(trained), "--episodes", "2", "--json"]) == 0
    (printed,) = capsys.readouterr().out.strip().splitlines()
    record = json.loads(printed, parse_constant=pytest.fail)
    assert record == json.loads((trained / "diagnose.json").read_text(), parse_constant=pytest.fail)
    assert (trained / "diagnose.png").read_bytes().startswith(b"\x89PNG")
    assert len(record["models"]["error_by_step"]) == 4
    told = in_words(record)
    for what in ("value:", "targets:", "kept plans:", "models:", "ensemble:", "32 samples a solve"):
        assert what in told


def test_resume_needs_no_settings_said_again(trained, capsys):
    assert main(["train", "--run-dir", str(trained), "--resume", "--total-steps", "80"]) == 0
    assert json.loads((trained / "summary.json").read_text())["env_step"] == 80
    assert json.loads((trained / "config.json").read_text())["total_steps"] == 80


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
