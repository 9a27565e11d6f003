import os
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version

import gymnasium as gym
import jaxtyping
import numpy as np
import pytest
from gymnasium import spaces

from soft_mpcritic import cli
from soft_mpcritic import run as running
from soft_mpcritic.config import override
from soft_mpcritic.console import Console
from soft_mpcritic.envs import registry
from soft_mpcritic.presets import preset
from soft_mpcritic.run_folder import RunDescription, RunFolder, RunSettings

EVALUATIONS = "env_step,wall_seconds,episode,seed,return,length\n"
PENDULUM = "InvertedDoublePendulum-v5"
SETTINGS = RunSettings(PENDULUM, "paper", 3, 1000, override(preset("paper"), {"planner.horizon": 3}))


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Nothing is written but here, and no run-time check of types complains before the command itself does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    return tmp_path


@pytest.fixture
def run_folder(workplace) -> RunFolder:
    folder = RunFolder(workplace / "run")
    folder.create(SETTINGS)
    return folder


@pytest.fixture
def refused(capsys, workplace):
    """Runs a command that the user can mend; the one line that it says. It may leave nothing on the disk."""

    def run(*arguments: object) -> str:
        before = sorted(workplace.rglob("*"))
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 2
        assert out == ""
        assert err.count("\n") == 1 and err.endswith("\n"), err
        assert err.startswith("soft-mpcritic: ")
        assert sorted(workplace.rglob("*")) == before
        return err.removeprefix("soft-mpcritic: ").rstrip("\n")

    return run


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"soft-mpcritic {version('soft-mpcritic')}\n"


@pytest.mark.parametrize("wrong", ["InvertedDoublePendulum-v4x", "InvertedDoublePendulum", "invertedDoublePendulum-v5"])
def test_an_unknown_environment_is_refused_with_near_matches(refused, wrong):
    text = refused("train", wrong)
    assert repr(wrong) in text and "did you mean " in text and PENDULUM in text


def test_a_misspelt_hopper_is_recognised(refused):
    assert "did you mean Hopper-v" in refused("train", "Hoper-v5")


def test_a_name_near_to_nothing_is_refused(refused):
    text = refused("train", "qqqqqqqq")
    assert "'qqqqqqqq'" in text and "gymnasium.registry" in text


def test_discrete_actions_are_refused(refused):
    text = refused("train", "CartPole-v1")
    assert "action space of 'CartPole-v1' must be a Box, got Discrete(2)" in text and "DQN" in text


BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture
def foreign():
    """Registers an environment of given spaces as Foreign-v0."""

    def register(observation_space: spaces.Space, action_space: spaces.Space) -> str:
        class Foreign(gym.Env):
            def __init__(self) -> None:
                self.observation_space, self.action_space = observation_space, action_space

        gym.register("Foreign-v0", entry_point=lambda **_: Foreign())
        return "Foreign-v0"

    yield register
    gym.registry.pop("Foreign-v0", None)


@pytest.mark.parametrize(
    ("observation", "action", "words"),
    [
        (BOX, spaces.MultiDiscrete([2, 3]), ("action space of 'Foreign-v0' must be a Box, got MultiDiscrete", "PPO")),
        (BOX, spaces.Dict({"a": BOX, "b": spaces.Discrete(2)}), ("must be of Boxes alone", "hybrid", "PPO")),
        (BOX, spaces.Box(0, 9, (2,), np.int32), ("must be of real numbers", "int32", "DQN or PPO")),
        (BOX, spaces.Box(-np.inf, np.inf, (2,), np.float32), ("finite bounds", "inf", "TransformAction(env", "(2,)")),
        (BOX, spaces.Box(-1e10, 1e10, (2,), np.float32), ("finite bounds", "1e+10", "TransformAction(env")),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), BOX, ("observation space of 'Foreign-v0'", "images", "(8, 8, 3)")),
        (spaces.Box(0, 1, (3, 64, 64), np.float32), BOX, ("images", "(3, 64, 64)", "vision encoder")),
        (spaces.Dict({"a": BOX, "b": spaces.Box(0, 255, (8, 8), np.uint8)}), BOX, ("images", "observe the state")),
        (spaces.Sequence(BOX), BOX, ("observation space", "got Sequence", "FlattenObservation")),
        (spaces.Dict({}), BOX, ("observation space", "at least one number")),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, spaces.Space) else "",
)
def test_spaces_that_do_not_fit_are_refused_with_the_remedy(refused, foreign, observation, action, words):
    text = refused("train", foreign(observation, action))
    assert all(word in text for word in words), text


