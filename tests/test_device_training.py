"""The device loop: the host loop's functions in one compiled loop, seeds side by side, runs that stop and go on."""

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic import device_training, training
from soft_mpcritic.agent import Agent, AgentState
from soft_mpcritic.checkpoint import Checkpoints, Which
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config, ConfigError
from soft_mpcritic.device_loop import DeviceLoop, Orders
from soft_mpcritic.device_training import DeviceRun, train_on_device
from soft_mpcritic.divergence import DivergenceError
from soft_mpcritic.envs import DeviceVector, EnvironmentFaultError, make_device_env, make_task
from soft_mpcritic.envs.device.pendulums import CartPoleState, CartPoleSwingUp
from soft_mpcritic.envs.device.vector import Outcome
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.files import read_table
from soft_mpcritic.forking import fork_seeds
from soft_mpcritic.memory import Footprint, available_memory, largest
from soft_mpcritic.recording import RunRecord, Schedule
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.seeds import fitted, prepare_seeds, seed_folders
from tests.systems import small_config
from tests.test_training import Silent, assert_same_run, final_arrays, without_times

ENV_ID = "CartPoleSwingUp"
STEPS = 110
EPISODE_STEPS = 20  # of training; the task itself has a thousand


def config(**changes: object) -> Config:
    short = {"training__backend": "device", "training__num_envs": 2, "training__episode_steps": EPISODE_STEPS}
    return small_config(**short, **changes)


def run(
    path: Path,
    seeds: int = 1,
    observer: Silent | None = None,
    resume: bool = False,
    seed: int = 0,
    total_steps: int = STEPS,
    env_id: str = ENV_ID,
    **changes: object,
) -> list[dict[str, Any]]:
    folder = RunFolder(path)
    runs = prepare_seeds(folder, RunSettings(env_id, "default", seed, total_steps, config(**changes)), seeds, resume)
    return train_on_device(folder, runs, observer or Silent())


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "single"
    (summary,) = run(path)
    assert summary["status"] == "finished"
    return path


class Counted(NamedTuple):
    path: Path
    compilations: list[int]  # of the loop, in each run


@pytest.fixture(scope="module")
def counted_pair(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    counted = Counted(tmp_path_factory.mktemp("device") / "pair", [])

    class Noted(DeviceRun):
        def close(self) -> None:
            play: Any = self.play
            counted.compilations.append(play._cache_size())
            super().close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_training, "DeviceRun", Noted)
        assert [summary["seed"] for summary in run(counted.path, seeds=2)] == [0, 1]
    return counted


@pytest.fixture(scope="module")
def pair(counted_pair: Counted) -> Path:
    return counted_pair.path


def test_the_loop_is_the_agents_functions_one_after_another():
    """Chunks of any length against the calls of the host loop: random steps, pretraining, planned steps."""
    settings = fitted(config(), STEPS)
    agent = Agent(make_task(ENV_ID, "device"), settings)
    vector = DeviceVector(make_device_env(ENV_ID), 2)
    loop, schedule = DeviceLoop(agent, vector, 20), Schedule(settings.training, STEPS)
    start = jit(loop.init)(jax.random.key(3))
    due = [schedule.updates(2 * (i + 1)) for i in range(15)]
    assert due[8:11] == [None, 5, 2]

    play, state = jit(loop.play), start
    for part in (due[:4], due[4:]):
        padded = part + [0] * (20 - len(part))
        at_random = np.array([updates is None for updates in padded])
        orders = Orders(at_random, np.array([n or 0 for n in padded], np.int32), np.zeros(20, np.int32))
        state, _ = play(state, np.int32(len(part)), orders)

    step, random_step, learn = jit(vector.step), jit(agent.random_step), jit(agent.learn)
    planned_step = jit(agent.planned_step, static_argnums=2)
    envs, one, action = start
    for updates in due:
        envs, experience = step(envs, action)
        if updates is None:
            one, action = random_step(one, experience)
        else:
            one, action, _ = planned_step(one, experience, "sample")
            one, _ = learn(one, np.int32(updates))
    assert int(one.updates) == int(state.agent.updates) == 5 + 5 * 2
    np.testing.assert_allclose(state.action, action, atol=1e-4)
    np.testing.assert_allclose(state.agent.replay.records, one.replay.records, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4),
        (state.agent.models, state.agent.replay.plans),
        (one.models, one.replay.plans),
    )


