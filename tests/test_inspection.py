"""What `inspect` says of folders that are there, damaged, or differ."""

import json
import shutil

import numpy as np
import pytest

from soft_mpcritic import cli
from soft_mpcritic.archive import STATE, Archive
from soft_mpcritic.config import override
from soft_mpcritic.presets import preset
from soft_mpcritic.run_folder import RunFolder, RunSettings

SETTINGS = RunSettings("Hopper-v5", "paper", 3, 1000, override(preset("paper"), {"planner.horizon": 2}))


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "a")
    folder.create(SETTINGS)
    (folder.path / "metrics.csv").write_text("env_step,wall_seconds,faults,q_mean\n10,1.5,0,0.25\n20,3.5,2,0.5\n")
    (folder.path / "evaluations.csv").write_text(
        "env_step,wall_seconds,episode,seed,return,length\n10,1,0,0,8,5\n10,1,1,1,6,5\n20,2,0,0,5,5\n"
    )
    archive = Archive(folder.path / "checkpoints", keep=2)
    for step in (10, 20):
        archive.save(step, {"x": np.arange(step)}, {})
    return folder


def inspected(capsys, *arguments: object) -> dict:
    assert cli.main(["inspect", *map(str, arguments), "--json"]) == 0
    (printed,) = capsys.readouterr().out.strip().splitlines()
    return json.loads(printed)


def test_a_run_is_described(folder, capsys):
    (folder.path / "checkpoints" / "20" / STATE).unlink()
    record = inspected(capsys, folder.path)
    assert (record["env_id"], record["preset"], record["seed"]) == ("Hopper-v5", "paper", 3)
    assert (record["env_step"], record["total_steps"], record["wall_seconds"]) == (20, 1000, 3.5)
    assert record["changed_settings"] == {"planner.horizon": 2}
    assert record["made_with"]["packages"]["jax"] and "commit" in record["made_with"]
    assert record["rows"] == {"metrics.csv": 2, "evaluations.csv": 3}
    assert record["checkpoints"] == [
        {"env_step": 10, "damage": None},
        {"env_step": 20, "damage": f"{STATE} is missing"},
    ]
    assert record["evaluations"] == {
        "count": 2, "last_step": 20, "last_return": 5.0, "best_step": 10, "best_return": 7.0,
    }  # fmt: skip
    assert record["troubles"]["faults"] == 2


def test_it_is_told_in_words(folder, capsys):
    assert cli.main(["inspect", str(folder.path)]) == 0
    out = capsys.readouterr().out
    for told in ("Hopper-v5", "planner.horizon 2", "20 of 1000 steps", "best 7.0 at step 10", "faults 2", "10, 20"):
        assert told in out


def test_a_fresh_folder_is_described_too(tmp_path, capsys):
    RunFolder(tmp_path / "fresh").create(SETTINGS)
    record = inspected(capsys, tmp_path / "fresh")
    assert record["env_step"] == 0 and record["evaluations"] == {"count": 0} and record["checkpoints"] == []
    assert cli.main(["inspect", str(tmp_path / "fresh")]) == 0
    assert "not evaluated yet" in capsys.readouterr().out


@pytest.fixture
def other(folder, tmp_path) -> RunFolder:
    return RunFolder(shutil.copytree(folder.path, tmp_path / "b"))


def test_equal_runs_do_not_differ(folder, other, capsys):
    text = (other.path / "metrics.csv").read_text()
    (other.path / "metrics.csv").write_text(text.replace("3.5", "9.5"))  # a time
    assert inspected(capsys, folder.path, other.path, "--compare") == {"differences": []}
    assert cli.main(["inspect", "--compare", str(folder.path), str(other.path)]) == 0
    assert "no difference but times" in capsys.readouterr().out


def test_differences_are_named(folder, other, capsys):
    path = other.path / "config.json"
    record = json.loads(path.read_text())
    record["settings"]["planner"]["horizon"] = 3
    record["packages"]["jax"] = "0.0.1"
    path.write_text(json.dumps(record))
    text = (other.path / "metrics.csv").read_text()
    (other.path / "metrics.csv").write_text(text.replace("0.5\n", "0.50000006\n"))
    with (other.path / "evaluations.csv").open("a") as file:
        file.write("30,2,0,0,5,5\n")
    shutil.rmtree(other.path / "checkpoints" / "20")
    Archive(other.path / "checkpoints", keep=2).save(20, {"x": np.arange(20) + 1}, {})
    found = inspected(capsys, folder.path, other.path, "--compare")["differences"]
    assert [(d["kind"], d["what"]) for d in found] == [
        ("told", "planner.horizon"),
        ("made", "packages.jax"),
        ("results", "metrics.csv from env_step 20 on: q_mean"),
        ("results", "rows of evaluations.csv"),
        ("results", "state at checkpoint 20"),
    ]
    assert (found[0]["a"], found[0]["b"], found[1]["b"]) == (2, 3, "0.0.1")


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--compare", "a"], ["--compare", "a", "b", "c"], ["nowhere"]])
def test_folders_that_do_not_fit_are_refused(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder.path.parent)
    assert cli.main(["inspect", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