def test_an_environment_that_cannot_be_made_is_refused(refused):
    def broken(**_: object) -> gym.Env:
        raise RuntimeError("no licence\nfor this simulator")

    gym.register("Foreign-v0", entry_point=broken)
    try:
        assert "'Foreign-v0' cannot be made: no licence for this simulator" in refused("train", "Foreign-v0")
    finally:
        gym.registry.pop("Foreign-v0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--planner.horizon", "-1"], ("horizon", "-1", "use 0")),
        (["--planner.horizon", "1.5"], ("horizon", "1.5")),
        (["--planner.horizon"], ("horizon",)),
        (["--objective.temperature", "0"], ("temperature", "got 0", "try 0.1")),
        (["--objective.temperature", "nan"], ("temperature", "nan", "try 0.1")),
        (["--objective.discount", "1.01"], ("discount", "1.01", "0.99")),
        (["--objective.discount", "1"], ("discount", "critic.unit")),
        (["--objective.prior", "cauchy"], ("prior", "cauchy", "gaussian", "uniform")),
        (["--planner.num-samples", "0"], ("num_samples", "got 0", "16")),
        (["--target-planner.num-samples", "0"], ("num_samples", "got 0", "16")),
        (["--critic.heads", "5"], ("heads", "got 5", "2")),
        (["--training.num-envs", "0"], ("num_envs", "got 0")),
        (["--preset", "papr"], ("preset", "'papr'", "default, locomotion, paper, paper-uniform")),
        (["--preset=papr"], ("preset", "'papr'", "default, locomotion, paper, paper-uniform")),
        (["--preset"], ("preset",)),
        (["--planer.horizon", "3"], ("--planer.horizon", "--planner.horizon")),
        (["--horizon", "3"], ("--horizon",)),
        (["--seed", "-1"], ("seed", "got -1")),
        (["--seed", "x"], ("seed", "x")),
        (["--total-steps", "0"], ("total_steps", "got 0")),
        (["--total-steps", "-5"], ("total_steps", "got -5")),
        (["--backend", "gpu"], ("backend", "host, device", "'gpu'")),
        (["--matmul-precision", "low"], ("matmul_precision", "highest, high, default", "'low'")),
        (["--num-envs", "0"], ("num_envs", "got 0")),
        (["--num-seeds", "0"], ("num_seeds", "got 0")),
        (["--num-seeds", "3"], ("num_seeds", "got 3", "--backend device")),
        (["--backend", "device", "--seed", str(2**32 - 1), "--num-seeds", "2"], ("seed", "lie in")),
        (
            ["--backend", "device", "--num-seeds", "1000000000"],
            ("num_seeds 1000000000", "GiB", "--num-seeds ", " fits"),
        ),
        (["--backend", "device", "--num-envs", "900000"], ("num_envs 900000", "GiB", "--num-envs ", " fits")),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
@pytest.mark.parametrize("place", [[], ["--run-dir", "new"]], ids=["", "run-dir"])
def test_settings_that_cannot_work_are_refused(refused, arguments, words, place):
    text = refused("train", PENDULUM, *place, *arguments)
    assert all(word in text for word in words), text


def test_a_task_of_the_device_is_refused_on_the_host(refused):
    assert "'CartPoleSwingUp' exists on the device only: add --backend device" in refused("train", "CartPoleSwingUp")


def test_a_task_without_device_version_is_refused_with_those_that_have_one(refused, monkeypatch):
    monkeypatch.setattr(registry, "DEVICE_TASKS", ("Hopper-v5", "CartPoleSwingUp"))
    text = refused("train", PENDULUM, "--backend", "device")
    assert f"'{PENDULUM}' has no device version: use one of Hopper-v5, CartPoleSwingUp, or --backend host" in text


def test_mujoco_on_the_device_without_its_package_is_refused(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)
    monkeypatch.delattr("mujoco.mjx", raising=False)
    text = refused("train", PENDULUM, "--backend", "device", "--training.simulator", "mjx")
    assert "needs MJX" in text and "pip install 'soft-mpcritic[device]'" in text


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_a_folder_of_seeds_is_refused_with_their_names(refused, workplace, command):
    for seed in (0, 1):
        RunFolder(workplace / "seeds" / f"seed{seed}").create(SETTINGS)
    assert "seeds holds a run per seed (seed0, seed1): name one of them" in refused(command, "seeds")


@pytest.fixture
def baseline_folder(workplace) -> RunFolder:
    folder = RunFolder(workplace / "sac")
    folder.create(RunDescription(PENDULUM, "sac", "default", 0, 10, {"baseline": {}}))
    return folder