def test_a_run_folder_is_a_complete_run(single: Path):
    for name in ("config.json", "metrics.csv", "evaluations.csv", "summary.json", "learning_curve.png"):
        assert (single / name).is_file()
    rows = read_table(single / "metrics.csv")
    assert [int(row["env_step"]) for row in rows] == [20, 40, 50, 60, 80, 100, 110]
    known = [int(row["env_step"]) for row in rows if np.isfinite(float(row["model_error_last"]))]
    assert known == [50, 100, 110]
    evaluations = read_table(single / "evaluations.csv")
    assert [int(row["env_step"]) for row in evaluations] == [50, 50, 100, 100, 110, 110]
    assert int(final_arrays(single)[".replay.size"]) == STEPS
    checkpoints = Checkpoints(RunFolder(single))
    assert 110 in checkpoints.steps and checkpoints.best in (50, 100, 110)
    lengths = {float(row["train_length"]) for row in rows}
    assert EPISODE_STEPS in lengths and all(np.isnan(n) or n == EPISODE_STEPS for n in lengths)
    assert all(int(row["length"]) > EPISODE_STEPS for row in evaluations)


def test_the_best_evaluated_checkpoint_of_every_seed_stays(pair: Path):
    """Due at 40, 80 and the end; the first evaluation, at 50, is the best there is then."""
    for seed in ("seed0", "seed1"):
        folder = RunFolder(pair / seed)
        means, kept = folder.mean_returns(), Checkpoints(folder).steps
        best = max(means, key=lambda step: (means[step], step))
        assert sorted(means) == [50, 100, 110]
        assert best in kept and Checkpoints(folder).best == best


def test_seeds_side_by_side_do_not_touch_each_other_and_are_single_runs():
    """Next to whomever it is, a seed's numbers are the same to the bit.

    Alone they are so too, until learning begins: an axis of length 1 compiles to other code. That is 1e-5 after the
    first updates, and learning amplifies it as it does any rounding: in float64 the same comparison gives 3e-14
    there and 3e-11 after a whole run (docs/device.md).
    """
    settings = fitted(config(), STEPS)
    loop = DeviceLoop(Agent(make_task(ENV_ID, "device"), settings), DeviceVector(make_device_env(ENV_ID), 2), 20)
    init = jax.jit(jax.vmap(loop.init))
    play = jax.jit(jax.vmap(loop.play, in_axes=(0, None, None)))
    updates = np.array([0] * 9 + [5] + [2] * 10, np.int32)

    def after(steps: int, *seeds: int) -> dict[int, list[np.ndarray]]:
        states = init(jnp.stack([jax.random.key(seed) for seed in seeds]))
        states, _ = play(states, np.int32(steps), Orders(updates == 0, updates, np.zeros(20, np.int32)))
        kept = (states.agent.models, states.agent.replay, states.action, states.envs.envs)
        return {seed: [np.asarray(leaf[i]) for leaf in jax.tree.leaves(kept)] for i, seed in enumerate(seeds)}

    def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
        return max(float(np.max(np.abs(a - b))) for a, b in zip(one, other, strict=True))

    pair, swapped, another = after(20, 0, 1), after(20, 1, 0), after(20, 0, 5)
    assert apart(pair[0], swapped[0]) == apart(pair[1], swapped[1]) == apart(pair[0], another[0]) == 0
    for seed in (0, 1):
        assert apart(after(9, seed)[seed], after(9, 0, 1)[seed]) == 0
        assert apart(after(10, seed)[seed], after(10, 0, 1)[seed]) < 1e-4
    assert apart(pair[0], pair[1]) > 0.1


