"""Inputs drawn at random: configurations, and what planners are given."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from soft_mpcritic.planning import MPPI, SAMPLERS, GaussianPrior, UniformPrior
from soft_mpcritic.planning.mppi import weigh
from tests.faults import fuzz

SOME = settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=fuzz.SLOW)


@pytest.fixture(autouse=True, scope="module")
def as_for_users():
    """No run-time check of types complains before the library does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@SOME
@given(st.booleans().flatmap(fuzz.assignments))
def test_configurations_are_refused_in_one_line_or_make_an_agent(changes: dict[str, Any]):
    config = fuzz.accepted(changes)
    if config is not None:
        fuzz.built(config)


@settings(SOME, max_examples=2)
@given(fuzz.assignments(nonsense=False))
def test_configurations_that_are_accepted_train(changes: dict[str, Any]):
    config = fuzz.accepted(changes)
    if config is not None:
        fuzz.check_finite(fuzz.trained(config))


@pytest.mark.slow
def test_ten_thousand_configurations():
    campaign = fuzz.Campaign(fuzz.Effort())
    campaign.go(10_000, 0)
    assert campaign.told["drawn"] >= 10_000 and campaign.told["trained"] >= 1000


EXTREMES = [0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 3.4e38, -3.4e38, 1e-38, 1e-45, np.inf, -np.inf, np.nan]
FLOATS = st.sampled_from(EXTREMES) | st.floats(width=32)
RETURNS = st.floats(np.float32(-1e3).item(), np.float32(1e3).item(), width=32)
TEMPERATURES = st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 1e3, 1e6])


def samples(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return st.sampled_from([1, 2, 7]).flatmap(lambda k: arrays(np.float32, (k, 2), elements=elements))


@SOME
@given(samples(FLOATS | RETURNS), st.data())
def test_weights_sum_to_one_and_the_value_lies_between_the_samples(returns: np.ndarray, data: st.DataObject):
    """J - lambda L of the samples that count; weights are 0 only where no sample does."""
    ratios = data.draw(arrays(np.float32, returns.shape, elements=st.floats(-50, 50, width=32)))
    temperature = data.draw(TEMPERATURES)
    weighed = weigh(jnp.asarray(returns), jnp.asarray(ratios), temperature)
    weights, value, valid = np.asarray(weighed.weights), np.asarray(weighed.value), np.isfinite(returns)
    assert np.isfinite(weights).all() and (weights >= 0).all() and (weights[~valid] == 0).all()
    for b in range(returns.shape[1]):
        if not valid[:, b].any():
            assert value[b] == -np.inf and weights[:, b].sum() == 0
            continue
        np.testing.assert_allclose(weights[:, b].sum(), 1, rtol=1e-5)
        terms = returns[valid[:, b], b].astype(float) - temperature * ratios[valid[:, b], b].astype(float)
        slack = 1e-5 * max(np.abs(returns[valid[:, b], b].astype(float)).max(), temperature * 50)
        share = temperature * np.log(valid[:, b].mean())  # samples that do not count still count in K
        assert terms.min() + share - slack <= value[b] <= terms.max() + slack


@partial(jax.jit, static_argnums=(0, 1, 2))
def plan_once(planner: MPPI, num_samples: int, guided: bool, key, plan, returns, temperature):
    it = MPPI(
        planner.prior, planner.sampler, num_samples, temperature, 0.99, 2, planner.keep_nominal, planner.widths, guided
    )
    return it.solve(key, plan, lambda actions: returns + jnp.sum(actions, axis=(2, 3)) * returns)


PLANNERS = [
    (MPPI(GaussianPrior(0.1), SAMPLERS["sobol"], 1, 1.0, 0.99), 1, False, (2, 1, 1)),  # K = 1, H = 0
    (MPPI(UniformPrior(0.1), SAMPLERS["sobol"], 1, 1.0, 0.99, keep_nominal=True), 7, False, (2, 3, 2)),
    (MPPI(GaussianPrior(1e3), SAMPLERS["iid"], 1, 1.0, 0.99, widths=4), 7, True, (2, 3, 1)),
    (MPPI(UniformPrior(1e-6), SAMPLERS["antithetic"], 1, 1.0, 0.99, widths=4), 2, True, (2, 1, 3)),
]


@pytest.mark.parametrize("case", range(len(PLANNERS)))
@settings(SOME, max_examples=100)
@given(st.data())
def test_plans_are_finite_and_in_the_box_whatever_comes_in(case: int, data: st.DataObject):
    planner, num_samples, guided, shape = PLANNERS[case]
    returns = data.draw(arrays(np.float32, (num_samples, 2), elements=FLOATS | RETURNS))
    plan = data.draw(arrays(np.float32, shape, elements=FLOATS))
    temperature = data.draw(TEMPERATURES)
    returns_of = jnp.asarray(returns[:1] if guided else returns)
    result = plan_once(planner, num_samples, guided, jax.random.key(0), jnp.asarray(plan), returns_of, temperature)
    for sequence in (result.plan, result.sample):
        assert np.isfinite(np.asarray(sequence)).all() and (np.abs(np.asarray(sequence)) <= 1).all()
    assert not np.isnan(np.asarray(result.value)).any()
    effective = np.asarray(result.stats.effective_samples)
    assert ((effective >= 0) & (effective <= num_samples * (1 + 1e-5))).all()
