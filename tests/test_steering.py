"""Other settings of control for a trained run, and refusals of those that were learned."""

import json
from pathlib import Path

import numpy as np
import pytest

from soft_mpcritic import Run
from soft_mpcritic.agent import Agent
from soft_mpcritic.cli import main
from soft_mpcritic.config import ConfigError, override
from soft_mpcritic.controller import Controller
from soft_mpcritic.envs import make_task
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.exported import ExportedController
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.steering import parse_changes, steered
from tests.systems import small_config, untrained_run

ENV_ID = "InvertedDoublePendulum-v5"
OBS = np.linspace(-0.1, 0.1, 9)
OTHERS = {"planner.horizon": 1, "planner.num_samples": 7, "objective.temperature": 2.5, "critic.control": "newest"}
TOLD = [word for name, value in OTHERS.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of no steps whose two critics differ."""
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", ENV_ID, slow_critic=1.5)


def test_what_control_is_free_to_be_is_changed_and_nothing_else():
    before = small_config()
    after = steered(before, OTHERS)
    assert after == override(before, OTHERS)
    assert after.target_planner == before.target_planner


@pytest.mark.parametrize(
    "name", ["critic.width", "target_planner.horizon", "objective.discount", "objective.goal", "x"]
)
def test_what_was_learned_with_cannot_be_changed(name):
    with pytest.raises(ConfigError, match=rf"must be among planner\.horizon, .*got '{name}': train another"):
        steered(small_config(), {name: 1})


def test_a_mean_that_was_not_kept_cannot_be_asked():
    with pytest.raises(ConfigError, match=r'critic\.control must be "newest" or "slow", got mean, which'):
        steered(small_config(critic__control="slow"), {"critic.control": "mean"})
    kept = steered(small_config(critic__control="mean"), {"critic.control": "slow"})
    assert kept.critic.control == "slow"


def test_values_are_checked_as_those_of_training_are():
    with pytest.raises(ConfigError, match="num_samples must be >= 1, got 0"):
        steered(small_config(), {"planner.num_samples": 0})


def test_pairs_are_read_as_numbers_truths_and_words():
    told = ["planner.num_samples=7", "objective.temperature=0.5", "planner.guided=true", "critic.control=slow"]
    assert list(parse_changes(told).values()) == [7, 0.5, True, "slow"]


@pytest.mark.parametrize("wrong", ["planner.horizon", "planner.horizon=", "=3", ""])
def test_what_is_no_pair_is_refused(wrong):
    with pytest.raises(ConfigError, match=rf"set must be NAME=VALUE, got '{wrong}'"):
        parse_changes([wrong])


def test_evaluation_controller_and_export_all_act_by_it(run_dir, tmp_path, capsys):
    settings = RunFolder(run_dir).read_settings()
    run = Run.load(run_dir, control=OTHERS)
    agent = Agent(make_task(ENV_ID), override(settings.config, OTHERS))
    evaluator = Evaluator(agent)
    expected = [episode.ret for episode in evaluator(run.state.models, 2)]
    evaluator.close()
    assert [episode.ret for episode in run.evaluate(2)] == expected
    assert main(["evaluate", str(run_dir), "--episodes", "2", "--json", *TOLD]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["returns"] == expected and record["control"] == OTHERS
    assert [episode.ret for episode in Run.load(run_dir).evaluate(2)] != expected

    action = Controller.load(run_dir, control=OTHERS)(OBS)
    assert main(["export", str(run_dir), str(tmp_path / "file.zip"), *TOLD]) == 0
    np.testing.assert_array_equal(ExportedController(tmp_path / "file.zip")(OBS), action)
    assert Controller.load(run_dir, control=OTHERS).plan.shape == (2, 1)
    assert np.any(Controller.load(run_dir)(OBS) != action)


def test_a_run_is_not_loaded_with_what_cannot_be(run_dir):
    with pytest.raises(ConfigError, match=r"critic\.width"):
        Run.load(run_dir, control={"critic.width": 8})


@pytest.mark.parametrize("command", [["evaluate"], ["export"], ["view"], ["bench", "control"]], ids=" ".join)
def test_every_command_that_controls_listens(run_dir, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr("soft_mpcritic.viewer.loop.check_viewer", lambda: None)
    file = [str(tmp_path / "file.zip")] if command == ["export"] else []
    assert main([*command, str(run_dir), *file, "--set", "critic.width=8"]) == 2
    assert "critic.width" in capsys.readouterr().err
