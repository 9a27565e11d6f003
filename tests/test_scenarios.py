"""How samples meet the members of an ensemble, and the risk measures, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.planning import CVaRReturn, EntropicReturn, Scenarios, mean_return, worst_return
from soft_mpcritic.types import StepOutcome

MEMBERS, PROBLEMS, HORIZON, DISCOUNT = 3, 2, 4, 0.9
EVERY_MODE = ("per_step", "per_sample", "all_members")


def cvar_by_duality(returns, alpha):
    """Rockafellar and Uryasev: max_z z - E[(z - J)+] / alpha, attained at one of the outcomes."""
    return max(z - np.maximum(z - returns, 0).mean() / alpha for z in returns)


def entropic_in_double(returns, aversion):
    return -np.log(np.mean(np.exp(-aversion * returns))) / aversion


RISKS = {
    "mean": (mean_return, np.mean),
    "worst": (worst_return, np.min),
    "entropic": (EntropicReturn(1.3), functools.partial(entropic_in_double, aversion=1.3)),
    "cvar": (CVaRReturn(0.5), functools.partial(cvar_by_duality, alpha=0.5)),
}


def linear_members():
    rng = np.random.default_rng(1)
    return {"drift": rng.normal(size=(MEMBERS, 2, 2)) / 2, "gain": rng.normal(size=(MEMBERS, 1, 2))}


def linear_step(member, obs, action):
    next_obs = obs @ member["drift"] + action @ member["gain"]
    return StepOutcome(next_obs, jnp.sum(next_obs**2, axis=1), jnp.full_like(obs[:, 0], 0.95))


def linear_terminal(obs, action):
    return obs[:, 0] + action[:, 0]


def looped_return(members, n, obs, actions):
    """The return of one sequence from one observation through member n."""
    total, alive = 0.0, 1.0
    for t in range(len(actions) - 1):
        obs = obs @ members["drift"][n] + actions[t] @ members["gain"][n]
        total += DISCOUNT**t * alive * np.sum(obs**2)
        alive *= 0.95
    return total + DISCOUNT ** (len(actions) - 1) * alive * (obs[0] + actions[-1][0])


def linear_problem(num_samples):
    rng = np.random.default_rng(2)
    actions = rng.normal(size=(num_samples, PROBLEMS, HORIZON + 1, 1))
    return rng.normal(size=(PROBLEMS, 2)), actions


def linear_returns(mode, num_samples, risk=mean_return, seed=0):
    obs, actions = linear_problem(num_samples)
    members = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), linear_members())
    return Scenarios(mode, DISCOUNT, risk).returns(
        jax.random.key(seed),
        linear_step,
        members,
        linear_terminal,
        jnp.asarray(obs, jnp.float32),
        jnp.asarray(actions, jnp.float32),
    )


def looped_returns(num_samples, reduce):
    """`reduce(k, returns of sample k under every member)`, for all samples and problems."""
    members, (obs, actions) = linear_members(), linear_problem(num_samples)
    result = np.zeros((num_samples, PROBLEMS))
    for k, b in np.ndindex(result.shape):
        result[k, b] = reduce(k, np.array([looped_return(members, n, obs[b], actions[k, b]) for n in range(MEMBERS)]))
    return result


def digit_step(member, obs, action):
    """Pays the member's id as the digit of the time that the observation counts."""
    return StepOutcome(obs + 1, member * MEMBERS ** obs[:, 0], jnp.ones_like(obs[:, 0]))


@functools.cache
def schedules(num_keys, horizon=6):
    """Which member served each step, per key, sample and problem: [keys, K, B, H]."""
    members = jnp.arange(MEMBERS, dtype=jnp.float32)

    def returns(key):
        actions = jnp.zeros((5, PROBLEMS, horizon + 1, 1))
        return Scenarios("per_step", 1.0).returns(key, digit_step, members, None, jnp.zeros((PROBLEMS, 1)), actions)

    codes = np.rint(jax.jit(jax.vmap(returns))(jax.random.split(jax.random.key(0), num_keys))).astype(int)
    return codes[..., None] // MEMBERS ** np.arange(horizon) % MEMBERS


def test_per_step_serves_the_whole_batch_with_one_member_a_step():
    served = schedules(300)
    assert np.all(served == served[:, :1, :1])


def test_per_step_draws_every_member_equally_often_at_every_step():
    served = schedules(300)[:, 0, 0]
    for member in range(MEMBERS):
        frequency = (served == member).mean(axis=0)
        np.testing.assert_allclose(frequency, 1 / MEMBERS, atol=4 * np.sqrt(2 / 9 / 300))


def test_per_step_draws_steps_independently():
    served = schedules(300)[:, 0, 0]
    repeats = (served[:, 1:] == served[:, :-1]).mean()
    assert abs(repeats - 1 / MEMBERS) < 4 * np.sqrt(2 / 9 / (300 * 5))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 6, 7])
def test_per_sample_keeps_member_k_mod_n(num_samples):
    expected = looped_returns(num_samples, lambda k, returns: returns[k % MEMBERS])
    np.testing.assert_allclose(linear_returns("per_sample", num_samples), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(RISKS))
def test_all_members_joins_the_trajectory_returns_by_the_risk_measure(name):
    risk, reference = RISKS[name]
    expected = looped_returns(5, lambda _, returns: reference(returns))
    np.testing.assert_allclose(linear_returns("all_members", 5, risk), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["per_sample", "all_members"])
