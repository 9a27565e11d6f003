"""Whole training runs in bad worlds, on bad disks, from damaged folders, and with learning that diverges."""

import dataclasses
import json
import math
import multiprocessing as mp
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jaxtyping
import numpy as np
import pytest
from gymnasium.spaces import Box

from soft_mpcritic.config import Config, ConfigError
from soft_mpcritic.divergence import MOST_RETURNS, DivergenceError
from soft_mpcritic.envs import TASKS, EnvironmentFaultError
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.files import StorageError, read_table
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.training import Run, load_state, prepare_run, train
from tests.faults.kills import differences
from tests.systems import never, small_config

ENV_ID, STEPS = "Bad-v0", 60
TINY = {
    "dynamics__width": 8,
    "critic__width": 8,
    "planner__horizon": 2,
    "target_planner__horizon": 2,
    "training__evaluate_every": 40,
    "training__checkpoint_every": 10,
    "training__checkpoints_kept": 3,
}


class Bad(gym.Env):
    """A point on a line. Its `mischief` may spoil any step by its number, over all environments of training."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    mischief: Callable[[int, tuple], Any] = staticmethod(lambda step, answer: answer)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs, self.time = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        self.training = seed is None or seed < 10_000  # evaluations have seeds of their own
        return self.obs, {}

    def step(self, action):
        self.time += 1
        self.obs = np.array([0.9 * self.obs[0] + 0.1 * action[0], self.obs[0]], np.float32)
        answer = self.obs, -float(self.obs[0] ** 2), False, self.time == 15, {}
        if not self.training:
            return answer
        Bad.steps += 1
        return type(self).mischief(Bad.steps, answer)


class Watcher:
    """Notes what it is shown, and can act after a given environment step."""

    def __init__(self, at: int = -1, act: Callable[[], Any] | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._at, self._act = at, act

    def on_metrics(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if row["env_step"] == self._at and self._act is not None:
            self._act()

    def on_evaluation(self, env_step: int, episodes: list) -> None: ...


@pytest.fixture(scope="module")
def registered():
    def reward(obs, action, next_obs):
        return -(next_obs[:, 0] ** 2)

    gym.register(ENV_ID, entry_point=lambda **_: Bad())
    TASKS[ENV_ID] = TaskSpec(reward, never)
    yield
    gym.registry.pop(ENV_ID)
    del TASKS[ENV_ID]


@pytest.fixture(autouse=True)
def sound_world(registered, monkeypatch):
    """Mischief ends with the test; and no run-time check of types complains before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(Bad, "mischief", staticmethod(lambda step, answer: answer))
    monkeypatch.setattr(Bad, "steps", 0)


def config(**changes: object) -> Config:
    return small_config(**{**TINY, **changes})


def run(path: Path, settings: Config | None = None, watcher: Watcher | None = None, steps: int = STEPS) -> dict:
    folder = RunFolder(path)
    asked = prepare_run(folder, RunSettings(ENV_ID, "default", 0, steps, settings or config()), True)
    return train(folder, asked, watcher or Watcher())


