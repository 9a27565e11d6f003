"""The return of a sequence against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.planning.rollout import rollout_return
from soft_mpcritic.types import StepOutcome

ROWS, OBS, ACTION = 7, 3, 2


@functools.cache
def system(horizon):
    """Matrices, rewards and continuations that differ at every time step; some steps surely end the episode."""
    rng = np.random.default_rng(horizon)
    steps = max(horizon, 1)
    continuation = rng.choice([0.0, 0.6, 0.9, 1.0], p=[0.05, 0.15, 0.2, 0.6], size=(steps, ROWS))
    return {
        "dynamics": rng.normal(size=(steps, OBS, OBS)) / 2,
        "control": rng.normal(size=(steps, ACTION, OBS)),
        "slope": rng.normal(size=(steps, OBS)),
        "continuation": continuation,
        "terminal": rng.normal(size=(OBS + ACTION,)),
        "obs": rng.normal(size=(ROWS, OBS)),
        "actions": rng.normal(size=(horizon + 1, ROWS, ACTION)),
    }


def looped_return(parts, discount, with_terminal, end_value=0.0):
    total, alive, obs = np.zeros(ROWS), np.ones(ROWS), parts["obs"]
    horizon = len(parts["actions"]) - 1
    for t in range(horizon):
        action = parts["actions"][t]
        reward = obs @ parts["slope"][t] + (action**2).sum(axis=1)
        total = total + discount**t * alive * reward
        total = total + discount ** (t + 1) * alive * (1 - parts["continuation"][t]) * end_value
        alive = alive * parts["continuation"][t]
        obs = np.tanh(obs @ parts["dynamics"][t] + action @ parts["control"][t])
    if with_terminal:
        q = np.concatenate([obs, parts["actions"][horizon]], axis=1) @ parts["terminal"]
        total = total + discount**horizon * alive * q
    return total


def library_return(parts, discount, with_terminal, trace=1.0, end_value=0.0):
    device = {name: jnp.asarray(part, jnp.float32) for name, part in parts.items()}

    def step_at(time, obs, action):
        reward = obs @ device["slope"][time] + jnp.sum(action**2, axis=1)
        next_obs = jnp.tanh(obs @ device["dynamics"][time] + action @ device["control"][time])
        return StepOutcome(next_obs, reward, device["continuation"][time])

    def terminal_value(obs, action):
        return jnp.concatenate([obs, action], axis=1) @ device["terminal"]

    value = terminal_value if with_terminal else None
    compiled = jax.jit(lambda obs, actions: rollout_return(step_at, value, obs, actions, discount, trace, end_value))
    return compiled(device["obs"], device["actions"])


def stepping(reward, continuation):
    """A model that pays and goes on as the observation, a clock, says."""
    rewards, continuations = jnp.array([*reward, 0.0]), jnp.array([*continuation, 1.0])  # H = 0 still traces a step

    def step_at(time, obs, action):
        ones = jnp.ones_like(obs[:, 0])
        return StepOutcome(obs + 1, rewards[time] * ones, continuations[time] * ones)

    return step_at


def clock_return(reward, continuation, discount, terminal=None, trace=1.0, end_value=0.0):
    def terminal_value(obs, action):
        return jnp.zeros_like(obs[:, 0]) + (terminal or 0.0)

    actions = jnp.zeros((len(reward) + 1, 1, 1))
    value = None if terminal is None else terminal_value
    step_at = stepping(reward, continuation)
    return float(rollout_return(step_at, value, jnp.zeros((1, 1)), actions, discount, trace, end_value)[0])


@pytest.mark.parametrize(
    ("horizon", "discount", "with_terminal"),
    [
        (0, 0.9, True),
        (0, 0.9, False),
        (1, 0.9, True),
        (4, 0.0, True),
        (4, 0.9, True),
        (4, 0.9, False),
        (8, 1.0, True),
        (9, 0.9, True),
        (20, 0.97, True),
        (20, 0.97, False),
    ],
)
def test_return_is_that_of_a_loop(horizon, discount, with_terminal):
    parts = system(horizon)
    expected = looped_return(parts, discount, with_terminal)
    np.testing.assert_allclose(library_return(parts, discount, with_terminal), expected, rtol=1e-5, atol=1e-5)


def test_without_a_horizon_only_the_terminal_value_counts():
    parts = system(0)
    expected = np.concatenate([parts["obs"], parts["actions"][0]], axis=1) @ parts["terminal"]
    np.testing.assert_allclose(library_return(parts, 0.9, True), expected, rtol=1e-5)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_the_step_that_ends_the_episode_still_pays(last):
    continuation = [1.0, 1.0, 1.0]
    continuation[last] = 0.0
    paid = sum(0.5**t * 10**t for t in range(last + 1))
    assert clock_return([1.0, 10.0, 100.0], continuation, 0.5, terminal=1000.0) == pytest.approx(paid)


@pytest.mark.parametrize("horizon", [0, 1, 4, 20])
def test_an_end_is_worth_what_it_is_said_to_be(horizon):
    parts = system(horizon)
    expected = looped_return(parts, 0.9, True, end_value=-30.0)
    np.testing.assert_allclose(library_return(parts, 0.9, True, end_value=-30.0), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_a_price_on_ends_is_a_pay_for_every_step_without_one(trace):
    """J(r, Q, v) = v + J(r - (1 - gamma) v, Q - v, 0): who is paid -(1 - gamma) v a step more acts alike."""
    reward, continuation, discount, price = [1.0, 10.0, -5.0, 2.0], [0.9, 1.0, 0.3, 0.8], 0.9, -40.0
    priced = clock_return(reward, continuation, discount, 7.0, trace, price)
    paid = [pay - (1 - discount) * price for pay in reward]
    assert priced == pytest.approx(price + clock_return(paid, continuation, discount, 7.0 - price, trace), rel=1e-5)


def test_the_terminal_value_is_weighed_by_discount_and_survival():
    assert clock_return([0.0] * 3, [0.5, 1.0, 0.4], 0.9, terminal=10.0) == pytest.approx(10 * 0.9**3 * 0.2)


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("horizon", [0, 3, 12])
def test_a_constant_added_to_each_reward_adds_its_discounted_sum(horizon, discount):
    rewards = np.linspace(-1, 1, horizon)
    gain = clock_return(rewards + 2.5, np.ones(horizon), discount, 3.0) - clock_return(
        rewards, np.ones(horizon), discount, 3.0
    )
    assert gain == pytest.approx(2.5 * sum(discount**t for t in range(horizon)), rel=1e-5)


@pytest.mark.parametrize(("with_terminal", "counts"), [(True, True), (False, False)])
def test_the_last_action_counts_through_the_terminal_value_only(with_terminal, counts):
    parts = system(4)
    moved = {**parts, "actions": parts["actions"] + np.eye(5)[-1][:, None, None]}
    without_end = {**parts, "continuation": np.ones_like(parts["continuation"])}
    moved_without_end = {**moved, "continuation": without_end["continuation"]}
    change = library_return(moved_without_end, 0.9, with_terminal) - library_return(without_end, 0.9, with_terminal)
    assert bool(jnp.all(change != 0)) == counts
    assert bool(jnp.any(change != 0)) == counts


@pytest.mark.parametrize("trace", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("horizon", [1, 2, 4, 9])
def test_a_trace_is_the_weighted_mean_of_shorter_returns(horizon, trace):
    parts = system(horizon)
    shorter = [looped_return({**parts, "actions": parts["actions"][: h + 1]}, 0.9, True) for h in range(1, horizon + 1)]
    weights = [*((1 - trace) * trace ** np.arange(horizon - 1)), trace ** (horizon - 1)]
    expected = np.tensordot(weights, shorter, axes=1)
    np.testing.assert_allclose(library_return(parts, 0.9, True, trace), expected, rtol=1e-5, atol=1e-5)


def test_a_trace_changes_nothing_where_there_is_one_return_only():
    for horizon, with_terminal in ((0, True), (4, False)):
        parts = system(horizon)
        plain, traced = (library_return(parts, 0.9, with_terminal, trace) for trace in (1.0, 0.5))
        np.testing.assert_array_equal(plain, traced)


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("horizon", [0, 1, 4])
def test_a_trace_may_be_data_of_a_compiled_function(horizon, trace):
    parts = system(horizon)
    found = jax.jit(lambda trace: library_return(parts, 0.9, True, trace))(trace)
    np.testing.assert_allclose(found, library_return(parts, 0.9, True, trace), rtol=1e-5, atol=1e-5)


def test_a_consistent_value_hides_the_trace():
    value = 2.0 / (1 - 0.9)  # of two a step for ever
    returns = [steady_return(trace, value) for trace in (0.0, 0.5, 1.0)]
    assert returns == pytest.approx([value] * 3)


def steady_return(trace, value):
    step_at, actions = stepping([2.0] * 4, [1.0] * 4), jnp.zeros((5, 1, 1))
    return float(rollout_return(step_at, lambda s, a: value + 0 * s[:, 0], jnp.zeros((1, 1)), actions, 0.9, trace)[0])


def test_rows_do_not_mix():
    parts = system(4)
    moved = {**parts, "obs": parts["obs"] + np.eye(ROWS)[0][:, None]}
    before, after = library_return(parts, 0.9, True), library_return(moved, 0.9, True)
    np.testing.assert_array_equal(before[1:], after[1:])
    assert before[0] != after[0]


def test_a_long_horizon_compiles_to_one_step():
    def size(horizon):
        return len(str(jax.make_jaxpr(lambda: library_return(system(horizon), 0.9, True))()).splitlines())

    assert size(20) == size(12)