@pytest.mark.parametrize(
    "command",
    ["train --resume --run-dir sac", "evaluate sac", "diagnose sac", "export sac file.zip", "bench control sac"],
)
def test_a_baseline_is_refused_where_a_controller_is_needed(refused, baseline_folder, command):
    assert refused(*command.split()) == "sac is a run of the baseline sac: only plot reads these."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a2c", PENDULUM], ("a2c", "sac", "td3", "ddpg")),
        (["sac"], ("baseline", "Id of a task")),
        (["sac", "Hoper-v5"], ("'Hoper-v5'", "did you mean Hopper-v")),
        (["sac", "CartPoleSwingUp"], ("env_id must be a task of Gymnasium, got 'CartPoleSwingUp'", PENDULUM)),
        (["sac", PENDULUM, "--total-steps", "0"], ("total_steps", "got 0")),
        (["sac", PENDULUM, "--seed", "-1"], ("seed", "got -1")),
        (["sac", PENDULUM, "--learning-starts", "0"], ("learning_starts", "got 0")),
        (["sac", PENDULUM, "--evaluate-every", "0"], ("evaluate_every", "got 0")),
        (["sac", PENDULUM, "--run-dir", "sac"], ("run_dir must be a new folder, got sac: baselines cannot be",)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_baselines_that_cannot_work_are_refused(refused, baseline_folder, arguments, words):
    text = refused("baseline", *arguments)
    assert all(word in text for word in words), text


def test_baselines_without_their_package_are_refused(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "sbx", None)
    text = refused("baseline", "sac", PENDULUM)
    assert text == "baselines need sbx-rl, and sbx is missing: pip install 'soft-mpcritic[baselines]'."


@pytest.mark.parametrize("arguments", [[], ["dance"], ["--seed", "1"]], ids=str)
def test_a_missing_or_unknown_command_is_refused_with_those_that_exist(refused, arguments):
    text = refused(*arguments)
    assert all(word in text for word in ("train", "evaluate", "plot"))


@pytest.mark.parametrize("command", ["evaluate", "plot", "diagnose"])
def test_a_folder_that_is_no_run_is_refused(refused, workplace, command):
    (workplace / "empty").mkdir()
    for path in ("empty", "nowhere"):
        assert f"{path} is not a run folder" in refused(command, path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], ("episodes", "got 0")),
        (["--episodes", "-3"], ("episodes", "got -3")),
        (["--seed", "-1"], ("seed", "got -1")),
        (["--video", "x.txt"], ("video", "x.txt", ".mp4", ".gif")),
        (["--video", "x"], ("video", "x", ".mp4", ".gif")),
        (["--speed", "3"], ("--speed",)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_evaluations_that_cannot_work_are_refused(refused, run_folder, arguments, words):
    text = refused("evaluate", run_folder.path, *arguments)
    assert all(word in text for word in words), text


def test_evaluate_without_a_folder_is_refused(refused):
    text = refused("evaluate")
    assert "evaluate" in text and "folder" in text


def test_a_run_without_checkpoint_cannot_be_evaluated(refused, run_folder):
    (run_folder.path / "checkpoints").mkdir()
    text = refused("evaluate", run_folder.path)
    assert str(run_folder.path) in text and "no checkpoint yet" in text and "train" in text


def test_evaluate_makes_no_checkpoint_folder(refused, run_folder):
    refused("evaluate", run_folder.path)


def test_a_run_without_checkpoint_cannot_be_diagnosed(refused, run_folder):
    text = refused("diagnose", run_folder.path)
    assert str(run_folder.path) in text and "no checkpoint yet" in text and "train" in text


@pytest.mark.parametrize("wrong", [("--episodes", "0"), ("--out", "no/such/picture.png"), ("--out", "picture.xyz")])
def test_diagnoses_that_cannot_work_are_refused(refused, run_folder, wrong):
    name, value = wrong
    text = refused("diagnose", run_folder.path, name, value)
    assert name.removeprefix("--") in text and value in text


def test_plot_without_folders_is_refused(refused):
    assert "run folder" in refused("plot")


def test_a_run_without_evaluations_cannot_be_plotted(refused, run_folder):
    assert f"{run_folder.path} has no evaluations" in refused("plot", run_folder.path)
    (run_folder.path / "evaluations.csv").write_text(EVALUATIONS)
    assert f"{run_folder.path} has no evaluations" in refused("plot", run_folder.path)


@pytest.mark.parametrize("command", [["train", "--resume", "--run-dir"], ["evaluate"], ["plot"]], ids=lambda x: x[0])
def test_a_damaged_run_folder_is_refused(refused, run_folder, command):
    (run_folder.path / "config.json").write_text("{")
    assert "config.json is damaged" in refused(*command, run_folder.path)


def test_an_existing_run_is_not_trained_over(refused, run_folder):
    text = refused("train", PENDULUM, "--run-dir", run_folder.path)
    assert str(run_folder.path) in text and "--resume" in text and "--run-dir" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Hopper-v5"], (f"is of {PENDULUM}, got Hopper-v5",)),
        (["--seed", "4"], ("has seed 3, got 4",)),
        (["--planner.horizon", "2"], ("planner.horizon was 3 and cannot become 2",)),
        (["--preset", "default"], (" was ", "cannot become")),
        (["--planner.horizon", "-2"], ("horizon", "-2")),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_resuming_with_another_task_seed_or_setting_is_refused(refused, run_folder, arguments, words):
    before = (run_folder.path / "config.json").read_text()
    text = refused("train", *arguments, "--resume", "--run-dir", run_folder.path)
    assert all(word in text for word in words), text
    assert (run_folder.path / "config.json").read_text() == before


def test_a_run_folder_that_cannot_be_made_is_refused(refused, workplace):
    (workplace / "file").write_text("in the way")
    for path in ("file", "file/run"):
        assert f"run folder {path} cannot be written" in refused("train", PENDULUM, "--run-dir", path)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["evaluate"],
        ["train", "--planner.horizon", "1.5"],
        ["train", "--target-planner.num-samples", "0"],
    ],
    ids=" ".join,
)
def test_messages_of_the_parser_read_like_ours(refused, arguments):
    text = refused(*arguments)
    assert "---" not in text and "__tyro" not in text