@pytest.mark.parametrize("stop_at", [pytest.param(20, marks=pytest.mark.slow), 60])
def test_an_interrupted_run_resumes_bit_by_bit(single: Path, tmp_path: Path, stop_at: int):
    path = tmp_path / "stopped"
    (summary,) = run(path, observer=Silent(stop_at, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (summary["status"], summary["env_step"]) == ("interrupted", stop_at)
    (summary,) = run(path, resume=True)
    assert summary["status"] == "finished"
    assert_same_run(single, path)


@pytest.mark.slow
def test_a_run_that_is_prolonged_is_the_longer_run(single: Path, tmp_path: Path):
    """Its replay is no larger than the shorter run needed, and grows."""
    run(tmp_path / "prolonged", total_steps=61)
    run(tmp_path / "prolonged", resume=True)
    longer, prolonged = final_arrays(single), final_arrays(tmp_path / "prolonged")
    for name in longer:
        np.testing.assert_array_equal(longer[name], prolonged[name], err_msg=name)
    run(tmp_path / "prolonged", resume=True, total_steps=20)  # a smaller budget loses nothing either
    assert int(final_arrays(tmp_path / "prolonged")[".replay.size"]) == STEPS


def test_seeds_are_forked_together(pair: Path, tmp_path: Path):
    """With the same settings they are the runs that never stopped."""
    source, target, new = (RunFolder(tmp_path / name) for name in ("source", "fork", "new"))
    run(source.path, seeds=2, total_steps=50)
    asked = RunSettings(ENV_ID, "default", 0, STEPS, config())
    told = fork_seeds(source, target, asked, 2)
    assert told == f"goes on from step 50 of {source.path / 'seed0'}, with the same settings, for all 2 seeds"
    run(target.path, seeds=2, resume=True)
    for seed in ("seed0", "seed1"):
        assert_same_run(pair / seed, target.path / seed)
        assert [origin["env_step"] for origin in RunFolder(target.path / seed).forks()] == [50]
    refused: tuple[tuple[RunFolder, Which, str], ...] = (
        (target, "newest", "already holds a run"),
        (new, "best", r"fork_at must be newest or a step that all seeds of .* keep \(40, 50\), got best"),
        (new, 90, r"fork_at must be newest or a step that all seeds of .* keep \(40, 50\), got 90"),
    )
    for to, at, why in refused:
        with pytest.raises(ConfigError, match=why):
            fork_seeds(source, to, asked, 2, at)
    shutil.rmtree(source.path / "seed1" / "checkpoints" / "50")  # seed 0 has it still
    with pytest.raises(ConfigError, match=r"keep \(40\), got 50: or fork one seed's folder"):
        fork_seeds(source, new, asked, 2, 50)
    assert not new.path.exists()
    assert "from step 40 " in fork_seeds(source, new, asked, 2)


@pytest.mark.slow
def test_seeds_killed_between_their_checkpoints_go_on_together(pair: Path, tmp_path: Path, monkeypatch):
    """Seed 0 has written its second checkpoint, seed 1 has not."""
    path, honest, written = tmp_path / "killed", RunRecord.checkpoint, []

    class KilledError(Exception): ...

    def killed(self: RunRecord, *arguments: Any) -> None:
        honest(self, *arguments)
        written.append(0)
        if len(written) == 3:
            raise KilledError

    monkeypatch.setattr(RunRecord, "checkpoint", killed)
    with pytest.raises(KilledError):
        run(path, seeds=2)
    monkeypatch.setattr(RunRecord, "checkpoint", honest)
    assert sorted(Checkpoints(RunFolder(path / "seed0"), 2).steps) == [40, 80]
    run(path, seeds=2, resume=True)
    for seed in ("seed0", "seed1"):
        assert_same_run(pair / seed, path / seed)


def test_one_compilation_serves_the_whole_run(counted_pair: Counted):
    assert counted_pair.compilations == [1]


@pytest.mark.slow
def test_seeds_killed_at_their_first_checkpoint_begin_anew_together(pair: Path, tmp_path: Path, monkeypatch):
    """Seed 0 has written one, seed 1 none: there is nothing to lose yet, and nothing to mend by hand."""
    path, honest = tmp_path / "killed", RunRecord.checkpoint

    class KilledError(Exception): ...

    def killed(self: RunRecord, *arguments: Any) -> None:
        honest(self, *arguments)
        raise KilledError

    monkeypatch.setattr(RunRecord, "checkpoint", killed)
    with pytest.raises(KilledError):
        run(path, seeds=2)
    monkeypatch.setattr(RunRecord, "checkpoint", honest)
    shutil.rmtree(path / "seed1")  # as if it had been killed even earlier, while folders were made
    shutil.move(path / "seed0" / "checkpoints", tmp_path / "kept")
    run(path, seeds=2, resume=True, total_steps=10)
    shutil.rmtree(path / "seed0" / "checkpoints")
    shutil.rmtree(path / "seed1" / "checkpoints")
    shutil.move(tmp_path / "kept", path / "seed0" / "checkpoints")
    run(path, seeds=2, resume=True)
    for seed in ("seed0", "seed1"):
        assert_same_run(pair / seed, path / seed)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_of_one_seed_takes_all_back_to_the_one_before(pair: Path, tmp_path: Path, caplog):
    path = Path(shutil.copytree(pair, tmp_path / "damaged"))
    state = path / "seed1" / "checkpoints" / str(STEPS) / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    run(path, seeds=2, resume=True)
    assert f"checkpoint {STEPS} of {path / 'seed1'} is damaged" in caplog.text
    for seed in ("seed0", "seed1"):
        assert (path / seed / "checkpoints" / f"{STEPS}.aside").is_dir()
        assert_same_run(pair / seed, path / seed)


# ------------------------------------------------------------------- worlds


class MoodyState(NamedTuple):
    """A cart-pole, what it will do wrong, and when."""

    inner: CartPoleState
    mood: jax.Array
    time: jax.Array


class Moody(CartPoleSwingUp):
    """In half of its episodes, the sixth step answers NaN, an infinite reward, or a position of 1e20."""

    max_steps = 12

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        state, obs = super().reset(key)
        return MoodyState(state, jax.random.randint(key, (), 0, 6), jnp.zeros((), jnp.int32)), obs

    def step(self, state: Any, action: jax.Array) -> Outcome:
        inner, obs, reward, terminated = super().step(state.inner, action)
        mood = jnp.where(state.time == 5, state.mood, 9)
        obs = obs.at[0].set(jnp.select([mood == 0, mood == 2], [jnp.nan, 1e20], obs[0]))
        return Outcome(
            MoodyState(inner, state.mood, state.time + 1), obs, jnp.where(mood == 1, -jnp.inf, reward), terminated
        )


@pytest.fixture
def moody(monkeypatch):
    monkeypatch.setattr(device_training, "make_device_env", lambda *_: Moody())


@pytest.mark.slow
def test_numbers_that_nobody_can_learn_from_are_survived_counted_and_never_kept(
    moody, tmp_path: Path, monkeypatch, caplog
):
    honest, broken = Evaluator._play, []

    def play(self: Evaluator, *arguments: Any) -> Any:
        if len(broken) < 2:  # of all seeds together, and then of the first alone
            broken.append(0)
            raise EnvironmentFaultError("observation or reward of environment 0 is not finite")
        return honest(self, *arguments)

    monkeypatch.setattr(Evaluator, "_play", play)
    (summary,) = run(tmp_path / "run", training__faults_tolerated=99)
    told = [record.getMessage() for record in caplog.records if "the episode is cut" in record.getMessage()]
    steps = {text.rpartition("step ")[2] for text in told if "evaluation" not in text}
    assert summary["status"] == "finished" and summary["faults"] == len(told) > len(steps) >= 3
    assert sum("in an evaluation of seed 0" in text for text in told) == 1
    arrays = final_arrays(tmp_path / "run")
    assert all(np.isfinite(array).all() for array in arrays.values())
    records = arrays[".replay.records"]
    assert len(records) == STEPS - 2 * len(steps)
    for first in (0, 6):  # every observation kept is one of a cart-pole: cos^2 + sin^2 = 1
        np.testing.assert_allclose(np.sum(records[:, first + 1 : first + 3] ** 2, axis=1), 1, rtol=1e-4)
    assert np.abs(arrays[".models.obs_scale.mean"]).max() < 10


@pytest.mark.slow
def test_too_many_such_numbers_stop_the_run_after_a_checkpoint(moody, tmp_path: Path):
    told = (
        r"environment [01] of seed 0 is not finite, or beyond 1e\+15; 1 faults were tolerated, at environment step \d+"
    )
    with pytest.raises(EnvironmentFaultError, match=told):
        run(tmp_path / "run", training__faults_tolerated=1)
    assert Checkpoints(RunFolder(tmp_path / "run"), 2).latest
    (summary,) = run(tmp_path / "run", resume=True, training__faults_tolerated=99)
    assert summary["status"] == "finished" and summary["faults"] > 2


def test_a_world_that_begins_with_nonsense_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(CartPoleSwingUp, "observe", lambda self, state: jnp.full(5, jnp.nan))
    with pytest.raises(EnvironmentFaultError, match="first observation of environment 0 of seed 0 is not finite"):
        run(tmp_path / "run")


# --------------------------------------------------------------- divergence


@pytest.fixture
def poison(monkeypatch) -> Callable[[], None]:
    """Spoils the critic of the last seed in the run under way: no update of it is finite from then on."""
    begun: list[DeviceRun] = []
    honest = DeviceRun.__init__

    def noted(self: DeviceRun, *arguments: Any) -> None:
        honest(self, *arguments)
        begun.append(self)

    def spoiled(agent: AgentState, which: jax.Array) -> AgentState:
        networks = jax.tree.map(lambda leaf: jnp.where(which, jnp.nan, leaf), agent.models.critic.networks)
        critic = dataclasses.replace(agent.models.critic, networks=networks)
        return dataclasses.replace(agent, models=dataclasses.replace(agent.models, critic=critic))

    def spoil() -> None:
        state = begun[-1]._states
        last = jnp.array([False] * (len(state.action) - 1) + [True])
        begun[-1]._states = state._replace(agent=jax.vmap(spoiled)(state.agent, last))

    monkeypatch.setattr(DeviceRun, "__init__", noted)
    return spoil


@pytest.mark.slow
def test_a_seed_that_diverges_takes_all_back_and_goes_on_with_smaller_steps(pair: Path, tmp_path: Path, poison, caplog):
    spoiled: list[int] = []

    def once() -> None:
        if not spoiled:
            spoiled.append(0)
            poison()

    summaries = run(tmp_path / "run", seeds=2, observer=Silent(60, once), training__skips_tolerated=5)
    assert [(summary["status"], summary["rollbacks"]) for summary in summaries] == [("finished", 1)] * 2
    assert [summary["skipped_updates"] for summary in summaries] == [0, 20]
    assert "back to environment step 40" in caplog.text
    sizes = [float(final_arrays(tmp_path / "run" / seed)[".health.step_size"]) for seed in ("seed0", "seed1")]
    assert sizes == [1, 0.5]
    assert all(np.isfinite(leaf).all() for leaf in final_arrays(tmp_path / "run" / "seed1").values())
    one, other = (final_arrays(path / "seed0") for path in (pair, tmp_path / "run"))
    assert all(np.array_equal(one[name], other[name]) for name in one)  # who was sound lost nothing but time
    steps = [int(row["env_step"]) for row in read_table(tmp_path / "run" / "seed1" / "metrics.csv")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


@pytest.mark.slow
def test_seeds_that_diverge_stop_after_a_checkpoint_where_they_are_told_to(tmp_path: Path, poison):
    settings = {"training__skips_tolerated": 5, "training__divergence": "stop"}
    with pytest.raises(DivergenceError, match="learning diverges: the last 18 updates were not finite"):
        run(tmp_path / "run", seeds=2, observer=Silent(60, poison), **settings)
    for seed in ("seed0", "seed1"):
        assert Checkpoints(RunFolder(tmp_path / "run" / seed), 2).latest == 80


def test_seed_folders_are_found_in_order(pair: Path, single: Path, tmp_path: Path):
    assert [run.path.name for run in seed_folders(RunFolder(pair))] == ["seed0", "seed1"]
    assert [run.path for run in seed_folders(RunFolder(single))] == [single]
    assert seed_folders(RunFolder(tmp_path / "nowhere")) == []


def test_resuming_with_other_seeds_is_refused(pair: Path):
    with pytest.raises(ConfigError, match="holds 2 seeds from 0 on, got 3 from 0 on: leave --seed and --num-seeds out"):
        run(pair, seeds=3, resume=True)
    with pytest.raises(ConfigError, match="already holds a run: add --resume"):
        run(pair, seeds=2)


def test_a_run_cannot_change_its_backend(single: Path):
    host = dataclasses.replace(config().training, backend="host")
    asked = RunSettings(ENV_ID, "default", 0, STEPS, dataclasses.replace(config(), training=host))
    with pytest.raises(ConfigError, match="exists on the device only: add --backend device"):
        training.prepare_run(RunFolder(single), asked, True)


# ------------------------------------------------------------------- memory


def footprint(**changes: object) -> Footprint:
    return Footprint(make_task(ENV_ID, "device"), config(**changes), make_device_env(ENV_ID))


@pytest.mark.parametrize("envs", [1, 2, 7])
def test_states_are_counted_to_the_byte(envs: int):
    settings = small_config(training__num_envs=envs)
    loop = DeviceLoop(Agent(make_task(ENV_ID, "device"), settings), DeviceVector(make_device_env(ENV_ID), envs), 1)
    envs_state, agent, _ = loop.init(jax.random.key(0))
    plain = (
        dataclasses.replace(agent, key=jax.random.key_data(agent.key)),
        (envs_state.envs, envs_state.time, jax.random.key_data(envs_state.key)),
    )
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(plain))
    first_obs = 4 * 5 * envs
    assert footprint()._state_bytes(envs) == held + first_obs


def test_what_does_not_fit_is_refused_with_what_would():
    tight = footprint(training__capacity=100_000)
    limit = int(tight.bytes(3, 2) / 0.9) + 1
    tight.check(3, limit, "memory")
    with pytest.raises(
        ConfigError, match=r"num_seeds 9 x num_envs 2 must fit into .* GiB of memory, got about .* GiB: "
    ):
        tight.check(9, limit, "memory")
    with pytest.raises(ConfigError, match="--num-seeds 3 fits"):
        tight.check(4, limit, "memory")
    with pytest.raises(ConfigError, match=r"lower training\.capacity"):
        tight.check(1, 1000, "memory")


@pytest.mark.parametrize(("steps", "rows"), [(100, 400), (398, 400), (400, 402), (5000, 1000)])
def test_a_replay_holds_its_whole_run_and_both_kinds_of_stretches_but_no_more(steps: int, rows: int):
    settings = small_config(training__capacity=1000, training__num_envs=2, training__control_stretch=100)
    assert fitted(settings, steps).training.capacity == rows


@pytest.mark.parametrize("most", [0, 1, 5, 99])
def test_the_largest_that_fits_is_found(most: int):
    assert largest(lambda count: count <= most, 100) == most


def test_this_machine_has_memory():
    size, place = available_memory()
    assert size > 2**28 and "memory" in place


def test_metrics_are_those_of_the_steps(pair: Path):
    """One row per log point; figures of learning once learning has begun."""
    for seed in ("seed0", "seed1"):
        rows = without_times(pair / seed / "metrics.csv")
        assert rows[0]["critic_loss"] != "nan" and int(rows[-1]["updates"]) == 5 + 2 * 45
