"""The viewer: a session without a browser, and once, if there is one, with."""

import dataclasses
import socket
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic import cli
from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.checkpoint import Checkpoints
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config, ConfigError, override
from soft_mpcritic.envs import make_task
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.viewer.foresight import Foresight, Setting, adapted
from soft_mpcritic.viewer.loop import Clock, Loop, check_port, open_viewer
from soft_mpcritic.viewer.plant import Column, Plant, find_columns
from soft_mpcritic.viewer.session import Session
from tests.systems import small_config

DOUBLE = "InvertedDoublePendulum-v5"
OBS = np.array([0.1, 0.2, -0.1, 0.98, 0.99, 0.3, -0.2, 0.1, 0.0], np.float32)


@pytest.fixture(scope="module")
def untrained() -> tuple[Agent, AgentState]:
    """A controller that knows nothing yet; its networks are determined."""
    agent = Agent(make_task(DOUBLE), small_config())
    return agent, jit(agent.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def one_session(untrained) -> Iterator[Session]:
    agent, state = untrained
    made = Session(agent, state.models, seed=0)
    yield made
    made.close()


@pytest.fixture
def session(one_session) -> Session:
    """As good as new: what was compiled is kept."""
    one_session.wanted = Setting(8, 4)
    until_settled(one_session)
    one_session.temperature = small_config().objective.temperature
    one_session.history.clear()
    one_session.reset()
    one_session.time, one_session.episode = 0.0, 1
    return one_session


def until_settled(session: Session) -> None:
    deadline = time.monotonic() + 120
    while not session.settled:
        assert time.monotonic() < deadline
        session.tick()
        time.sleep(0.01)


# ------------------------------------------------------------------ the solve


def test_a_solve_laid_open_is_the_runs_own(untrained):
    agent, state = untrained
    foresight = Foresight(agent, state.models, Setting(8, 4), seed=3)
    start = np.full((5, 1), 0.2, np.float32)
    key = jax.random.fold_in(jax.random.key(3), 7)
    config = dataclasses.replace(agent.config.planner, iterations=1)  # several are chained here and there alike
    once = dataclasses.replace(agent, config=dataclasses.replace(agent.config, planner=config))
    wanted = jit(once.planner.plan_to_control)(state.models, key, OBS[None], start[None])
    solved = Foresight(once, state.models, Setting(8, 4), seed=3).solve(
        7, OBS, start, once.config.objective.temperature
    )
    np.testing.assert_allclose(solved.plan, wanted.plan[0], atol=1e-5)
    np.testing.assert_allclose(solved.value, wanted.value[0], rtol=1e-5)
    twice = foresight.solve(7, OBS, start, agent.config.objective.temperature)
    assert agent.config.planner.iterations == 2
    wanted = jit(agent.planner.plan_to_control)(state.models, key, OBS[None], start[None])
    np.testing.assert_allclose(twice.plan, wanted.plan[0], atol=1e-5)


@pytest.mark.parametrize("guided", [False, True])
def test_a_temperature_handed_over_is_one_that_was_compiled(untrained, guided):
    """Division of the returns stands for it: plan and value must be those of a planner that has it as a constant."""
    _, state = untrained
    start = np.full((5, 1), 0.2, np.float32)
    answers = []
    for compiled, handed in ((0.1, 0.7), (0.7, 0.7)):
        agent = Agent(make_task(DOUBLE), small_config(objective__temperature=compiled, planner__guided=guided))
        answers.append(Foresight(agent, state.models, Setting(8, 4)).solve(1, OBS, start, handed))
    by_scaling, by_constant = answers
    np.testing.assert_allclose(by_scaling.plan, by_constant.plan, atol=1e-4)
    np.testing.assert_allclose(by_scaling.value, by_constant.value, rtol=1e-4)
    np.testing.assert_allclose(by_scaling.effective_samples, by_constant.effective_samples, rtol=1e-3)


def test_what_is_imagined_is_what_the_models_say_step_by_step(untrained):
    agent, state = untrained
    foresight = Foresight(agent, state.models, Setting(6, 2))
    solved = foresight.solve(0, OBS, np.zeros((3, 1), np.float32), 0.1)
    imagined = foresight.imagine(OBS, solved)
    members = agent.config.dynamics.members
    assert imagined.samples.shape == (6, 3, 9) and imagined.plan.shape == (members, 3, 9)

    def lived(number: int, actions: np.ndarray) -> np.ndarray:
        member = jax.tree.map(lambda leaf: leaf[number], state.models.dynamics.members)
        obs = [OBS]
        for action in actions[:-1]:
            outcome = agent.planner.model_step(state.models, member, jnp.array(obs[-1][None]), jnp.array(action[None]))
            obs.append(np.asarray(outcome.next_obs[0]))
        return np.stack(obs)

    np.testing.assert_allclose(imagined.samples[5], lived(5 % members, solved.samples[5]), atol=1e-5)
    np.testing.assert_allclose(imagined.plan[1], lived(1, solved.plan), atol=1e-5)
    assert imagined.disagreement[0] == 0 and imagined.disagreement[2] > imagined.disagreement[1] > 0


def test_a_share_of_members_asks_all_of_them_and_keeps_the_rest(untrained):
    agent, _ = untrained
    config = adapted(agent, Setting(5, 3, worst_share=0.5)).config
    assert (config.objective.risk, config.objective.risk_parameter) == ("cvar", 0.5)
    assert (config.planner.scenarios, config.planner.num_samples, config.planner.horizon) == ("all_members", 5, 3)
    assert adapted(agent, Setting(8, 4)).config == agent.config


# ------------------------------------------------------------------ the plant


def test_joint_positions_are_found_in_observations_also_as_sine_and_cosine():
    positions = np.random.default_rng(0).uniform(-2, 2, (20, 3))
    positions[:, 2] = 0.5  # never moves
    obs = np.stack([np.cos(positions[:, 1]), positions[:, 0], np.sin(positions[:, 1]), positions[:, 2]], 1)
    found = find_columns(positions, obs.astype(np.float32))
    assert found == [Column(0, (1,)), Column(1, (2, 0))]
    for column in found:
        np.testing.assert_allclose(column.read(obs), positions[:, column.position], atol=1e-6)


@pytest.mark.parametrize("env_id", [DOUBLE, "Hopper-v5", "Reacher-v5", "dm_control/cartpole-swingup"])
def test_an_observation_is_traced_to_where_the_plant_is(env_id):
    task = make_task(env_id)
    plant = Plant(task, seed=1)
    try:
        assert plant.traceable
        for _ in range(5):
            plant.step(np.full(task.action_size, 0.3))
        array, place = plant._marker
        expected = getattr(plant.pose(1.0), array)[place].copy()
        np.testing.assert_allclose(plant.trace(plant.obs), expected, atol=1e-5)
        moved = plant.obs.copy()
        moved[0 if env_id != "Reacher-v5" else 2] += 0.1
        assert np.abs(plant.trace(moved) - expected).max() > 1e-3
    finally:
        plant.close()


def test_between_two_steps_the_plant_is_shown_between_them():
    plant = Plant(make_task(DOUBLE), seed=1)
    try:
        plant.step(np.ones(1))
        first, middle, last = (plant.pose(share).qpos.copy() for share in (0.0, 0.5, 1.0))
        assert np.abs(last - first).max() > 1e-3
        np.testing.assert_allclose(middle, (first + last) / 2, atol=1e-12)
    finally:
        plant.close()


def pushed_and_not(env_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Observations ten steps later, with and without a push, under the same actions."""
    task, ends = make_task(env_id), []
    for speed in (0.0, 1.0):
        plant = Plant(task, seed=1)
        if speed:
            plant.push(speed)
        for _ in range(4):
            plant.step(np.zeros(task.action_size))
        ends.append(plant.obs)
        plant.close()
    return ends[0], ends[1]


@pytest.mark.parametrize("env_id", [DOUBLE, "Hopper-v5", "Pendulum-v1", "dm_control/cartpole-swingup"])
def test_a_push_disturbs_the_plant(env_id):
    still, pushed = pushed_and_not(env_id)
    assert np.abs(still - pushed).max() > 0.02


def test_a_push_ends():
    plant = Plant(make_task(DOUBLE), seed=1)
    try:
        plant.push(1.0)
        forces = []
        for _ in range(4):
            plant.step(np.zeros(1))
            forces.append(float(plant._data.xfrc_applied[plant.body, 0]))
    finally:
        plant.close()
    assert forces[0] != 0 and forces[0] == forces[1] and forces[2:] == [0, 0]  # 0.1 s are two steps of 0.05 s


# ---------------------------------------------------------------- the session


def test_a_session_lives_on(session):
    before = session.plant.obs.copy()
    for _ in range(30):
        session.tick()
    assert not np.allclose(before, session.plant.obs)
    assert session.time == pytest.approx(30 * 0.05)
    assert session.episode > 1  # untrained, it falls
    assert len(session.history) == 30 and all(moment.latency > 0 for moment in session.history)


def test_a_new_setting_is_compiled_while_the_old_one_goes_on(session):
    old = session.setting
    session.wanted = Setting(12, 6, 0.5)
    session.tick()
    assert session.setting == old and len(session.solved.plan) == 5
    until_settled(session)
    assert session.setting == Setting(12, 6, 0.5)
    assert session.solved.plan.shape == (7, 1) and session.solved.samples.shape == (12, 7, 1)
    session.wanted = Setting(12, 0)
    until_settled(session)
    assert session.solved.plan.shape == (1, 1) and session.imagine().samples.shape == (12, 1, 9)


def test_the_last_of_many_wishes_counts(session):
    for horizon in (1, 2, 3):
        session.wanted = Setting(8, horizon)
        session.tick()
    until_settled(session)
    assert session.setting.horizon == 3


def test_a_setting_that_cannot_be_compiled_leaves_the_old_one(session, monkeypatch):
    def refuse(_: Setting) -> Foresight:
        raise MemoryError("too\nlarge")

    monkeypatch.setattr(session, "_compile", refuse)
    session.wanted = Setting(9, 4)
    until_settled(session)
    assert session.setting == Setting(8, 4)
    assert "too large" in session.complaint and "num_samples=9" in session.complaint


def test_temperature_counts_at_once_also_while_the_plant_stands_still(session):
    plan, obs = session.solved.plan, session.plant.obs
    session.refresh()
    assert session.solved.plan is plan  # nothing has changed
    session.temperature *= 1e3
    session.refresh()
    assert session.solved.effective_samples > 1
    assert not np.array_equal(session.solved.plan, plan)
    assert np.array_equal(session.plant.obs, obs)


def test_a_new_episode_starts_cold(session):
    session.tick()
    session.reset()
    assert session.episode == 2 and session.ret == 0 and session.plant.obs.shape == (9,)
    np.testing.assert_array_equal(session._start, 0)


# ------------------------------------------------------------------- the loop


def test_a_clock_catches_up_a_little_and_lets_the_rest_go():
    clock = Clock(0.1, now=0.0)
    clock.stepped(0.15)
    assert clock.due == pytest.approx(0.1)
    assert clock.share(0.05) == pytest.approx(0.5) and clock.share(0.2) == 1
    clock.stepped(5.0)
    assert clock.due == pytest.approx(4.75)
    clock.restart(9.0)
    assert clock.due == 9.0 and clock.speed == 0
    for now in (10.0, 10.2, 10.4):
        clock.stepped(now)
    assert clock.speed == pytest.approx(0.5)


class Blank:
    """Takes part as scene, panel and server; shows nothing."""

    paused = False

    def __init__(self) -> None:
        self.shares: list[float] = []

    def draw(self, session: Session, share: float) -> None:
        self.shares.append(share)

    def fulfil(self) -> None: ...

    def chart(self, disagreement: np.ndarray) -> None: ...

    def write(self, frame_rate: float, speed: float) -> None: ...

    def atomic(self) -> Any:
        return threading.Lock()


def test_a_paused_loop_draws_and_does_not_step(session):
    blank = Blank()
    blank.paused = True
    Loop(session, blank, blank, blank).run(lambda: len(blank.shares) >= 3)
    assert session.time == 0 and set(blank.shares) == {1.0}


def test_a_running_loop_steps_in_real_time(session):
    blank, began = Blank(), time.monotonic()
    Loop(session, blank, blank, blank).run(lambda: session.time >= 0.5)
    assert time.monotonic() - began > 0.4
    assert len(blank.shares) >= 3 and all(0 <= share <= 1 for share in blank.shares)


# -------------------------------------------------------------------- refusals


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def run_dir(untrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    agent, state = untrained
    folder = RunFolder(tmp_path_factory.mktemp("viewer") / "run")
    folder.create(RunSettings(DOUBLE, "default", 0, 1, agent.config))
    one_row = dataclasses.replace(state.replay, size=jnp.ones_like(state.replay.size))
    Checkpoints(folder, 1).save(1, dataclasses.replace(state, replay=one_row), {})
    return folder.path


def told(capsys, *arguments: str) -> str:
    assert cli.main(["view", *arguments]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    return err


def test_without_its_package_the_viewer_says_what_to_install(capsys, run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert "pip install 'soft-mpcritic[viewer]'" in told(capsys, str(run_dir))


def test_what_cannot_be_viewed_is_refused_in_one_line(capsys, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("soft_mpcritic.viewer.loop.check_viewer", lambda: None)
    assert "not a run folder" in told(capsys, str(tmp_path))
    assert "got -1" in told(capsys, str(run_dir), "--seed", "-1")
    assert "port must lie in [1, 65535], got 0" in told(capsys, str(run_dir), "--port", "0")
    assert "cannot be served" in told(capsys, str(run_dir), "--host", "203.0.113.1", "--port", str(free_port()))
    folder = RunFolder(tmp_path / "fresh")
    folder.create(RunSettings(DOUBLE, "default", 0, 1, small_config()))
    assert "no checkpoint yet" in told(capsys, str(folder.path), "--port", str(free_port()))


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use: choose another one"):
            check_port("127.0.0.1", port)


# ------------------------------------------------------------------ the browser

MISSING = [name for name in ("viser", "selenium") if find_spec(name) is None]
MISSING += [name for name in ("chromium", "chromedriver") if which(name) is None]
FLAGS = (
    "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader --window-size=1400,860"
)


@pytest.fixture
def browser(tmp_path) -> Iterator[Any]:
    from selenium import webdriver  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.chrome.service import Service  # pyright: ignore[reportMissingImports]

    options = webdriver.ChromeOptions()
    options.binary_location = which("chromium")
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(which("chromedriver")))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def type_into(browser: Any, label: str, text: str) -> None:
    """Writes into the number beside a slider."""
    from selenium.webdriver.common.keys import Keys  # pyright: ignore[reportMissingImports]

    field = browser.find_element("xpath", f"//label[text()='{label}']/following::input[@type='text' or not(@type)][1]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text, Keys.ENTER)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of the server and of the driver
@pytest.mark.usefixtures("optimized")
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_a_browser_shows_a_plant_that_moves_and_reacts(browser):
    """With 200 samples: 30 frames a second, a slider changes the solve, a push the plant, and nothing complains."""
    agent = Agent(make_task(DOUBLE), override(Config(), {"planner.num_samples": 200, "training.capacity": 512}))
    session = Session(agent, jit(agent.init)(jax.random.key(0)).models, seed=0)
    port, stopped = free_port(), threading.Event()
    server, loop = open_viewer(session, DOUBLE, agent.config.dynamics.members, "127.0.0.1", port)
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        browser.get(f"http://127.0.0.1:{port}")
        wait_for(lambda: len(server.get_clients()) == 1)
        wait_for(lambda: "frames a second" in browser.page_source and "soft value" in browser.page_source)
        wait_for(lambda: loop.frame_rate >= 29.5 and len(session.history) > 40)
        assert session.setting.num_samples == 200
        type_into(browser, "horizon", "7")
        wait_for(lambda: session.setting.horizon == 7)
        wait_for(lambda: "200 samples, horizon 7" in browser.page_source)
        assert not session.plant._force.any()
        browser.find_element("xpath", "//button[contains(., 'push')]").click()
        wait_for(lambda: session.plant._force.any())
        assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    finally:
        stopped.set()
        thread.join(timeout=60)
        server.stop()
        session.close()