def test_of_options_like_an_unknown_one_the_names_are_told(refused):
    text = refused("train", "Pendulum-v1", "--critic.imagind", "0.3")
    assert "--critic.imagind" in text and text.endswith("--critic.imagined")


def test_an_outdated_version_is_taken_without_further_noise():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert registry.make_task("Hopper-v4").unknowns == ("reward", "termination")
    assert said == []


@pytest.mark.parametrize("out", ["no/such/curve.png", "curve.xyz"])
def test_a_picture_that_cannot_be_written_is_refused(refused, run_folder, out):
    (run_folder.path / "evaluations.csv").write_text(f"{EVALUATIONS}10,1.0,0,1,5,9\n")
    assert out in refused("plot", run_folder.path, "--out", out)


@pytest.fixture
def trained_with(monkeypatch):
    """The settings that training was called with, instead of training."""
    calls: list[RunSettings] = []

    def train(folder, settings, observer):
        calls.append(settings)
        return {"status": "finished", "env_step": 0, "wall_seconds": 0.0}

    monkeypatch.setattr(running, "train_on_host", train)
    return calls


def test_settings_are_laid_over_the_preset(trained_with, workplace):
    arguments = ["--preset", "paper-uniform", "--planner.horizon", "2", "--seed", "5", "--total-steps", "70"]
    assert cli.main(["train", "Hopper-v5", *arguments]) == 0
    config = override(preset("paper-uniform"), {"planner.horizon": 2})
    assert trained_with == [RunSettings("Hopper-v5", "paper-uniform", 5, 70, config)]
    (path,) = (workplace / "runs").iterdir()
    assert path.name.startswith("Hopper-v5-paper-uniform-seed5-")
    assert RunFolder(path).read_settings() == trained_with[0]


def test_train_takes_the_double_pendulum_and_its_budget_by_default(trained_with):
    assert cli.main(["train"]) == 0
    assert trained_with == [RunSettings(PENDULUM, "default", 0, 15_000, preset("default"))]


def test_a_resumed_run_keeps_its_settings_but_for_those_that_may_change(trained_with, run_folder):
    arguments = ["--resume", "--run-dir", str(run_folder.path)]
    assert cli.main(["train", *arguments]) == 0
    assert cli.main(["train", *arguments, "--total-steps", "2000", "--training.evaluate-every", "77"]) == 0
    changed = override(SETTINGS.config, {"training.evaluate_every": 77})
    assert trained_with == [SETTINGS, RunSettings(PENDULUM, "paper", 3, 2000, changed)]
    assert RunFolder(run_folder.path).read_settings() == trained_with[1]


def test_resume_starts_a_run_where_there_is_none(trained_with, workplace):
    assert cli.main(["train", "--resume", "--run-dir", "new", "--seed", "1"]) == 0
    assert RunFolder(workplace / "new").read_settings() == trained_with[0]


