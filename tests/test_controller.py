"""Controllers of a run folder, in this process and, exported, in another one."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic import ConfigError, Controller, ExportedController, cli, exported
from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.controller import control_program
from soft_mpcritic.envs import make_task
from soft_mpcritic.exported import read_artefact
from soft_mpcritic.planner import CONTROL_CRITICS, Planner
from soft_mpcritic.planning import shift
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state
from tests.systems import small_config, untrained_run

ENV_ID = "Hopper-v5"
OBSERVATIONS = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
DEPLOYING = Path(__file__).parent.parent / "docs" / "deploying.md"
FORBIDDEN = ("gymnasium", "optax", "orbax", "tyro", "equinox", "jaxtyping", "mujoco", "matplotlib", "rich")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of no steps: what it does is no good, but it is determined."""
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", ENV_ID)


@pytest.fixture(scope="module")
def artefact(run_dir: Path) -> Path:
    out = run_dir.parent / "hopper.zip"
    assert cli.main(["export", str(run_dir), str(out)]) == 0
    return out


def played(controller) -> np.ndarray:
    controller.reset()
    return np.array([controller(obs) for obs in OBSERVATIONS])


def test_a_controller_chains_warm_started_solves(run_dir):
    folder = RunFolder(run_dir)
    agent, state = load_state(folder, folder.read_settings())
    solve, key = jit(agent.planner.plan_to_control), jax.random.key(3)
    controller = Controller.load(run_dir, seed=3)
    start = np.zeros((1, 5, 3), np.float32)
    for n, obs in enumerate(OBSERVATIONS):
        result = solve(state.models, jax.random.fold_in(key, n), obs[None].astype(np.float32), start)
        expected = agent.planner.to_env(result.plan[:, 0])[0]
        np.testing.assert_allclose(controller(obs), expected, atol=1e-4)
        assert controller.value == pytest.approx(float(result.value[0]), abs=1e-2)
        start = shift(result.plan)
        np.testing.assert_allclose(controller.plan, result.plan[0], atol=1e-4)


@pytest.mark.parametrize("asked", ["newest", "slow", "mean"])
def test_a_controllers_program_holds_the_critic_that_it_asks_alone(asked):
    agent = Agent(make_task(ENV_ID), small_config(critic__control=asked))
    models = jit(agent.planner.init_models)(jax.random.key(0))
    others = [name for name in CONTROL_CRITICS.values() if getattr(models, name) is not None]
    copies = {name: jax.tree.map(lambda leaf, i=i: (1 + i) * leaf, models.critic) for i, name in enumerate(others)}
    models = dataclasses.replace(models, **copies)
    made = control_program(agent, models, 1)
    critics = {name.partition(".networks")[0] for name in made.arrays if "critic" in name}
    assert critics == {"." + CONTROL_CRITICS[asked]}
    obs, start, number = jnp.asarray(OBSERVATIONS[:1]), jnp.zeros((1, 5, 3)), np.uint32(0)
    plan, value = jit(made.program)(list(made.arrays.values()), number, number, obs, start)
    expected = jit(agent.planner.plan_to_control)(models, jax.random.fold_in(jax.random.key(0), 0), obs, start)
    np.testing.assert_allclose(plan, expected.plan, atol=1e-5)
    np.testing.assert_allclose(value, expected.value, rtol=1e-4)


def test_the_same_seed_gives_the_same_actions_and_another_gives_others(run_dir):
    one = played(Controller.load(run_dir, seed=1))
    np.testing.assert_array_equal(one, played(Controller.load(run_dir, seed=1, deadline=60.0)))
    assert not np.array_equal(one, played(Controller.load(run_dir, seed=2)))


def test_a_controller_is_traced_once_before_its_first_call(run_dir, monkeypatch):
    traced, honest = [], Planner.plan_to_control

    def plan(self, *arguments):
        traced.append(0)
        return honest(self, *arguments)

    monkeypatch.setattr(Planner, "plan_to_control", plan)
    controller = Controller.load(run_dir, plants=2)
    assert len(traced) == 1
    for _ in range(3):
        assert controller(OBSERVATIONS[:2]).shape == (2, 3)
        controller.reset(np.array([True, False]))
    assert controller.plan.shape == (2, 5, 3) and controller.value.shape == (2,)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"plants": 0}, "plants must be >= 1, got 0"), ({"seed": -1}, "seed"), ({"deadline": -1.0}, "deadline")],
    ids=str,
)
def test_controllers_that_cannot_be_are_refused(run_dir, arguments, words):
    with pytest.raises(ValueError, match=words):
        Controller.load(run_dir, **arguments)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        Controller.load(tmp_path)


# ------------------------------------------------------------------- artefact


def test_an_exported_controller_acts_as_the_controller_does(run_dir, artefact):
    for seed in (0, 5):
        expected = played(Controller.load(run_dir, seed=seed))
        np.testing.assert_array_equal(played(ExportedController(artefact, seed=seed)), expected)


def test_the_manifest_says_what_the_controller_is(artefact):
    manifest = ExportedController(artefact).manifest
    expected = {"env_id": ENV_ID, "plants": 1, "obs_size": 12, "action_size": 3, "action_low": [-1, -1, -1]}
    assert expected.items() <= manifest.items()
    assert manifest["step_seconds"] == pytest.approx(0.008)
    assert manifest["settings"]["planner"]["num_samples"] == 8
    asked = {name.split(".")[1] for name in manifest["arrays"] if "critic" in name}
    assert asked == {"mean_critic"}  # which control asks; the others stay at home


