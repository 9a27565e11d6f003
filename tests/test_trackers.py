"""Services that show curves: told everything once, known again on resume, and never in the way of a run."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest

from soft_mpcritic import trackers
from soft_mpcritic.cli import main
from soft_mpcritic.config import ConfigError
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.trackers import Shielded, check_tracker, make_tracker
from soft_mpcritic.training import prepare_run, train
from tests.systems import small_config
from tests.test_training import ENV_ID, Silent

SETTINGS = {"planner": {"horizon": 4}, "training": {"tracker": "mlflow"}}


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is an extra")


class Diary:
    """A tracker that writes down what it is told, and fails when it is told to."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.fails_at, self.closed = fails_at, 0

    def add(self, step: int, wall_time: float, values: Any) -> None:
        if len(self.points) == self.fails_at:
            raise ConnectionError("no route to the service")
        self.points.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


def train_with(diary: Diary, path: Path, steps: int, monkeypatch: pytest.MonkeyPatch, resume: bool = False) -> None:
    monkeypatch.setattr(trackers, "Wandb", lambda folder, settings: diary)
    settings = RunSettings(ENV_ID, "default", 0, steps, small_config(training__tracker="wandb"))
    train(RunFolder(path), prepare_run(RunFolder(path), settings, resume), Silent())


def test_a_run_tells_its_tracker_every_point_and_takes_leave(tmp_path, monkeypatch):
    diary = Diary()
    train_with(diary, tmp_path, 60, monkeypatch)
    steps = [step for step, values in diary.points if "train/critic_loss" in values]
    assert steps == [20, 40, 50, 60] and diary.closed == 1
    assert [step for step, values in diary.points if "evaluation/return" in values] == [50, 60]
    train_with(diary, tmp_path, 80, monkeypatch, resume=True)
    assert diary.points[-1][0] == 80 and diary.closed == 2


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    diary = Diary(fails_at=1)
    with caplog.at_level(logging.WARNING):
        train_with(diary, tmp_path, 60, monkeypatch)
    assert caplog.text.count("no more curves for wandb: no route to the service") == 1
    assert RunFolder(tmp_path).has_checkpoints and len(diary.points) == 1 and diary.closed == 0


def test_a_tracker_that_cannot_be_made_is_done_without(caplog):
    shielded = Shielded("wandb", lambda: 1 / 0)  # pyright: ignore[reportArgumentType]
    shielded.add(1, 0.0, {"a": 1.0})
    shielded.close()
    assert caplog.text.count("no more curves for wandb") == 1


def test_a_package_that_is_missing_is_named_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(ConfigError, match=r"needs a package: pip install 'soft-mpcritic\[wandb\]'"):
        check_tracker("wandb")
    check_tracker("none")
    assert main(["train", ENV_ID, "--training.tracker", "wandb", "--run-dir", str(tmp_path / "run")]) == 2
    assert "soft-mpcritic[wandb]" in capsys.readouterr().err and not (tmp_path / "run").exists()


@installed("mlflow")
@pytest.mark.filterwarnings("ignore")  # a foreign package's own
def test_mlflow_goes_on_with_the_run_that_it_knows(tmp_path, monkeypatch):
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (10, 20):
        tracker = make_tracker("mlflow", folder, SETTINGS)
        tracker.add(step, 1000.0 + step, {"train/critic_loss": float(step)})
        tracker.close()
    client = MlflowClient()
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["planner.horizon"] == "4"
    curve = client.get_metric_history(run.info.run_id, "train/critic_loss")
    assert sorted((point.step, point.value) for point in curve) == [(10, 10.0), (20, 20.0)]


@pytest.mark.slow
@installed("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_a_run_offline_under_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (10, 20):
        tracker = make_tracker("wandb", tmp_path, SETTINGS)
        tracker.add(step, 1000.0 + step, {"train/critic_loss": float(step)})
        tracker.close()
    names = {path.name.split("-")[3] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(names) == 1 and list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
