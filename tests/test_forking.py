"""Forks: what one run learned goes on under other settings, in a folder of its own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from soft_mpcritic.checkpoint import Checkpoints
from soft_mpcritic.cli import main
from soft_mpcritic.comparison import EvaluatedRun, group_runs
from soft_mpcritic.config import Config, ConfigError
from soft_mpcritic.files import read_table
from soft_mpcritic.forking import fork, fork_seeds
from soft_mpcritic.run import execute, train
from soft_mpcritic.run_folder import RunFolder, RunSettings
from tests.systems import small_config
from tests.test_training import final_arrays, without_times

ENV_ID = "InvertedDoublePendulum-v5"
EVERY_50 = small_config(training__checkpoint_every=50)
WIDER = small_config(training__checkpoint_every=50, objective__variance=0.4)


def asked(config: Config = WIDER, total_steps: int = 110, env_id: str = ENV_ID, seed: int = 0) -> RunSettings:
    return RunSettings(env_id, "default", seed, total_steps, config)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "source")
    execute(folder, asked(EVERY_50, 50))
    return folder


def contents(folder: RunFolder) -> dict[str, bytes]:
    files = (path for path in folder.path.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in files}


def test_a_fork_with_the_same_settings_is_the_run_that_never_stopped(source: RunFolder, tmp_path: Path):
    execute(RunFolder(tmp_path / "whole"), asked(EVERY_50))
    execute(RunFolder(tmp_path / "fork"), asked(EVERY_50), source=source)
    whole, forked = final_arrays(tmp_path / "whole"), final_arrays(tmp_path / "fork")
    assert whole.keys() == forked.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], forked[name], err_msg=name)
    for table in ("metrics.csv", "evaluations.csv"):
        assert without_times(tmp_path / "whole" / table) == without_times(tmp_path / "fork" / table)


def test_a_fork_learns_by_its_own_settings_and_leaves_the_source_alone(source: RunFolder, tmp_path: Path):
    before, same, wider = contents(source), RunFolder(tmp_path / "same"), RunFolder(tmp_path / "wider")
    execute(same, asked(EVERY_50, 80), source=source)
    execute(wider, asked(WIDER, 80), source=source)
    assert contents(source) == before
    assert wider.read_settings() == asked(WIDER, 80)
    rows, others = without_times(wider.path / "metrics.csv"), without_times(same.path / "metrics.csv")
    assert rows[:2] == others[:2] == without_times(source.path / "metrics.csv")[:2]
    assert [row["env_step"] for row in rows] == ["20", "40", "50", "60", "80"]
    assert float(rows[-1]["plan_change"]) > float(others[-1]["plan_change"])  # wider proposals move plans further
    origin = {"run": str(source.path), "env_step": 50, "changed": {"objective.variance": [0.1, 0.4]}}
    assert wider.forks() == [origin]


def test_a_fork_is_resumed_and_forked_as_any_run(source: RunFolder, tmp_path: Path):
    first, second = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "second")
    fork(source, first, asked(WIDER, 60))
    assert not (first.path / "summary.json").exists()
    assert execute(first, asked(WIDER, 60), resume=True)["env_step"] == 60
    fork(first, second, asked(EVERY_50, 70))
    assert [(told["run"], told["env_step"]) for told in second.forks()] == [
        (str(source.path), 50),
        (str(first.path), 60),
    ]
    assert execute(second, asked(EVERY_50, 70), resume=True)["env_step"] == 70
    assert len(second.forks()) == 2


def test_a_fork_may_begin_to_push_and_cease_to(source: RunFolder, tmp_path: Path):
    pushed = small_config(training__checkpoint_every=50, training__push=1.0, training__push_hold=1.0)
    begun, same, ceased, goes_on = (RunFolder(tmp_path / name) for name in ("begun", "same", "ceased", "goes_on"))
    execute(begun, asked(pushed, 60), source=source)
    execute(same, asked(EVERY_50, 60), source=source)
    fork(begun, ceased, asked(EVERY_50, 70))
    assert execute(ceased, asked(EVERY_50, 70), resume=True)["env_step"] == 70
    arrays, others = final_arrays(begun.path), final_arrays(same.path)
    assert arrays.keys() - others.keys() == {".pending.push"}
    assert np.any(arrays[".pending.push"] != 0)
    rows, unpushed = arrays[".replay.records"], others[".replay.records"]
    np.testing.assert_array_equal(rows[:51], unpushed[:51])  # chosen before the fork
    [changed] = np.nonzero(rows[51] != unpushed[51])
    assert min(changed) == 9  # the same observation of nine numbers, and another action
    assert ".pending.push" not in final_arrays(ceased.path)
    fork(begun, goes_on, asked(pushed, 70))
    np.testing.assert_array_equal(final_arrays(goes_on.path)[".pending.push"], arrays[".pending.push"])


def test_a_fork_may_plan_further_or_less_far(source: RunFolder, tmp_path: Path):
    further = small_config(training__checkpoint_every=50, planner__horizon=6, target_planner__horizon=5)
    shorter = small_config(training__checkpoint_every=50, planner__horizon=1, target_planner__horizon=2)
    longer, short = RunFolder(tmp_path / "longer"), RunFolder(tmp_path / "short")
    fork(source, longer, asked(further, 60))
    fork(source, short, asked(shorter, 60))
    before, after, cut = (final_arrays(folder.path) for folder in (source, longer, short))
    plans, stamps = before[".replay.plans"][:, :-1], before[".replay.plans"][:, -1]
    horizon = plans.shape[1] - 1  # of the target planner, as the pendulum has one action
    np.testing.assert_array_equal(after[".replay.plans"][:, : horizon + 1], plans)
    assert not np.any(after[".replay.plans"][:, horizon + 1 : -1])
    np.testing.assert_array_equal(cut[".replay.plans"][:, :-1], plans[:, :3])
    np.testing.assert_array_equal(after[".replay.plans"][:, -1], stamps)
    np.testing.assert_array_equal(cut[".replay.plans"][:, -1], stamps)
    np.testing.assert_array_equal(cut[".pending.plan"], before[".pending.plan"][:, :2])
    for folder, settings in ((longer, further), (short, shorter)):
        assert execute(folder, asked(settings, 60), resume=True)["env_step"] == 60


def test_a_fork_goes_on_from_any_checkpoint_that_is_kept(source: RunFolder, tmp_path: Path):
    """Rows after it are of another future."""
    longer, target = RunFolder(tmp_path / "longer"), RunFolder(tmp_path / "fork")
    execute(longer, asked(EVERY_50, 100), source=source)
    best = Checkpoints(longer).best
    assert Checkpoints(longer).steps == {50, 100} and best in (50, 100)
    assert f"from step {best} " in fork(longer, RunFolder(tmp_path / "best"), asked(WIDER, 110), "best")
    execute(target, asked(WIDER, 70), source=longer, fork_at=50)
    assert [row["env_step"] for row in without_times(target.path / "metrics.csv")] == ["20", "40", "50", "60", "70"]
    with pytest.raises(ConfigError, match="total_steps must be > 100"):
        fork(longer, RunFolder(tmp_path / "none"), asked(WIDER, 100))
    with pytest.raises(ConfigError, match=r"checkpoint must be .*\(50, 100\), got 60"):
        fork(longer, RunFolder(tmp_path / "none"), asked(WIDER, 110), 60)
    with pytest.raises(ConfigError, match="fork_at must come with fork_from, got best"):
        execute(RunFolder(tmp_path / "none"), asked(WIDER, 110), fork_at="best")
    assert not (tmp_path / "none").exists()


def test_what_a_killed_fork_left_is_no_run_and_in_nobodys_way(source: RunFolder, tmp_path: Path, monkeypatch):
    target = RunFolder(tmp_path / "fork")

    def killed(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            fork(source, target, asked())
    assert not target.exists
    fork(source, target, asked())
    assert target.exists
    assert Checkpoints(target).newest_sound() == 50


def refusals() -> dict[str, tuple[RunSettings, str]]:
    return {
        "steps that it has": (asked(total_steps=50), "total_steps must be > 50, what .* has behind it, got 50"),
        "another task": (
            asked(env_id="Hopper-v5"),
            "env_id must stay 'InvertedDoublePendulum-v5' in a fork, got 'Hopper",
        ),
        "another seed": (asked(seed=1), "seed must stay 0 in a fork, got 1"),
        "other observations": (
            asked(small_config(training__observe_position=True)),
            "training.observe_position must stay False",
        ),
        "held actions": (
            asked(small_config(training__action_repeat=2)),
            "training.action_repeat must stay 1 in a fork, got 2",
        ),
        "a larger replay": (asked(small_config(training__capacity=1024)), "training.capacity must stay 512"),
        "other sizes": (
            asked(small_config(critic__width=16)),
            "Changed are .*critic.width.*sizes of networks",
        ),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_does_not_go_with_the_checkpoint_is_refused_before_anything_is_written(source, tmp_path, case):
    settings, told = refusals()[case]
    with pytest.raises(ConfigError, match=told) as caught:
        fork(source, RunFolder(tmp_path / "fork"), settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fork").exists()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"resume": True}, "fork_from must come without resume"),
        ({"num_seeds": 2}, "num_seeds must be 1 on the host"),
    ],
)
def test_a_fork_is_neither_resumed_at_once_nor_of_several_seeds_on_the_host(source, tmp_path, how, told):
    with pytest.raises(ConfigError, match=told):
        execute(RunFolder(tmp_path / "fork"), asked(), **how, source=source)
    assert not (tmp_path / "fork").exists()


def test_seeds_that_are_not_there_cannot_be_forked(source: RunFolder, tmp_path: Path):
    told = "a fork of seeds 0 to 1 needs them all, and .* holds 0: set --seed and --num-seeds to what it holds"
    with pytest.raises(ConfigError, match=told):
        fork_seeds(source, RunFolder(tmp_path / "fork"), asked(), 2)
    assert not (tmp_path / "fork").exists()


def test_folders_that_hold_another_run_or_none_yet_are_refused(source: RunFolder, tmp_path: Path):
    fresh = RunFolder(tmp_path / "fresh")
    fresh.create(asked())
    with pytest.raises(ConfigError, match="already holds a run: choose another --run-dir"):
        fork(source, fresh, asked())
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        fork(fresh, RunFolder(tmp_path / "fork"), asked())
    with pytest.raises(ConfigError, match="is not a run folder"):
        fork(RunFolder(tmp_path / "nothing"), RunFolder(tmp_path / "fork"), asked())


def test_the_command_takes_all_else_from_the_source(source: RunFolder, tmp_path: Path, capsys):
    target = tmp_path / "fork"
    words = ["--fork-from", str(source.path), "--run-dir", str(target), "--total-steps", "60"]
    assert main(["train", *words, "--objective.variance", "0.4"]) == 0
    assert (
        f"goes on from step 50 of {source.path}, with objective.variance 0.4 instead of 0.1" in capsys.readouterr().err
    )
    assert RunFolder(target).read_settings() == asked(WIDER, 60)
    assert {row["env_step"] for row in read_table(target / "evaluations.csv")} == {"50", "60"}
    assert main(["train", *words]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_fork_is_told_apart_from_runs_that_had_its_settings_throughout(source: RunFolder, tmp_path: Path, capsys):
    forked, throughout = RunFolder(tmp_path / "forked"), RunFolder(tmp_path / "throughout")
    execute(forked, asked(WIDER, 60), source=source)
    execute(throughout, asked(WIDER, 60))
    runs = [EvaluatedRun.read(folder) for folder in (forked, throughout)]
    labels = [group.label for group in group_runs(runs)]
    assert labels == ['forked at 50: {"objective.variance": [0.1, 0.4]}', "default"]
    assert main(["inspect", str(forked.path)]) == 0
    assert f"forked from: {source.path} at step 50" in capsys.readouterr().out


def test_python_forks_too(source: RunFolder, tmp_path: Path):
    run = train(ENV_ID, WIDER, total_steps=60, run_dir=tmp_path / "fork", fork_from=source.path)
    assert run.state.updates > 0
    assert json.loads((run.path / "config.json").read_text())["forks"][0]["env_step"] == 50
    assert dataclasses.replace(run.settings, preset="default") == asked(WIDER, 60)