def test_the_key_matters_in_per_step_only(mode):
    np.testing.assert_array_equal(linear_returns(mode, 5, seed=0), linear_returns(mode, 5, seed=1))
    assert np.any(linear_returns("per_step", 5, seed=0) != linear_returns("per_step", 5, seed=1))


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_an_ensemble_of_one_is_that_model_in_every_mode(mode):
    obs, actions = linear_problem(4)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1], jnp.float32), linear_members())
    returns = Scenarios(mode, DISCOUNT).returns(
        jax.random.key(0),
        linear_step,
        one,
        linear_terminal,
        jnp.asarray(obs, jnp.float32),
        jnp.asarray(actions, jnp.float32),
    )
    np.testing.assert_allclose(returns, looped_returns(4, lambda _, returns: returns[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_every_mode_heeds_the_trace(mode):
    obs, actions = linear_problem(5)
    members = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), linear_members())

    def returns(trace, slots):
        scenarios = Scenarios(mode, DISCOUNT, trace=trace)
        where, what = jnp.asarray(obs, jnp.float32), jnp.asarray(actions[:, :, :slots], jnp.float32)
        return scenarios.returns(jax.random.key(0), linear_step, members, linear_terminal, where, what)

    one_step, shortened = returns(1.0, 2), returns(0.0, HORIZON + 1)
    if mode != "per_step":  # where members are drawn for as many steps as there are
        np.testing.assert_allclose(shortened, one_step, rtol=1e-5, atol=1e-5)
    assert np.all(np.abs(shortened - returns(1.0, HORIZON + 1)) > 1e-3)


def random_returns(members=8):
    return np.random.default_rng(3).normal(size=(members, 20, 3)).astype(np.float32)


def reduced(risk, returns):
    return np.asarray(risk(jnp.asarray(returns)))


@pytest.mark.parametrize("members", [1, 4, 7])
@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.3, 0.5, 0.9, 1.0])
def test_cvar_is_its_dual_form(alpha, members):
    returns = random_returns(members)
    expected = np.apply_along_axis(cvar_by_duality, 0, returns.astype(np.float64), alpha)
    np.testing.assert_allclose(reduced(CVaRReturn(alpha), returns), expected, rtol=1e-5, atol=1e-6)


def test_cvar_counts_a_member_in_part():
    returns = jnp.array([30.0, 10.0, 40.0, 20.0])[:, None, None]
    assert CVaRReturn(0.375)(returns)[0, 0] == pytest.approx((10 + 0.5 * 20) / 1.5)


@pytest.mark.parametrize(("alpha", "reference"), [(1.0, np.mean), (1 / 8, np.min), (0.01, np.min)])
def test_limits_of_cvar(alpha, reference):
    returns = random_returns()
    np.testing.assert_allclose(reduced(CVaRReturn(alpha), returns), reference(returns, axis=0), atol=1e-6)


@pytest.mark.parametrize("aversion", [0.1, 1.0, 30.0])
def test_entropic_is_numpys(aversion):
    returns = random_returns()
    expected = np.apply_along_axis(entropic_in_double, 0, returns.astype(np.float64), aversion)
    np.testing.assert_allclose(reduced(EntropicReturn(aversion), returns), expected, atol=1e-5)


def test_limits_of_entropic():
    returns = random_returns()
    spread = np.ptp(returns, axis=0).max()
    small, large = 1e-3, 1e4
    mean, worst = returns.mean(axis=0), returns.min(axis=0)
    np.testing.assert_allclose(reduced(EntropicReturn(small), returns), mean, atol=small * spread**2 / 8 + 2e-3)
    np.testing.assert_allclose(reduced(EntropicReturn(large), returns), worst, atol=np.log(8) / large + 1e-5)


def test_entropic_keeps_far_from_overflow():
    returns = jnp.array([1e6, -1e6])[:, None, None]
    assert EntropicReturn(10.0)(returns)[0, 0] == pytest.approx(-1e6)


@pytest.mark.parametrize("risk", [CVaRReturn(0.2), CVaRReturn(0.7), EntropicReturn(0.5), EntropicReturn(5.0)])
def test_risk_lies_between_the_worst_and_the_mean(risk):
    returns = random_returns()
    value = reduced(risk, returns)
    assert np.all(reduced(worst_return, returns) <= value + 1e-6)
    assert np.all(value <= reduced(mean_return, returns) + 1e-6)
    assert np.any(reduced(worst_return, returns) < value - 0.01)
    assert np.any(value < reduced(mean_return, returns) - 0.01)


@pytest.mark.parametrize("kind", [CVaRReturn, EntropicReturn])
def test_risk_is_monotone_in_its_parameter(kind):
    values = [reduced(kind(parameter), random_returns()) for parameter in (0.1, 0.3, 0.6, 1.0)]
    rising = np.diff(values, axis=0) * (1 if kind is CVaRReturn else -1)
    assert np.all(rising >= -1e-5)
    assert np.all(rising.sum(axis=0) > 0.01)


@pytest.mark.parametrize("name", list(RISKS))
def test_risk_moves_with_a_constant_and_ignores_the_order_of_members(name):
    risk, returns = RISKS[name][0], random_returns()
    np.testing.assert_allclose(reduced(risk, returns + 7), reduced(risk, returns) + 7, atol=1e-5)
    np.testing.assert_allclose(reduced(risk, returns[::-1].copy()), reduced(risk, returns), atol=1e-6)


@pytest.mark.parametrize("name", list(RISKS))
@pytest.mark.parametrize("broken", [np.nan, -np.inf])
def test_a_broken_member_is_never_hidden_by_the_risk_measure(name, broken):
    returns = random_returns()
    returns[2, 0, 0] = broken
    value = reduced(RISKS[name][0], returns)
    assert not np.isfinite(value[0, 0])
    assert np.all(np.isfinite(value[1:]))
