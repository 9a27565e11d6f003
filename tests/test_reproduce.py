"""Grids of runs: what they compare, what is left to do, and what a failure, a stop or other settings do to them.

Most runs here are those of a stand-in for the program, in processes as real ones are.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import jaxtyping
import pytest

from soft_mpcritic import cli
from soft_mpcritic.baselines import Baseline
from soft_mpcritic.cli.parsing import parse
from soft_mpcritic.cli.training import BaselineArgs, TrainArgs
from soft_mpcritic.config import ConfigError, TrainingConfig, override
from soft_mpcritic.files import read_table
from soft_mpcritic.plotting import plot_groups
from soft_mpcritic.presets import preset
from soft_mpcritic.reproduce import command, outputs, runner
from soft_mpcritic.reproduce.runner import BaselineRun, OurRun
from soft_mpcritic.reproduce.studies import BasePreset, CaseName, make_case
from soft_mpcritic.run_folder import RunFolder, RunSettings

CASES, BASES = get_args(CaseName), get_args(BasePreset)
IDP, HOPPER = (make_case(name, "paper") for name in CASES)
IDP_CELLS = [cell.name for cell in IDP.cells]
STAND_IN = """
import json, os, pathlib, signal, sys, time

options = dict(zip(sys.argv[2::1], sys.argv[3::1]))
folder = pathlib.Path(options["--run-dir"])
out, cell = folder.parents[2], folder.parent.name
config = json.loads((folder / "config.json").read_text())

def log(name):
    with (out / name).open("a") as file:
        file.write(f"{cell} {config['seed']}\\n")

def summarize(status, steps):
    (folder / "summary.json").write_text(json.dumps(
        {"status": status, "env_step": steps, "evaluation_return_mean": 9300.0 + config["seed"]}))

def stop(*_):
    summarize("interrupted", 1)
    log("stopped")
    sys.exit(0)

os.mkdir(out / f"running-{os.getpid()}")
log("calls")
print("hello from", cell)
orders = out / "orders" / cell
order = orders.read_text() if orders.is_file() else ""
if order == "wait":
    signal.signal(signal.SIGTERM, stop)
    log("waiting")
    time.sleep(60)
if order == "fail":
    sys.exit(3)
if order == "die":
    os.kill(os.getpid(), signal.SIGKILL)
with (out / "together").open("a") as file:
    file.write(f"{len(list(out.glob('running-*')))}\\n")
with (folder / "evaluations.csv").open("w") as file:
    file.write("env_step,wall_seconds,episode,seed,return,length\\n")
    for step in (config["total_steps"] // 2, config["total_steps"]):
        for episode in (0, 1):
            file.write(f"{step},{step / 100},{episode},{episode},{9300 + config['seed'] + episode},1000\\n")
summarize("finished", config["total_steps"])
os.rmdir(out / f"running-{os.getpid()}")
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch) -> None:
    """A program, pictures and speeds that take no time."""
    program = tmp_path / "program.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-S", str(program)))
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def speeds_in_turns(task, configs, steps):
        rates = {name: 50.0 + 25 * index for index, name in enumerate(configs)}
        return {"machine": {"processor": "abacus", "cores": 2}, "matrix_product_gflops": 1.0, "steps_per_second": rates}

    monkeypatch.setattr(outputs, "speeds_in_turns", speeds_in_turns)
    monkeypatch.setattr(outputs, "plot_groups", lambda groups, out, **_: out.write_bytes(b"a picture"))


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def reproduce(out: Path, *arguments: object, case: str = "idp", steps: int = 200) -> int:
    told = [str(argument) for argument in arguments]
    return cli.main(["reproduce", case, "--out", str(out), "--total-steps", str(steps), *told])


def calls(out: Path) -> list[str]:
    """The runs that were started since the last question, in order."""
    path = out / "calls"
    told = path.read_text().splitlines() if path.is_file() else []
    path.unlink(missing_ok=True)
    return told


def order(out: Path, **told: str) -> None:
    (out / "orders").mkdir(parents=True, exist_ok=True)
    for cell, what in told.items():
        (out / "orders" / cell).write_text(what)


