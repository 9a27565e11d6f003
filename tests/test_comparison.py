"""Which runs belong together, what their labels say, and the tables and pictures of them."""

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from soft_mpcritic.comparison import TIDY_COLUMNS, EvaluatedRun, Group, group_runs, markdown_table, write_tidy
from soft_mpcritic.config import ConfigError, override
from soft_mpcritic.plotting import plot_groups
from soft_mpcritic.presets import preset
from soft_mpcritic.run_folder import RunDescription, RunFolder, RunSettings

PENDULUM = "Pendulum-v1"


@pytest.fixture
def make(tmp_path):
    """Writes a run folder and reads it."""

    def write(
        name: str,
        seed: int = 0,
        returns: dict[int, float] | None = None,
        algorithm: str | None = None,
        env_id: str = PENDULUM,
        preset_name: str = "default",
        **changes: object,
    ) -> EvaluatedRun:
        folder = RunFolder(tmp_path / name)
        settings = {key.replace("__", "."): value for key, value in changes.items()}
        if algorithm is None:
            folder.create(RunSettings(env_id, preset_name, seed, 100, override(preset(preset_name), settings)))
        else:
            described = {"baseline": {"learning_starts": 100, **changes}}
            folder.create(RunDescription(env_id, algorithm, "default", seed, 100, described))
        rows = (returns or {10: 1.0, 20: 2.0}).items()
        lines = [f"{step},{step * 6},{i},{i},{ret + i},5" for step, ret in rows for i in (-1, 0, 1)]
        text = "\n".join(["env_step,wall_seconds,episode,seed,return,length", *lines, ""])
        (folder.path / "evaluations.csv").write_text(text)
        return EvaluatedRun.read(folder, folder.path.parent)

    return write


def told(groups: list[Group]) -> list[tuple[str, list[int]]]:
    return [(group.label, [run.description.seed for run in group.runs]) for group in groups]


def test_runs_that_differ_by_their_seeds_alone_are_one_group(make):
    runs = [make("a", 0), make("b", 1, planner__horizon=2), make("c", 2), make("d", 3, planner__horizon=2)]
    assert told(group_runs(runs)) == [("planner.horizon 4", [0, 2]), ("planner.horizon 2", [1, 3])]


def test_settings_that_learning_does_not_feel_are_none(make):
    runs = [make("a", 0), make("b", 1, training__evaluate_every=7, training__log_every=9)]
    assert told(group_runs(runs)) == [("default", [0, 1])]


def test_a_single_setting_is_called_by_its_preset_or_algorithm(make):
    assert told(group_runs([make("a", planner__horizon=2)])) == [("default", [0])]
    assert told(group_runs([make("b", algorithm="sac")])) == [("sac", [0])]


def test_labels_say_the_algorithm_where_there_are_several(make):
    runs = [
        make("a"),
        make("b", algorithm="sac"),
        make("c", algorithm="td3", learning_starts=1),
        make("d", algorithm="td3"),
    ]
    labels = ["soft-mpcritic", "sac", "td3, baseline.learning_starts 1", "td3, baseline.learning_starts 100"]
    assert [label for label, _ in told(group_runs(runs))] == labels


def test_labels_say_the_preset_and_what_departs_from_it(make):
    runs = [make("a"), make("b", preset_name="paper"), make("c", preset_name="paper", planner__horizon=2)]
    assert [label for label, _ in told(group_runs(runs))] == ["default", "paper", "paper, planner.horizon 2"]


def test_labels_keep_silent_about_what_all_groups_share(make):
    runs = [make("a", planner__horizon=2), make("b", preset_name="paper", planner__horizon=2)]
    assert [label for label, _ in told(group_runs(runs))] == ["default", "paper"]


def test_environments_are_groups_of_their_own(make):
    runs = [make("a", 0), make("b", 1), make("c", 0, env_id="Hopper-v5")]
    groups = group_runs(runs)
    assert [(group.env_id, len(group.runs)) for group in groups] == [(PENDULUM, 2), ("Hopper-v5", 1)]


def test_folders_are_groups_where_they_are_asked_for(make, tmp_path):
    runs = [make("one/a", 0), make("two/a", 0), make("two/b", 1, planner__horizon=2)]
    expected = [(str(tmp_path / "one"), [0]), (str(tmp_path / "two"), [0, 1])]
    assert told(group_runs(runs, "folder")) == expected


def test_a_run_that_is_named_twice_counts_once(make):
    run = make("a")
    (run.folder.path.parent / "x").mkdir()
    again = EvaluatedRun.read(RunFolder(run.folder.path.parent / "x" / ".." / "a"))
    assert told(group_runs([run, again, run])) == [("default", [0])]