@pytest.fixture(scope="module")
def whole(registered, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    run(path)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    """The finished run, to be damaged: checkpoints of steps 40, 50 and 60."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def finite_models(path: Path) -> bool:
    folder = RunFolder(path)
    _, state = load_state(folder, folder.read_settings())
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.models))


# ------------------------------------------------------------------ worlds


def many_faults(step: int, answer: tuple) -> Any:
    obs, reward, *rest = answer
    match step:
        case 5 | 30:
            return (obs * np.nan, reward, *rest)
        case 20:  # the last of the seed phase: pretraining is not lost with it
            raise RuntimeError("motor on fire")
        case 33:
            return (obs, math.inf, *rest)
        case 37:
            return (np.zeros(5), reward, *rest)
        case 41:
            time.sleep(3)
    return answer


def test_faults_are_survived_and_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Bad, "mischief", staticmethod(many_faults))
    watcher = Watcher()
    settings = config(training__faults_tolerated=6, training__step_timeout=0.5)
    summary = run(tmp_path / "run", settings, watcher)
    assert (summary["status"], summary["env_step"], summary["faults"]) == ("finished", STEPS, 6)
    assert [row["faults"] for row in watcher.rows] == [2, 5, 6]
    assert finite_models(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    _, state = load_state(folder, folder.read_settings())
    assert int(state.replay.size) == STEPS - 6
    assert int(state.updates) == 5 + STEPS - 20
    for told in ("is nan", "motor on fire", "is inf", "shape (5,)", "did not answer within 0.5 s"):
        assert told in caplog.text


def test_too_many_faults_stop_the_run_after_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(Bad, "mischief", staticmethod(many_faults))
    with pytest.raises(EnvironmentFaultError) as caught:
        run(tmp_path / "run", config(training__faults_tolerated=2))
    assert str(caught.value) == (
        "component 0 of the observation of environment 0 is nan; 2 faults were tolerated, at environment step 30"
    )
    monkeypatch.setattr(Bad, "mischief", staticmethod(lambda step, answer: answer))
    summary = run(tmp_path / "run", config(training__faults_tolerated=9))
    assert (summary["status"], summary["faults"]) == ("finished", 3)


def test_an_evaluation_that_fails_costs_no_training(tmp_path, monkeypatch, caplog):
    honest = Bad.step

    def broken(self, action):
        if not self.training and self.time == 3 and Bad.steps == 40:
            raise OSError("cable")
        return honest(self, action)

    monkeypatch.setattr(Bad, "step", broken)
    summary = run(tmp_path / "run", config(training__faults_tolerated=1))
    assert (summary["status"], summary["faults"]) == ("finished", 1)
    steps = {int(row["env_step"]) for row in read_table(tmp_path / "run" / "evaluations.csv")}
    assert steps == {60} and "in an evaluation, environment 0 raised OSError: cable" in caplog.text


@pytest.mark.parametrize("scale", [pytest.param(1e-30, marks=pytest.mark.slow), 1e14])
def test_constant_and_huge_worlds_give_finite_numbers(tmp_path, monkeypatch, scale):
    """Up to the largest numbers that are let in; one below is no reason to stop."""
    huge = np.full(2, scale, np.float32)
    monkeypatch.setattr(Bad, "mischief", staticmethod(lambda _, answer: (huge, float(scale), False, answer[3], {})))
    assert run(tmp_path / "run")["status"] == "finished"
    assert finite_models(tmp_path / "run")


# -------------------------------------------------------------- divergence


def poison(started: list[Run]) -> None:
    """One weight of the critic becomes NaN, as by a bit that flips: no update is finite from then on."""
    (it,) = started
    state = it._state
    networks = jax.tree.map(lambda leaf: leaf * math.nan, state.models.critic.networks)
    critic = dataclasses.replace(state.models.critic, networks=networks)
    models = dataclasses.replace(state.models, critic=critic)
    it._leaves = jax.tree.leaves(dataclasses.replace(state, models=models))


@pytest.fixture
def started(monkeypatch) -> list[Run]:
    """The runs that were begun."""
    runs: list[Run] = []
    honest = Run.__init__

    def noted(self, *arguments: Any) -> None:
        honest(self, *arguments)
        runs.append(self)

    monkeypatch.setattr(Run, "__init__", noted)
    return runs


def test_a_run_that_diverges_goes_back_and_on_with_smaller_steps(tmp_path, started, caplog):
    watcher = Watcher(40, lambda: started and not watcher.rows[-1]["rollbacks"] and poison(started))
    summary = run(tmp_path / "run", config(training__skips_tolerated=5, training__log_every=5), watcher)
    assert (summary["status"], summary["rollbacks"], summary["skipped_updates"]) == ("finished", 2, 12)
    assert "back to environment step 40 with" in caplog.text  # written before the first update went wrong
    assert "back to environment step 30 with" in caplog.text
    folder = RunFolder(tmp_path / "run")
    _, state = load_state(folder, folder.read_settings())
    assert float(state.health.step_size) == 0.25 and finite_models(tmp_path / "run")
    steps = [int(row["env_step"]) for row in read_table(tmp_path / "run" / "metrics.csv")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def test_a_run_that_diverges_stops_where_it_is_told_to(tmp_path, started):
    watcher = Watcher(40, lambda: poison(started))
    settings = config(training__skips_tolerated=5, training__divergence="stop")
    with pytest.raises(DivergenceError, match="learning diverges: the last 5 updates were not finite, and not applied"):
        run(tmp_path / "run", settings, watcher)


def test_a_run_that_diverges_again_and_again_stops(tmp_path, started):
    watcher = Watcher(40, lambda: poison(started))
    with pytest.raises(DivergenceError, match=f"again after {MOST_RETURNS} returns to a checkpoint"):
        run(tmp_path / "run", config(training__skips_tolerated=2), watcher)


# ------------------------------------------------------------ disks, folders


def limit(size: int | None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_a_disk_that_is_full_for_a_while_costs_nothing(whole, tmp_path, caplog):
    watcher = Watcher(20, lambda: limit(300))
    honest = watcher.on_metrics

    def relieved(row: dict) -> None:
        honest(row)
        if row["env_step"] == 40:
            limit(None)

    watcher.on_metrics = relieved
    try:
        assert run(tmp_path / "run", None, watcher)["status"] == "finished"
    finally:
        limit(None)
    assert "no checkpoint at environment step 30" in caplog.text and "wait in memory" in caplog.text
    assert differences(whole, tmp_path / "run") == []


def test_a_disk_that_stays_full_leaves_the_last_checkpoint_to_go_on_from(whole, tmp_path):
    try:
        with pytest.raises(StorageError) as caught:
            run(tmp_path / "run", None, Watcher(20, lambda: limit(300)))
    finally:
        limit(None)
    assert "that of step 10 stands: make room, then go on with --resume." in str(caught.value)
    assert run(tmp_path / "run")["status"] == "finished"
    assert differences(whole, tmp_path / "run") == []


def change_flag(path: Path, flag: str) -> bool:
    """Of a folder and all in it; +i makes them read-only for everybody, root included. Could it be done?"""
    return subprocess.run(["chattr", "-R", flag, str(path)], check=False, capture_output=True).returncode == 0


def test_a_folder_that_becomes_read_only_leaves_the_last_checkpoint_to_go_on_from(whole, tmp_path):
    if shutil.which("chattr") is None or not change_flag(tmp_path, "+i"):
        pytest.skip("nothing can be made read-only here for whoever runs this")
    change_flag(tmp_path, "-i")
    path = tmp_path / "run"
    try:
        with pytest.raises(StorageError) as caught:
            run(path, None, Watcher(40, lambda: change_flag(path, "+i")))
        assert finite_models(path)
        assert "cannot be written" in refused(lambda: run(path))
    finally:
        change_flag(path, "-i")
    assert "that of step 30 stands: make it writable, then go on with --resume." in str(caught.value)
    assert run(path)["status"] == "finished"
    assert differences(whole, path) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_intact_checkpoint_is_used_and_the_damage_named(whole, copy, caplog):
    flip(copy / "checkpoints" / "60" / "state.safetensors")
    (copy / "checkpoints" / "50" / "progress.json").unlink()
    _, state = load_state(RunFolder(copy), RunFolder(copy).read_settings())
    assert int(state.updates) == 5 + 40 - 20
    assert run(copy)["status"] == "finished"
    for told in ("checkpoint 60 of", "state.safetensors is not what its checksum says", "progress.json is missing"):
        assert told in caplog.text
    assert differences(whole, copy) == []


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_intact_checkpoint_is_one_line(copy):
    for step in (40, 50, 60):
        flip(copy / "checkpoints" / str(step) / "state.safetensors")
    settings = RunFolder(copy).read_settings()
    for act in (lambda: run(copy), lambda: load_state(RunFolder(copy), settings)):
        text = refused(act)
        assert "no checkpoint of" in text and "40: state.safetensors is not" in text and "start another" in text


@pytest.mark.parametrize(
    "change",
    [{"episodes": 3}, {"means": {}}, {"env_step": "x"}, {"last_evaluation": [[1]]}, {"faults": None}],
    ids=str,
)
def test_crafted_counters_are_one_line(copy, change):
    from tests.test_archive import sign

    folder = copy / "checkpoints" / "60"
    record = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(record | change))
    sign(folder)
    assert "checkpoint 60 of" in refused(lambda: run(copy, steps=70))


def hold(path: Path, ready: Any) -> None:
    with RunFolder(path).held():
        ready.set()
        time.sleep(60)


def test_a_second_process_is_refused_until_the_first_is_gone(whole):
    context = mp.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(whole, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    assert "another process trains in" in refused(lambda: run(whole))
    process.kill()
    process.join()
    assert run(whole)["env_step"] == STEPS