def files(out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# ------------------------------------------------------------------- what is compared


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("preset_name", BASES)
@pytest.mark.parametrize("quick", [True, False])
def test_cells_differ_from_the_base_by_what_they_say_and_from_each_other(name, preset_name, quick):
    case = make_case(name, preset_name)
    base, *others = case.cells
    assert base.settings == {} and base.baseline is None
    base_config = case.config(base, preset_name, quick)
    ours = [cell for cell in others if cell.baseline is None]
    configs = {cell.name: case.config(cell, preset_name, quick) for cell in ours}
    assert len({base_config, *configs.values()}) == 1 + len(ours)
    for cell in ours:
        assert configs[cell.name] == override(base_config, cell.settings)
    assert len({cell.name for cell in case.cells}) == len(case.cells)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("preset_name", BASES)
def test_every_figure_shows_the_base_among_others_under_labels_of_their_own(name, preset_name):
    case = make_case(name, preset_name)
    assert set(case.cells[0].figures) == set(case.figures)
    for figure in case.figures:
        labels = [cell.figures[figure] for cell in case.cells if figure in cell.figures]
        assert len(labels) >= 3 and len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", CASES)
def test_over_the_paper_preset_the_base_is_the_paper_setting(name):
    case = make_case(name, "paper")
    assert case.config(case.cells[0], "paper", quick=False) == preset("paper")


def test_the_uniform_prior_over_the_paper_preset_is_the_preset_of_that_name():
    (uniform,) = [cell for cell in HOPPER.cells if cell.name == "uniform"]
    assert HOPPER.config(uniform, "paper", quick=False) == preset("paper-uniform")


@pytest.mark.parametrize("preset_name", BASES)
def test_priors_are_told_by_their_names(preset_name):
    case = make_case("hopper", preset_name)
    ours = [cell for cell in case.cells if "priors" in cell.figures and cell.baseline is None]
    told = {case.config(cell, preset_name, quick=False).objective.prior: cell.figures["priors"] for cell in ours}
    assert told == {"gaussian": "Gaussian prior", "uniform": "uniform prior"}


def test_settings_laid_over_reach_every_cell_and_change_nothing_else():
    case = make_case("hopper", "locomotion")
    asked = case.laid_over({"planner.trace": 1.0, "objective.end_value": -100})
    for cell in case.cells:
        was = case.config(cell, "locomotion", quick=False)
        told = asked.config(cell, "locomotion", quick=False)
        assert told == override(was, {"planner.trace": 1.0, "objective.end_value": -100}) != was
    often = case.laid_over({"training.evaluate_every": 25})
    assert often.config(case.cells[0], "locomotion", quick=True).training.evaluate_every == 25


@pytest.mark.parametrize("name", ["planner.horizon", "dynamics.members", "objective.prior", "objective.terminal_value"])
def test_what_a_grid_compares_is_not_laid_over(name):
    with pytest.raises(ConfigError, match=rf"set must leave alone what the grid compares, got {name}: "):
        HOPPER.laid_over({name: 3, "planner.trace": 1.0})


# ------------------------------------------------------------------- from grid to table


def test_a_grid_is_run_seed_by_seed_and_reported(out, capsys, monkeypatch):
    monkeypatch.setattr(outputs, "plot_groups", plot_groups)
    assert reproduce(out, "--seeds", 3) == 0
    assert calls(out) == [f"{cell} {seed}" for seed in range(3) for cell in IDP_CELLS]
    printed, told = capsys.readouterr()
    assert printed.split() == [str(out / n) for n in ("warm-start.png", "iterations.png", "samples.png")] + [
        str(out / n) for n in ("returns.csv", "table.md")
    ]
    assert "24 runs to go" in told and "cold seed2: return 9,302.0 after 200 steps" in told
    assert all((out / name).stat().st_size > 10_000 for name in ("warm-start.png", "iterations.png", "samples.png"))

    rows = read_table(out / "returns.csv")
    found = {(row["label"], row["seed"], row["env_step"], float(row["return"])) for row in rows}
    assert found == {(c, str(s), n, 9300.5 + s) for c in IDP_CELLS for s in range(3) for n in ("100", "200")}
    assert len(rows) == len(found)


def test_the_table_has_a_row_per_cell_with_its_figures(out):
    assert reproduce(out, "--seeds", 3) == 0
    head, _, *rows = (out / "table.md").read_text().split("\n\n")[0].splitlines()
    assert [row.split("|")[2].strip() for row in rows] == IDP_CELLS
    named = dict(zip(head.split("|"), rows[2].split("|"), strict=True))
    cold = {name.strip(): text.strip() for name, text in named.items()}
    assert cold["runs"] == "3" and cold["last step"] == "200"
    assert cold["return there: IQM [95 %]"] == "9,301.5 [9,300.5, 9,302.5]"
    assert cold["median there"] == "9,301.5"
    assert cold["steps to 9,300"] == "100 (3 of 3)"
    assert cold["steps per second, of the base's"] == "2.00"
    assert "The base trains at 50 steps/s" in (out / "table.md").read_text()


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_runs_at_a_time_than_workers(out, workers):
    assert reproduce(out, "--seeds", 1, "--workers", workers) == 0
    together = [int(line) for line in (out / "together").read_text().splitlines()]
    assert len(together) == len(IDP_CELLS) and max(together) <= workers


def test_a_quick_grid_has_a_cell_or_two_for_every_figure(out):
    assert reproduce(out, "--quick") == 0
    assert calls(out) == ["base 0", "single 0", "cold 0", "samples-10 0"]
    assert all((out / f"{figure}.png").is_file() for figure in IDP.figures)


# ------------------------------------------------------------------- what is left to do


def test_what_is_finished_is_left_alone(out):
    assert reproduce(out, "--seeds", 1) == 0
    calls(out)
    assert reproduce(out, "--seeds", 1) == 0
    assert calls(out) == []
    assert reproduce(out, "--seeds", 2) == 0
    assert calls(out) == [f"{cell} 1" for cell in IDP_CELLS]
    assert reproduce(out, "--seeds", 2, "--only", "cold", steps=300) == 0
    assert calls(out) == ["cold 0", "cold 1"]
    assert RunFolder(out / "runs" / "cold" / "seed1").read_settings().total_steps == 300


def test_settings_that_are_laid_over_reach_the_runs_and_the_same_call_goes_on(out):
    told = ("--set", "planner.trace=0.5", "--set", "objective.goal=learned", "--only", "cold", "--seeds")
    assert reproduce(out, *told, 1) == 0
    config = RunFolder(out / "runs" / "cold" / "seed0").read_settings().config
    assert config.planner.trace == 0.5 and config.objective.goal == "learned"
    assert reproduce(out, *told, 2) == 0
    assert calls(out) == ["cold 0", "cold 1"]


def test_only_some_cells_leave_the_others_in_the_tables(out):
    assert reproduce(out, "--seeds", 1, "--only", "cold", "base") == 0
    assert reproduce(out, "--seeds", 1, "--only", "single") == 0
    assert calls(out) == ["base 0", "cold 0", "single 0"]
    labels = [row["label"] for row in read_table(out / "returns.csv")]
    assert list(dict.fromkeys(labels)) == ["base", "single", "cold"]


def test_failures_stop_no_other_and_are_named_with_their_logs(out, capsys):
    order(out, base="die", cold="fail")
    assert reproduce(out, "--seeds", 2, "--workers", 3) == 1
    assert len(calls(out)) == 2 * len(IDP_CELLS)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("soft-mpcritic: 4 of 16 runs failed: ")
    for cell, how in (("base", "killed by signal 9"), ("cold", "exit status 3")):
        for seed in (0, 1):
            log = out / "logs" / f"{cell}-seed{seed}.txt"
            assert f"{cell} seed{seed} ({how}, {log})" in last
    assert "hello from cold" in (out / "logs" / "cold-seed0.txt").read_text()
    labels = {row["label"] for row in read_table(out / "returns.csv")}
    assert labels == set(IDP_CELLS) - {"base", "cold"}

    order(out, base="", cold="")
    assert reproduce(out, "--seeds", 2) == 0
    assert calls(out) == ["base 0", "cold 0", "base 1", "cold 1"]


def test_a_request_to_stop_is_passed_on_and_the_next_call_goes_on(out, capsys):
    order(out, single="wait", cold="wait")

    def stop() -> None:
        for _ in range(3000):
            if (out / "waiting").is_file() and len((out / "waiting").read_text().splitlines()) == 2:
                break
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert reproduce(out, "--seeds", 1, "--workers", 2) == 0
    thread.join()
    assert sorted((out / "stopped").read_text().splitlines()) == ["cold 0", "single 0"]
    assert "stopped with 7 runs to go" in capsys.readouterr().err
    assert sorted(calls(out)) == ["base 0", "cold 0", "single 0"]  # two at a time: in any order
    assert (out / "returns.csv").is_file() and not (out / "table.md").exists()

    order(out, single="", cold="")
    assert reproduce(out, "--seeds", 1) == 0
    assert calls(out) == [f"{cell} 0" for cell in IDP_CELLS if cell != "base"]


def test_speeds_are_of_one_sitting(out):
    def measured() -> list[str]:
        return list(json.loads((out / "speed.json").read_text())["steps_per_second"])

    assert reproduce(out, "--seeds", 1, "--only", "cold", "samples-10") == 0
    assert measured() == ["base", "cold", "samples-10"]
    assert reproduce(out, "--seeds", 1, "--only", "single") == 0
    assert measured() == ["base", "single", "cold", "samples-10"]
    (out / "speed.json").write_text((out / "speed.json").read_text().replace("50.0", "40.0"))
    assert reproduce(out, "--seeds", 1, "--only", "single") == 0
    assert "The base trains at 40 steps/s" in (out / "table.md").read_text()
    assert reproduce(out, "--seeds", 1, "--only", "samples-50") == 0
    assert "The base trains at 50 steps/s" in (out / "table.md").read_text()


# ------------------------------------------------------------------- what is refused, before any work


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "default"], "cannot become"),
        (["--quick"], "cannot become"),
        (["--seeds", "0"], "seeds must be >= 1, got 0"),
        (["--workers", "0"], "workers must be >= 1, got 0"),
        (["--only", "warm", "cold"], "only must be among base, single, "),
        (["--only", "warm", "cold"], "got warm"),
        (["--set", "planner.trace=0.5"], "cannot become"),
        (["--set", "planner.trace"], "set must be NAME=VALUE, got 'planner.trace'"),
        (["--set", "planner.pace=1"], "setting must exist, got 'planner.pace'"),
        (["--set", "planner.trace=2"], "trace must lie in [0, 1], got 2"),
        (["--set", "target_planner.iterations=2"], "set must leave alone what the grid compares"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_grid_that_cannot_be_run_is_refused_in_one_line(out, capsys, arguments, words):
    """Even where the run that does not fit comes last."""
    assert reproduce(out, "--seeds", 1, "--only", "samples-50") == 0
    calls(out)
    before = files(out)
    capsys.readouterr()
    assert reproduce(out, *arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said
    assert files(out) == before and calls(out) == []
    if "cannot become" in words:
        assert str(out / "runs" / "samples-50" / "seed0") in said and "another --out" in said


def test_steps_and_cases_are_checked(out, capsys):
    assert reproduce(out, steps=0) == 2
    assert "total_steps must be >= 1, got 0" in capsys.readouterr().err
    assert reproduce(out, case="walker") == 2
    assert "idp" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_in_use_is_refused(out, capsys):
    out.mkdir()
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert reproduce(out) == 2
    assert f"{out} is in use" in capsys.readouterr().err
    assert calls(out) == []


def test_runs_that_outlive_the_call_keep_the_folder(tmp_path):
    """They inherit the lock, so that no second process trains into their folders."""
    settings = RunSettings(IDP.env_id, "paper", 0, 10, preset("paper"))
    out = tmp_path / "out"
    run = OurRun("base", 0, 10, RunFolder(out / "runs" / "base" / "seed0"), tmp_path / "log.txt", settings)
    order(out, base="wait")
    with runner.sole_use(out) as lock:
        process = runner._start(run, lock)
    with pytest.raises(ConfigError, match="is in use"), runner.sole_use(out):
        pass
    process.kill()
    process.wait()
    with runner.sole_use(out):
        pass


def test_a_place_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert reproduce(tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


# ------------------------------------------------------------------- the commands that runs are started with


def test_the_command_of_a_run_trains_what_was_asked(tmp_path):
    case, cell = HOPPER, HOPPER.cells[1]
    asked = RunSettings(case.env_id, "paper", 3, 70, case.config(cell, "paper", quick=True))
    run = OurRun(cell.name, 3, 70, RunFolder(tmp_path / "run"), tmp_path / "log", asked)
    parsed = parse(run.arguments())
    assert isinstance(parsed, TrainArgs) and parsed.resume and parsed.run_dir == tmp_path / "run"
    assert parsed.total_steps is not None
    assert RunSettings(parsed.env_id, parsed.preset, parsed.seed, parsed.total_steps, parsed.config) == asked


@pytest.fixture(params=[True, False], ids=["quick", "full"])
def baseline_run(request, tmp_path) -> BaselineRun:
    """The grid's own, so that what the grid asks for is what its command says."""
    asked = command.ReproduceArgs("hopper", total_steps=140, quick=request.param)
    (run,) = [run for run in asked._grid(HOPPER, tmp_path) if (run.cell, run.seed) == ("ddpg", 0)]
    assert isinstance(run, BaselineRun)
    return run


def test_the_command_of_a_baseline_trains_what_was_asked(baseline_run):
    given, asked = parse(baseline_run.arguments()), baseline_run.asked
    assert isinstance(given, BaselineArgs)
    assert (given.run_dir, given.total_steps) == (baseline_run.folder.path, asked.total_steps)
    training = TrainingConfig(evaluate_every=given.evaluate_every, evaluation_episodes=given.evaluation_episodes)
    same = Baseline(given.algorithm, given.env_id, given.seed, asked.total_steps, given.learning_starts, training)
    assert same == asked


def test_a_baseline_that_was_not_finished_starts_over_and_another_is_refused(baseline_run):
    folder = baseline_run.folder
    folder.create(baseline_run.asked.description)
    folder.write_summary({"status": "interrupted", "env_step": 60})
    baseline_run.check()
    assert not baseline_run.finished
    baseline_run.arguments()
    assert not folder.exists

    folder.create(RunSettings("Hopper-v5", "paper", 0, 140, preset("paper")))
    with pytest.raises(ConfigError, match=r"another --out: algorithm of run folder"):
        baseline_run.check()


def test_baselines_that_are_not_installed_are_left_out_with_one_line(out, capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert reproduce(out, "--seeds", 1, case="hopper") == 0
    ours = [cell.name for cell in HOPPER.cells if cell.baseline is None]
    assert calls(out) == [f"{cell} 0" for cell in ours]
    lines = [line for line in capsys.readouterr().err.splitlines() if "sbx-rl" in line]
    assert len(lines) == 1 and "soft-mpcritic[baselines]" in lines[0] and lines[0].endswith("sac, ddpg")
    assert (out / "priors.png").is_file()


# ------------------------------------------------------------------- for real


@pytest.mark.slow
def test_a_quick_grid_for_real(tmp_path, monkeypatch):
    monkeypatch.undo()
    out = tmp_path / "real"
    assert reproduce(out, "--quick", "--only", "base", "cold", "--workers", 2, steps=60) == 0
    rows = read_table(out / "returns.csv")
    assert {(row["label"], row["env_step"]) for row in rows} == {(c, s) for c in ("base", "cold") for s in ("50", "60")}
    assert all((out / f"{figure}.png").is_file() for figure in IDP.figures)
    rates = json.loads((out / "speed.json").read_text())["steps_per_second"]
    assert rates["base"] > 0 and f"| {rates['cold'] / rates['base']:.2f} |" in (out / "table.md").read_text()
