"""What is public, and a run from Python: trained, evaluated, drawn, deployed, gone on with."""

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box

import soft_mpcritic
from soft_mpcritic import ConfigError, Parts, Run, UniformPrior, train
from soft_mpcritic.cli import main
from soft_mpcritic.run import _name_of_env
from tests.systems import small_config

PUBLIC = """MPPI Agent AgentState CVaRReturn Config ConfigError Controller Dynamics EntropicReturn EnvVector Episode
Experience ExportedController GaussianPrior KnownModel MjxDynamics ModelPlanner Models ObjectiveConfig Parts PlanResult
Planner PlannerConfig Prior Reward RiskMeasure Run Sampler Scenarios Task TerminalValue Termination Transition
UniformPrior antithetic iid make_task mean_return override plan preset sobol train worst_return""".split()


def test_what_is_public_is_listed_found_and_documented():
    assert soft_mpcritic.__all__ == PUBLIC
    assert dir(soft_mpcritic) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(soft_mpcritic, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'planner_of_mine'"):
        _ = soft_mpcritic.planner_of_mine  # pyright: ignore[reportAttributeAccessIssue]


class Point(gym.Env):
    """Moves along a line for 15 steps."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-2, 5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.place, {}

    def step(self, action):
        self.place, self.time = self.place + np.float32(0.1) * action, self.time + 1
        return self.place, 0.0, False, self.time == 15, {}


def near_one(obs, action, next_obs):
    return -((next_obs[:, 0] - 1) ** 2)


def coasting(obs, action):
    return obs + 0.09 * action


def pessimist(returns):
    return jnp.min(returns, axis=0)


CONFIG = small_config(
    planner__scenarios="all_members", target_planner__scenarios="all_members", training__seed_steps=20
)


def test_an_environment_a_goal_and_physics_of_ones_own_make_a_run(tmp_path, capsys):
    parts = Parts(reward=near_one, nominal=coasting, prior=UniformPrior(0.1), risk=pessimist)
    run = train(Point, CONFIG, total_steps=60, run_dir=tmp_path / "run", parts=parts)
    assert "termination of tests.test_api:Point are not known here: learned" in capsys.readouterr().err
    assert run.agent.planner.mppi(CONFIG.planner).prior is parts.prior
    played = run.evaluate(episodes=2)
    assert [episode.length for episode in played] == [15, 15]
    assert all(episode.ret < 0 for episode in played)  # the environment itself pays nothing
    assert run.plot().is_file()
    assert run.controller()([0.3]).shape == (1,)

    longer = train(Point, CONFIG, total_steps=80, run_dir=run.path, resume=True, parts=parts)
    assert int(longer.state.updates) == int(run.state.updates) + 20
    again = Run.load(run.path, Parts(prior=parts.prior))  # an object has no name to be found by; the rest has
    assert again.evaluate(2) == longer.evaluate(2)
    with pytest.raises(ConfigError, match=r"prior .*UniformPrior\(variance=0.1\)' cannot be found by its name"):
        Run.load(run.path).evaluate(1)
    with pytest.raises(ConfigError, match=r"parts\.nominal was"):
        train(Point, CONFIG, total_steps=90, run_dir=run.path, resume=True, parts=Parts(reward=near_one))


def test_parts_can_be_named_on_the_command_line(tmp_path, capsys):
    own = ["--parts.reward", f"{__name__}:nothing"]
    assert main(["train", f"{__name__}:Point", "--run-dir", str(tmp_path / "run"), *own]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "module 'tests.test_api' has no nothing" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("thing", [Point(), None, 7], ids=str)
def test_an_environment_itself_is_refused_for_what_makes_it(thing):
    with pytest.raises(ConfigError, match=r"env must be a name or what makes an environment, got .*its class"):
        _name_of_env(thing)


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "run"
    for arguments, told in (
        ({"total_steps": 0}, "total_steps must be >= 1"),
        ({"seed": -1}, "seed must lie in"),
        ({"config": "nice"}, "preset must be one of"),
        ({"parts": Parts(reward=lambda *rows: rows[0])}, "reward .* must return shape"),
    ):
        with pytest.raises(ConfigError, match=told):
            train(Point, **{"run_dir": path, **arguments})
    with pytest.raises(ConfigError, match="resume must come with run_dir"):
        train(Point, resume=True)
    with pytest.raises(ConfigError, match=r"no config.json"):
        Run.load(path)
    assert not path.exists()