def test_runs_of_the_same_seed_do_not_count_as_independent(make):
    with pytest.raises(ConfigError, match=r"a and .*b have the same settings and seed 3: .* --group-by folder"):
        group_runs([make("a", 3), make("b", 3)])


def test_a_group_is_seen_at_the_steps_that_all_its_runs_have(make):
    (group,) = group_runs([make("a", 0, {10: 1, 20: 2, 30: 3}), make("b", 1, {20: 5, 30: 6, 40: 7})])
    np.testing.assert_array_equal(group.env_step, [20, 30])
    np.testing.assert_array_equal(group.returns, [[2, 3], [5, 6]])
    np.testing.assert_allclose(group.minutes, [2, 3])


def test_runs_that_never_meet_are_refused(make):
    (group,) = group_runs([make("a", 0, {10: 1}), make("b", 1, {20: 5})])
    with pytest.raises(ConfigError, match="never evaluated at the same step"):
        _ = group.env_step


def test_the_tidy_table_holds_every_evaluation(make, tmp_path):
    groups = group_runs([make("a", 0, {10: 1, 20: 2}), make("b", 1, {10: 3}), make("c", 0, {10: 4}, algorithm="sac")])
    write_tidy(groups, tmp_path / "tidy.csv")
    with (tmp_path / "tidy.csv").open() as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == TIDY_COLUMNS
    assert rows == [
        [PENDULUM, "soft-mpcritic", "0", "10", "60.0", "1.0"],
        [PENDULUM, "soft-mpcritic", "0", "20", "120.0", "2.0"],
        [PENDULUM, "soft-mpcritic", "1", "10", "60.0", "3.0"],
        [PENDULUM, "sac", "0", "10", "60.0", "4.0"],
    ]


def test_the_markdown_table_says_when_the_threshold_was_reached(make):
    quick, slow, never = {10: 5.0, 20: 5, 30: 9}, {10: 0.0, 20: 0, 30: 7}, {10: 0.0, 20: 4, 30: 4}
    ours = [make(f"a{seed}", seed, returns) for seed, returns in enumerate((quick, slow, slow))]
    others = [make(f"b{seed}", seed, returns, "sac") for seed, returns in enumerate((quick, never, never))]
    table = markdown_table(group_runs([*ours, *others]), threshold=5.0).splitlines()
    assert table[0].endswith("| steps to 5 | minutes to 5 |")
    assert [row.count("|") for row in table] == [8] * 4
    assert table[2] == f"| {PENDULUM} | soft-mpcritic | 3 | 30 | 7.3 [7.0, 9.0] | 30 (3 of 3) | 3.0 |"
    assert table[3] == f"| {PENDULUM} | sac | 3 | 30 | 4.8 [4.0, 9.0] | not reached (1 of 3) | not reached |"


def test_without_threshold_or_other_runs_the_table_is_silent_about_them(make):
    table = markdown_table(group_runs([make("a", returns={10: 1000.0})])).splitlines()
    assert table[2] == f"| {PENDULUM} | default | 1 | 10 | 1,000.0 |"


@pytest.mark.parametrize("x", ["steps", "minutes"])
@pytest.mark.parametrize("band", ["iqm", "quantiles"])
def test_groups_and_single_runs_of_two_environments_are_drawn(make, tmp_path: Path, x, band):
    groups = group_runs([make("a", 0), make("b", 1), make("c", algorithm="sac"), make("d", env_id="Hopper-v5")])
    out = tmp_path / "curves.svg"
    plot_groups(groups, out, x, band, threshold=1.5)
    text = out.read_text()
    assert text.count("<!-- evaluation return -->") == 2
    expected = ["Hopper-v5", PENDULUM, "soft-mpcritic (2 runs)", "sac (seed 0)", "single runs: mean and range"]
    expected.append({"steps": "environment steps", "minutes": "wall time, minutes"}[x])
    expected.append({"iqm": "interquartile mean over runs", "quantiles": "median over runs"}[band])
    assert [part for part in expected if part not in text] == []


MANY = {"planner__num_samples": 7, "target_planner__num_samples": 3, "critic__batch_size": 5}


@pytest.mark.parametrize(("changes", "within"), [({"planner__horizon": 2}, True), (MANY, False)])
def test_a_legend_of_long_labels_stands_above_the_panels(make, tmp_path, monkeypatch, changes, within):
    figures: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, file, **_: (figures.append(figure), file.write_bytes(b"seen"))
    )
    plot_groups(group_runs([make("a"), make("b", **changes)]), tmp_path / "curves.png")
    (figure,) = figures
    assert (figure.axes[0].get_legend() is not None) == within
    assert bool(figure.legends) != within
