import dataclasses
import json
import re

import jaxtyping
import pytest

from soft_mpcritic import provenance
from soft_mpcritic.config import ConfigError, override
from soft_mpcritic.files import Table, read_table, write_json
from soft_mpcritic.presets import PRESETS, preset
from soft_mpcritic.run_folder import FORMAT, OURS, RunDescription, RunFolder, RunSettings, check_resumable

SETTINGS = RunSettings("InvertedDoublePendulum-v5", "default", 3, 1000, preset("default"))


@pytest.fixture(autouse=True)
def as_for_users(monkeypatch) -> None:
    """No run-time check of types complains before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "some" / "run")
    folder.create(SETTINGS)
    return folder


def refused(act) -> str:
    """The one line in which `act` is refused."""
    with pytest.raises(ConfigError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def rewrite(folder: RunFolder, **changes) -> None:
    path = folder.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_the_folder(tmp_path, name):
    settings = RunSettings("Hopper-v5", name, 12, 5000, preset(name))
    folder = RunFolder(tmp_path / "run")
    assert not folder.exists
    folder.create(settings)
    assert folder.exists
    assert folder.read_settings() == settings


def test_a_run_that_names_no_algorithm_is_ours(folder):
    path = folder.path / "config.json"
    record = json.loads(path.read_text())
    assert record.pop("algorithm") == OURS
    path.write_text(json.dumps(record))
    assert folder.read_description() == SETTINGS.description
    assert folder.read_settings() == SETTINGS


def test_mean_returns_are_of_the_rows_that_can_be_read(folder):
    assert folder.mean_returns() == {}
    (folder.path / "evaluations.csv").write_text(
        "env_step,wall_seconds,episode,seed,return,length\n10,1,0,0,8,5\n10,1,1,1,6,5\n20,2,0,0,5,5\nx,2,0,0,5,5\n"
        "30,2,0,0,?,5\n40,2\n20,2,1,0,6,5\n20,2,2,0,7"
    )
    assert folder.mean_returns() == {10: 7.0, 20: 5.5}


def test_settings_that_an_older_version_lacked_are_at_their_defaults(folder):
    path = folder.path / "config.json"
    record = json.loads(path.read_text())
    del record["settings"]["training"]["backend"]
    path.write_text(json.dumps(record))
    assert folder.read_description() == SETTINGS.description


def test_a_baseline_is_described_but_is_no_run_of_ours(tmp_path):
    folder = RunFolder(tmp_path / "run")
    described = RunDescription("Hopper-v5", "sac", "default", 1, 10, {"baseline": {"gamma": 0.9}})
    folder.create(described)
    assert folder.read_description() == described
    assert refused(folder.read_settings) == f"{folder.path} is a run of the baseline sac: only plot reads these."


def test_config_json_says_what_wrote_it(folder):
    record = json.loads((folder.path / "config.json").read_text())
    assert record["format"] == FORMAT
    assert record["env_id"] == SETTINGS.env_id
    assert record["settings"]["planner"]["horizon"] == 4
    assert record["packages"]["jax"] and record["version"] and record["platform"]["python"]


def test_nothing_else_is_left_in_a_new_folder(folder):
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_a_folder_without_config_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert refused(RunFolder(path).read_settings) == (
            f"{path} is not a run folder, it has no config.json: name a folder that train made."
        )


@pytest.mark.parametrize("text", ["", "{", '{"format": 1,', "nonsense", "[1, 2]", "3", "null"])
def test_damaged_json_is_refused(folder, text):
    (folder.path / "config.json").write_text(text)
    assert refused(folder.read_settings).startswith(f"{folder.path / 'config.json'} is damaged: ")


def test_bytes_that_are_no_text_are_refused(folder):
    (folder.path / "config.json").write_bytes(b"\xff\xfe\x00{")
    assert "config.json is damaged: " in refused(folder.read_settings)


@pytest.mark.parametrize("missing", ["env_id", "preset", "seed", "total_steps", "settings"])
def test_a_record_that_lacks_something_is_refused_by_its_name(folder, missing):
    path = folder.path / "config.json"
    record = json.loads(path.read_text())
    del record[missing]
    path.write_text(json.dumps(record))
    assert f"config.json is damaged: KeyError('{missing}')" in refused(folder.read_settings)


@pytest.mark.parametrize(
    "settings", [None, 3, {"planner": 3}, {"planner": "x"}, {"planner": {"horizon": "x"}}], ids=str
)
def test_settings_of_a_wrong_kind_are_refused(folder, settings):
    rewrite(folder, settings=settings)
    assert "config.json is damaged: " in refused(folder.read_settings)


@pytest.mark.parametrize("changes", [{"seed": "x"}, {"total_steps": None}, {"env_id": 3}], ids=str)
def test_values_of_a_wrong_kind_are_refused(folder, changes):
    rewrite(folder, **changes)
    assert "config.json is damaged: " in refused(folder.read_settings)


def test_settings_that_cannot_work_are_refused_with_their_file(folder):
    rewrite(folder, settings={"planner": {"horizon": -1}})
    assert str(folder.path) in refused(folder.read_settings)


def test_settings_that_no_longer_exist_are_refused_by_name(folder):
    rewrite(folder, settings={"planner": {"horizons": 3}})
    assert "horizons" in refused(folder.read_settings)


@pytest.mark.parametrize("other", [0, FORMAT + 1, None, "1"])
def test_another_format_is_refused_with_the_version_that_reads_it(folder, other):
    rewrite(folder, format=other, version="9.8.7")
    text = refused(folder.read_settings)
    assert f"has format {other}, this version reads {FORMAT}" in text and "9.8.7" in text


@pytest.mark.parametrize("blocked", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, blocked):
    (tmp_path / "file").write_text("in the way")
    text = refused(lambda: RunFolder(tmp_path / blocked).create(SETTINGS))
    assert str(tmp_path / blocked) in text
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"env_id": "Hopper-v5"}, ("is of InvertedDoublePendulum-v5, got Hopper-v5",)),
        ({"seed": 4}, ("has seed 3, got 4",)),
        ({"planner.horizon": 2}, ("planner.horizon was 4 and cannot become 2",)),
        ({"objective.prior": "uniform"}, ("objective.prior was 'gaussian' and cannot become 'uniform'",)),
        ({"training.num_envs": 2}, ("training.num_envs was 1 and cannot become 2",)),
        ({"training.log_every": 50}, ("training.log_every was 500 and cannot become 50",)),
        ({"critic.support": (-1.0, 1.0)}, ("critic.support was (-20.0, 20.0) and cannot become (-1.0, 1.0)",)),
    ],
    ids=str,
)
def test_what_cannot_change_midway_is_refused_by_name(folder, change, words):
    own = {name: value for name, value in change.items() if "." not in name}
    settings = {name: value for name, value in change.items() if "." in name}
    asked = dataclasses.replace(SETTINGS, config=override(SETTINGS.config, settings), **own)
    text = refused(lambda: check_resumable(folder.read_settings(), asked, folder))
    assert all(word in text for word in words)


def test_what_can_change_midway_is_accepted(folder):
    changes = {
        "training.evaluate_every": 7,
        "training.evaluation_episodes": 3,
        "training.checkpoint_every": 9,
        "training.checkpoints_kept": 4,
    }
    asked = dataclasses.replace(SETTINGS, total_steps=9999, config=override(SETTINGS.config, changes))
    check_resumable(folder.read_settings(), asked, folder)
    folder.create(asked)
    assert folder.read_settings() == asked


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [1.5, None, "x"]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1.5, None, "x"]}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_full_disk_leaves_the_old_json(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})

    def fail(self, text):
        with self.open("w") as file:
            file.write(text[:3])
        raise OSError("no space left on device")

    monkeypatch.setattr(type(path), "write_text", fail)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_summary_is_json(folder):
    folder.write_summary({"env_step": 5, "evaluation_return_mean": None})
    assert json.loads((folder.path / "summary.json").read_text()) == {"env_step": 5, "evaluation_return_mean": None}


COLUMNS = ("env_step", "value")


def make_table(path, steps=(1, 2, 3)) -> None:
    table = Table(path, COLUMNS)
    for step in steps:
        table.append({"env_step": step, "value": step / 4})


def steps_in(path) -> list[int]:
    return [int(row["env_step"]) for row in read_table(path)]


def test_a_table_is_a_csv_file(tmp_path):
    make_table(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "env_step,value\n1,0.25\n2,0.5\n3,0.75\n"
    assert read_table(tmp_path / "t.csv")[1] == {"env_step": "2", "value": "0.5"}


@pytest.mark.parametrize(("keep_until", "kept"), [(-1, []), (0, []), (1, [1]), (2, [1, 2]), (99, [1, 2, 3])])
def test_a_table_forgets_the_rows_after_a_step(tmp_path, keep_until, kept):
    make_table(tmp_path / "t.csv")
    table = Table(tmp_path / "t.csv", COLUMNS, keep_until)
    assert steps_in(tmp_path / "t.csv") == kept
    table.append({"env_step": 50, "value": 0})
    assert steps_in(tmp_path / "t.csv") == [*kept, 50]
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("cut_off", ["4", "4,", "4,0.", '4,"'])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, cut_off):
    path = tmp_path / "t.csv"
    make_table(path)
    path.write_text(path.read_text() + cut_off)
    assert steps_in(path) == [1, 2, 3]
    Table(path, COLUMNS, keep_until=99).append({"env_step": 5, "value": 0})
    assert path.read_text() == "env_step,value\n1,0.25\n2,0.5\n3,0.75\n5,0\n"


@pytest.mark.parametrize("text", ["", "env_st", "env_step,value\n"])
def test_a_table_cut_off_at_its_head_starts_anew(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    assert read_table(tmp_path / "t.csv") == []
    Table(tmp_path / "t.csv", COLUMNS, keep_until=99).append({"env_step": 1, "value": 2})
    assert steps_in(tmp_path / "t.csv") == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"total_steps": 0},
        {"total_steps": 10**300},
        {"settings": {"training": {"capacity": 10**18}}},
        {"settings": {"planner": {"horizon": 10**9}}},
        {"settings": {"dynamics": {"width": 1e9}}},
        {"settings": {"critic": {"support": [0, 1, 2]}}},
        {"settings": {"critic": {"support": "xy"}}},
        {"settings": {"training": {"num_envs": "2; rm -rf /"}}},
    ],
    ids=str,
)
def test_absurd_numbers_are_refused(folder, changes):
    rewrite(folder, **changes)
    assert "config.json is damaged: " in refused(folder.read_settings)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, " " * 2_000_000, "9" * 10_000], ids=lambda t: t[:5])
def test_crafted_records_are_refused(folder, text):
    (folder.path / "config.json").write_text(text)
    assert "config.json is damaged: " in refused(folder.read_settings)


def test_a_module_in_the_folder_is_not_imported(folder, monkeypatch):
    """A folder is data, also for somebody who stands in it."""
    (folder.path / "crafted.py").write_text("raise SystemExit('executed')")
    (folder.path / "package").mkdir()
    (folder.path / "package" / "__init__.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(folder.path))
    for module in ("crafted", "package", "package.below"):
        rewrite(folder, env_id=f"{module}:Any-v0")
        assert "name a module outside of the run folder" in refused(folder.read_settings)

    record = json.loads((folder.path / "config.json").read_text())
    record["settings"]["parts"]["reward"] = "crafted:reward"
    rewrite(folder, env_id="Hopper-v5", settings=record["settings"])
    assert "parts.reward must name a module outside of the run folder" in refused(folder.read_settings)


def test_what_a_run_was_made_with_before_stays_on_record(folder):
    folder.create(SETTINGS)
    assert folder.read_record()["earlier"] == []
    rewrite(folder, version="0.0.1", commit="abc")
    folder.create(SETTINGS)
    (before,) = folder.read_record()["earlier"]
    assert (before["version"], before["commit"]) == ("0.0.1", "abc")
    assert folder.read_record()["version"] != "0.0.1"


def test_the_commit_is_that_of_this_checkout():
    told = provenance.commit()
    assert (told is None) == (not (provenance.ROOT / ".git").exists())
    assert told is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", told)


def test_a_folder_is_held_by_one_at_a_time(folder):
    with folder.held():
        text = refused(lambda: RunFolder(folder.path).held().__enter__())
    assert text == f"another process trains in {folder.path}: wait for it, or choose another."
    with RunFolder(folder.path).held():
        pass


def test_settings_of_earlier_versions_are_read_under_the_names_of_this_one(folder):
    record = json.loads((folder.path / "config.json").read_text())
    for planner in ("planner", "target_planner"):
        del record["settings"][planner]["scenarios"]
    record["settings"]["objective"]["scenarios"] = "per_sample"
    record["settings"]["training"]["critic_steps"] = 0.5
    record["settings"]["critic"]["settle_after"] = 2500
    record["settings"]["critic"]["symlog"] = False
    (folder.path / "config.json").write_text(json.dumps(record))
    config = folder.read_settings().config
    assert (config.planner.scenarios, config.target_planner.scenarios) == ("per_sample", "per_sample")


def test_a_critic_that_cannot_be_read_any_more_is_refused(folder):
    record = json.loads((folder.path / "config.json").read_text())
    record["settings"]["critic"]["symlog"] = True
    (folder.path / "config.json").write_text(json.dumps(record))
    assert "got symlog" in refused(folder.read_settings)