def test_plot_draws_and_says_where(run_folder, workplace, capsys):
    rows = "".join(f"{step},1.0,{episode},1,{step * episode},9\n" for step in (10, 20) for episode in (1, 2))
    (run_folder.path / "evaluations.csv").write_text(EVALUATIONS + rows)
    assert cli.main(["plot", str(run_folder.path)]) == 0
    assert cli.main(["plot", str(run_folder.path), "--out", "curve.png"]) == 0
    assert capsys.readouterr().out.split() == [str(run_folder.curve), "curve.png"]
    assert run_folder.curve.stat().st_size > 1000
    assert (workplace / "curve.png").read_bytes() == run_folder.curve.read_bytes()


@pytest.fixture
def seeds(workplace) -> str:
    """Two evaluated seeds in one folder."""
    for seed in (0, 1):
        folder = RunFolder(workplace / "seeds" / f"seed{seed}")
        folder.create(RunSettings(PENDULUM, "paper", seed, 1000, SETTINGS.config))
        rows = "".join(f"{step},60,0,1,{step * (seed + 1)},9\n" for step in (10, 20))
        (folder.path / "evaluations.csv").write_text(EVALUATIONS + rows)
    return "seeds"


def test_plot_takes_all_seeds_of_a_folder_as_one_group(seeds, workplace, capsys):
    arguments = ["--csv", "runs.csv", "--threshold", "20", "--table", "--x", "minutes", "--band", "quantiles"]
    assert cli.main(["plot", seeds, *arguments]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2:] == [f"| {PENDULUM} | paper | 2 | 20 | 30.0 [20.0, 40.0] | 15 (2 of 2) | 1.0 |"]
    assert (workplace / seeds / "learning_curve.png").stat().st_size > 1000
    assert len((workplace / "runs.csv").read_text().splitlines()) == 5


def test_plot_says_reached_only_where_it_lasts_if_asked_to(run_folder, capsys):
    (run_folder.path / "evaluations.csv").write_text(f"{EVALUATIONS}10,60,0,1,5,9\n20,90,0,1,0,9\n30,120,0,1,6,9\n")
    for flags, reached in ([], "10 (1 of 1) | 1.0"), (["--stays"], "30 (1 of 1) | 2.0"):
        assert cli.main(["plot", str(run_folder.path), "--table", "--threshold", "5", *flags]) == 0
        assert f"| {reached} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "nan"], ("threshold", "finite", "nan")),
        (["--threshold", "x"], ("threshold", "x")),
        (["--stays"], ("stays", "--threshold")),
        (["--band", "mean"], ("band", "iqm", "quantiles")),
        (["--x", "hours"], ("x", "steps", "minutes")),
        (["--group-by", "seed"], ("group-by", "setting", "folder")),
        (["--csv", "no/such/file.csv"], ("csv", "no/such/file.csv")),
        (["--out", "curve"], ("out", "curve", ".png")),
        (["nowhere"], ("nowhere is not a run folder",)),
        (["seeds/seed0", "copy"], ("seeds/seed0 and copy have the same settings and seed 0", "--group-by folder")),
        (["pendulum", "--threshold", "1"], ("threshold", "one environment", PENDULUM, "Pendulum-v1")),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_plots_that_cannot_be_drawn_are_refused(refused, seeds, workplace, arguments, words):
    shutil.copytree(workplace / seeds / "seed0", workplace / "copy")
    shutil.copytree(workplace / seeds / "seed0", workplace / "pendulum")
    RunFolder(workplace / "pendulum").create(RunSettings("Pendulum-v1", "paper", 0, 1000, SETTINGS.config))
    text = refused("plot", seeds, *arguments)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["evaluate", "--help"], ["plot", "--help"], ["baseline", "--help"]],
    ids=str,
)
def test_help_is_given(arguments, capsys, workplace):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code in (0, None)
    out, err = capsys.readouterr()
    assert "usage: soft-mpcritic" in out and err == ""
    assert not list(workplace.iterdir())


def test_who_reads_the_help_may_leave(tmp_path):
    """As `soft-mpcritic train --help | head -1` does: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from soft_mpcritic.cli import entry_point; entry_point()", "train", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_run_outlives_those_who_watch_it(run_folder, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as unread, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", unread)
        with pytest.raises(BrokenPipeError):
            print("unread", file=sys.stderr, flush=True)
        with Console(run_folder.read_settings().description, run_folder) as console:
            console.report({"status": "finished", "env_step": 1, "wall_seconds": 1.0})
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # what waits in the stream has somewhere to go
