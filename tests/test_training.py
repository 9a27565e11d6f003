"""The host loop: runs that stop, resume, fail and report."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from soft_mpcritic.checkpoint import Checkpoints, pack
from soft_mpcritic.config import Config, ConfigError, TrainingConfig
from soft_mpcritic.diagnostics import DIAGNOSTIC_NAMES
from soft_mpcritic.envs import EnvironmentFaultError
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.files import read_table
from soft_mpcritic.planner import Models
from soft_mpcritic.recording import Schedule
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.training import Run, load_state, prepare_run, train
from soft_mpcritic.types import Episode, Trajectory
from tests.systems import small_config

ENV_ID = "InvertedDoublePendulum-v5"
TIMES = ("wall_seconds", "steps_per_second")


class Silent:
    """An observer that can act after a given environment step."""

    def __init__(self, at: int = -1, act: Any = None) -> None:
        self._at, self._act = at, act

    def on_metrics(self, row: dict[str, Any]) -> None:
        if row["env_step"] == self._at:
            self._act()

    def on_evaluation(self, env_step: int, episodes: list[Episode]) -> None: ...


def run(path: Path, total_steps: int, config: Config, observer: Silent | None = None, resume: bool = False) -> dict:
    folder = RunFolder(path)
    settings = prepare_run(folder, RunSettings(ENV_ID, "default", 0, total_steps, config), resume)
    return train(folder, settings, observer or Silent())


def without_times(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_table(path)]


def final_arrays(path: Path) -> dict[str, np.ndarray]:
    folder = RunFolder(path)
    _, state = load_state(folder, folder.read_settings())
    return pack(state)


def assert_same_run(one: Path, other: Path) -> None:
    a, b = final_arrays(one), final_arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for table in ("metrics.csv", "evaluations.csv"):
        assert without_times(one / table) == without_times(other / table)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "whole"
    summary = run(path, 110, small_config())
    assert summary["status"] == "finished"
    return path


def test_a_run_folder_holds_what_the_contract_says(uninterrupted: Path):
    for name in ("config.json", "metrics.csv", "evaluations.csv", "summary.json", "learning_curve.png"):
        assert (uninterrupted / name).is_file()
    metrics = read_table(uninterrupted / "metrics.csv")
    assert list(metrics[0])[:2] == ["env_step", "wall_seconds"]
    assert [int(row["env_step"]) for row in metrics] == [20, 40, 50, 60, 80, 100, 110]
    evaluations = read_table(uninterrupted / "evaluations.csv")
    assert list(evaluations[0]) == ["env_step", "wall_seconds", "episode", "seed", "return", "length"]
    assert [int(row["env_step"]) for row in evaluations] == [50, 50, 100, 100, 110, 110]
    summary = json.loads((uninterrupted / "summary.json").read_text())
    last = [float(row["return"]) for row in evaluations[-2:]]
    assert summary["evaluation_return_mean"] == pytest.approx(np.mean(last))
    assert summary["env_step"] == 110


def test_rows_of_evaluations_carry_their_diagnosis(uninterrupted: Path):
    rows = {int(row["env_step"]): row for row in read_table(uninterrupted / "metrics.csv")}
    always_known = [name for name in DIAGNOSTIC_NAMES if name.startswith(("target", "value_gap", "model", "reward"))]
    assert len(always_known) == 10
    for env_step, row in rows.items():
        known = [name for name in always_known if np.isfinite(float(row[name]))]
        assert known == (always_known if env_step in (50, 100, 110) else [])
    assert float(rows[50]["target_bias"]) != float(rows[100]["target_bias"])


def test_looking_changes_nothing(uninterrupted: Path, tmp_path: Path):
    """A run that is evaluated and diagnosed once, at its end, learns the same to the bit."""
    run(tmp_path / "unwatched", 110, small_config(training__evaluate_every=1000))
    watched, unwatched = final_arrays(uninterrupted), final_arrays(tmp_path / "unwatched")
    assert all(np.array_equal(watched[name], unwatched[name]) for name in watched)
    last = [without_times(path / "metrics.csv")[-1] for path in (uninterrupted, tmp_path / "unwatched")]
    assert all(last[0][name] == last[1][name] for name in DIAGNOSTIC_NAMES)


@pytest.mark.parametrize(
    ("returns", "kept", "best"),
    [
        ((3.0, 2.0, 1.0, 0.0), {30, 80, 120}, 30),
        ((1.0, 5.0, 2.0, 4.0), {60, 80, 120}, 60),
        ((1.0, 5.0, 5.0, 4.0), {90, 120}, 90),  # of equals, the later one
        ((1.0, 2.0, 3.0, 4.0), {90, 120}, 120),
        ((np.nan, -1.0, np.nan, -2.0), {60, 80, 120}, 60),
    ],
)
def test_checkpoints_rotate_but_for_that_of_the_best_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: tuple[float, ...], kept: set[int], best: int
):
    """They are due at 40, 80 and the end; evaluations at 30, 60, 90 and the end."""
    told, seen, play = iter(returns), [], Evaluator.play

    def pretend(evaluator: Evaluator, models: Models, *rest: Any) -> list[Trajectory]:
        seen.append(np.array(models.change_scale.mean))
        ret = next(told)
        return [played._replace(episode=played.episode._replace(ret=ret)) for played in play(evaluator, models, *rest)]

    monkeypatch.setattr(Evaluator, "play", pretend)
    summary = run(tmp_path / "run", 120, small_config(training__evaluate_every=30))
    folder = RunFolder(tmp_path / "run")
    assert Checkpoints(folder).steps == kept
    assert Checkpoints(folder).best == summary["best_checkpoint"] == best
    _, state = load_state(folder, folder.read_settings(), checkpoint="best")
    np.testing.assert_array_equal(state.models.change_scale.mean, seen[best // 30 - 1])
    _, newest = load_state(folder, folder.read_settings())
    np.testing.assert_array_equal(newest.models.change_scale.mean, seen[-1])


def test_a_checkpoint_is_chosen_among_those_that_are_kept(uninterrupted: Path):
    """The last two, and the one with the best evaluation, which may be one of them: of step 50, 100 or 110."""
    checkpoints = Checkpoints(RunFolder(uninterrupted))
    steps = sorted(int(path.name) for path in (uninterrupted / "checkpoints").iterdir() if path.name.isdigit())
    assert len(steps) >= 2
    assert [checkpoints.chosen(which) for which in ("newest", *steps)] == [110, *steps]
    assert checkpoints.chosen("best") in {50, 100, 110} & set(steps)
    kept = rf"\({', '.join(map(str, steps))}\)"
    with pytest.raises(ConfigError, match=f"checkpoint must be newest, best or a step that is kept {kept}, got 70"):
        checkpoints.chosen(70)
    bare = RunFolder(uninterrupted.parent / "bare")
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        Checkpoints(bare).chosen("best")
    shutil.copytree(uninterrupted / "checkpoints", bare.path / "checkpoints")
    with pytest.raises(ConfigError, match=f"no checkpoint of .* was evaluated: name one by its step {kept}"):
        Checkpoints(bare).chosen("best")


def test_the_same_seed_gives_the_same_run(uninterrupted: Path, tmp_path: Path):
    run(tmp_path / "again", 110, small_config())
    assert_same_run(uninterrupted, tmp_path / "again")


@pytest.mark.parametrize("stop_at", [60, *(pytest.param(step, marks=pytest.mark.slow) for step in (20, 100))])
def test_an_interrupted_run_resumes_bit_by_bit(uninterrupted: Path, tmp_path: Path, stop_at: int):
    """SIGINT in the seed phase, between checkpoints and evaluations, and in the middle of episodes."""
    path = tmp_path / "stopped"
    interrupt = Silent(stop_at, lambda: os.kill(os.getpid(), signal.SIGINT))
    summary = run(path, 110, small_config(), interrupt)
    assert summary["status"] == "interrupted"
    assert summary["env_step"] == stop_at
    assert run(path, 110, small_config(), resume=True)["status"] == "finished"
    assert_same_run(uninterrupted, path)


def test_a_run_stopped_before_its_first_step_goes_on(uninterrupted: Path, tmp_path: Path):
    """Its checkpoint has an empty replay."""
    folder = RunFolder(tmp_path / "early")
    early = Run(folder, prepare_run(folder, RunSettings(ENV_ID, "default", 0, 110, small_config()), False), Silent())
    early.go(lambda: True)
    assert early.finish()["env_step"] == 0
    early.close()
    run(folder.path, 110, small_config(), resume=True)
    assert_same_run(uninterrupted, folder.path)


def test_a_killed_run_goes_on_from_its_last_checkpoint(uninterrupted: Path, tmp_path: Path):
    """Rows written after the checkpoint are written anew, once."""
    path = tmp_path / "killed"

    class KilledError(Exception): ...

    def die() -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run(path, 110, small_config(), Silent(100, die))
    assert int(read_table(path / "metrics.csv")[-1]["env_step"]) == 100
    run(path, 110, small_config(), resume=True)
    assert_same_run(uninterrupted, path)


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path):
    before = final_arrays(uninterrupted)
    summary = run(uninterrupted, 110, small_config(), resume=True)
    assert summary["env_step"] == 110
    after = final_arrays(uninterrupted)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_several_environments_count_every_step(tmp_path: Path):
    summary = run(tmp_path / "four", 88, small_config(training__num_envs=4))
    assert summary["env_step"] == 88
    assert int(final_arrays(tmp_path / "four")[".replay.size"]) == 88


def test_who_trains_in_short_episodes_is_evaluated_in_whole_ones(tmp_path: Path):
    run(tmp_path / "short", 88, small_config(training__episode_steps=3))
    lengths = [float(row["train_length"]) for row in read_table(tmp_path / "short" / "metrics.csv")]
    assert all(3 <= length <= 88 / 20 for length in lengths)
    assert all(int(row["length"]) > 3 for row in read_table(tmp_path / "short" / "evaluations.csv"))


@pytest.mark.parametrize(
    ("episode_steps", "step", "longest"),
    [(0, 10**6, 0), (200, 1, 200), (200, 4_019, 200), (200, 4_020, 201), (200, 10**5, 5000)],
)
def test_episodes_may_be_longer_once_much_was_lived(episode_steps, step, longest):
    assert Schedule(TrainingConfig(episode_steps=episode_steps), 10**6).longest_episode(step) == longest


def test_resume_refuses_changed_settings_and_keeps_the_folder(uninterrupted: Path):
    with pytest.raises(ConfigError, match=r"planner\.horizon was 4 and cannot become 2"):
        run(uninterrupted, 110, small_config(planner__horizon=2), resume=True)


def test_an_environment_that_raises_costs_nothing_that_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = gym.make(ENV_ID).unwrapped.__class__
    honest, steps = target.step, []

    def broken(self: Any, action: np.ndarray) -> tuple:
        steps.append(0)
        if len(steps) == 25:
            raise ValueError("motor on fire")
        return honest(self, action)

    monkeypatch.setattr(target, "step", broken)
    with pytest.raises(
        EnvironmentFaultError, match=r"environment 0 raised ValueError: motor on fire .* step 25"
    ) as stopped:
        run(tmp_path / "raises", 110, small_config())
    assert stopped.value.trace.endswith("ValueError: motor on fire")
    assert int(final_arrays(tmp_path / "raises")[".replay.size"]) == 24


def test_a_bad_observation_is_named_and_what_was_learned_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The thirtieth step answers NaN: the error says where, and a checkpoint holds the twenty-nine before."""
    path = tmp_path / "bad"
    target = gym.make(ENV_ID).unwrapped.__class__
    honest, steps = target.step, []

    def broken(self: Any, action: np.ndarray) -> tuple:
        obs, *rest = honest(self, action)
        steps.append(0)
        return (obs * np.where(np.arange(9) == 3, np.nan, 1.0) if len(steps) == 30 else obs, *rest)

    monkeypatch.setattr(target, "step", broken)
    expected = "component 3 of the observation of environment 0 is nan, at environment step 30"
    with pytest.raises(EnvironmentFaultError, match=expected):
        run(path, 110, small_config())
    checkpoints = Checkpoints(RunFolder(path), 2)
    assert checkpoints.latest == 29
    monkeypatch.setattr(target, "step", honest)
    assert run(path, 60, small_config(), resume=True)["env_step"] == 60