def test_an_artefact_tells_nothing_of_the_machine_that_made_it(artefact):
    library = str(Path(exported.__file__).parent).encode()
    with zipfile.ZipFile(artefact) as file:
        assert not any(library in file.read(name) for name in file.namelist())


def test_equal_controllers_give_equal_files(run_dir, artefact, tmp_path):
    assert cli.main(["export", str(run_dir), str(tmp_path / "again.zip")]) == 0
    assert (tmp_path / "again.zip").read_bytes() == artefact.read_bytes()


SCRIPT = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden}:
            raise ImportError(name + " is forbidden here")

sys.meta_path.insert(0, Refuse())
import exported
assert "soft_mpcritic" not in sys.modules
controller = exported.ExportedController({artefact!r})
actions = [controller(obs).tolist() for obs in {observations}]
from soft_mpcritic import ExportedController
ExportedController.__init__
assert sorted(name for name in sys.modules if name.startswith("soft_mpcritic")) == [
    "soft_mpcritic", "soft_mpcritic.exported"
]
print(json.dumps(actions))
"""


def test_an_artefact_acts_in_a_fresh_process_without_what_training_needs(artefact, tmp_path):
    """First with a copy of the one file that reads it, then with the package."""
    shutil.copy(exported.__file__, tmp_path)
    script = SCRIPT.format(forbidden=FORBIDDEN, artefact=str(artefact), observations=OBSERVATIONS.tolist())
    source = Path(exported.__file__).parent.parent
    environment = {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(source), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = played(ExportedController(artefact))
    np.testing.assert_array_equal(np.array(json.loads(done.stdout), np.float32), expected)


def rewritten(source: Path, out: Path, **changes: object) -> Path:
    """The artefact with entries of its manifest changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json":
                content = json.dumps({**json.loads(content), **changes}).encode()
            new.writestr(name, content)
    return out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "has format 99, this version reads 1: use soft-mpcritic "),
        ({"artefact": "song"}, "is no exported controller"),
        ({"platforms": ["tpu"]}, "is for tpu, this process runs on "),
        ({"sha256": {"models.npz": "0"}}, "is damaged: models.npz is not what its checksum says"),
    ],
    ids=str,
)
def test_an_artefact_that_cannot_act_here_is_refused(artefact, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        ExportedController(rewritten(artefact, tmp_path / "other.zip", **changes))


def test_a_truncated_artefact_is_refused(artefact, tmp_path):
    content, path = artefact.read_bytes(), tmp_path / "cut.zip"
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.zip is damaged"):
            read_artefact(path)


def test_a_damaged_byte_is_found(artefact, tmp_path):
    """Wherever it is: what is read is either refused in one line or what was written."""
    content, path, whole = artefact.read_bytes(), tmp_path / "bad.zip", read_artefact(artefact)
    refused = 0
    places = np.random.default_rng(0).integers(0, len(content), 60)
    for place in [*places, *range(60), *range(len(content) - 60, len(content))]:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert read_artefact(path) == whole
        except ValueError as error:
            assert "bad.zip" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 60


@pytest.mark.parametrize("name", ["nothing.zip", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be read"):
        ExportedController(tmp_path / name)


def test_the_python_of_the_deployment_guide_runs(run_dir, artefact):
    text = DEPLOYING.read_text().replace("runs/mine", str(run_dir)).replace("pendulum.zip", str(artefact))
    names = {"first_obs": OBSERVATIONS[0], "step_plant": lambda action: OBSERVATIONS[1] + 0 * action[0]}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(DEPLOYING), "exec"), dict(names))


# --------------------------------------------------------------- command line


def test_bench_control_prints_one_json_object_and_nothing_else(run_dir, capsys):
    arguments = ["--rate", "50", "--seconds", "0.2", "--plants", "2", "--json"]
    assert cli.main(["bench", "control", str(run_dir), *arguments]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["steps"] == 10 and record["plants"] == 2 and record["rate"] == 50
    assert 0 <= record["misses"] <= 10
    latency = record["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


def test_bench_control_takes_the_rate_of_the_task_by_default(run_dir, capsys):
    assert cli.main(["bench", "control", str(run_dir), "--seconds", "0.1"]) == 0
    assert "125 Hz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "control", "nowhere"], ("nowhere is not a run folder",)),
        (["bench", "control", "RUN", "--rate", "0"], ("rate must be > 0", "got 0", "try 100")),
        (["bench", "control", "RUN", "--rate", "nan"], ("rate", "nan")),
        (["bench", "control", "RUN", "--seconds", "-1"], ("seconds", "-1")),
        (["bench", "control", "RUN", "--plants", "0"], ("plants must be >= 1, got 0",)),
        (["bench", "control", "RUN", "--seed", "-1"], ("seed", "-1")),
        (["bench"], ("control",)),
        (["export", "RUN"], ("What to write",)),
        (["export", "nowhere", "x.zip"], ("nowhere is not a run folder",)),
        (["export", "RUN", "no/such/x.zip"], ("no/such", "first")),
        (["export", "RUN", "x.zip", "--plants", "0"], ("plants must be >= 1, got 0",)),
        (["export", "RUN", "notes.txt"], ("notes.txt is in the way",)),
        (["export", "RUN", "."], (". is in the way",)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_commands_that_cannot_work_are_refused_in_one_line(run_dir, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("keep me")
    assert cli.main([str(run_dir) if a == "RUN" else a for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "keep me"
