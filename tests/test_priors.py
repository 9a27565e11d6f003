"""Proposals and density ratios against scipy.stats: their moments, distribution functions and log densities."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm, truncnorm

from soft_mpcritic.planning import GaussianPrior, UniformPrior, iid

NUM_SAMPLES = 4096
PLANS = np.array([[-1.0, 1.0], [-0.999, 0.6], [0.0, 0.25], [0.9, -0.4]])  # [T, A]: on, near and far from the faces
FEWEST, MOST = -1 + 2.0**-23, 1 - 2.0**-23  # the outermost points of a sampler
BATCH = jnp.asarray(PLANS, jnp.float32)[None]


def proposed(prior, seed=0):
    points = iid(jax.random.key(seed), (NUM_SAMPLES, *BATCH.shape))
    return prior.propose(points, BATCH)


def truncated(variance, plan):
    scale = math.sqrt(variance)
    return truncnorm((-1 - plan) / scale, (1 - plan) / scale, loc=plan, scale=scale)


@functools.partial(jax.jit, static_argnums=0)
def propose_compiled(prior, points, plan):
    return prior.propose(points, plan)


@pytest.mark.parametrize("variance", [0.01, 0.1, 0.7])
def test_gaussian_proposal_has_the_plan_as_mean_and_the_given_variance(variance):
    actions = np.asarray(proposed(GaussianPrior(variance))[:, 0], np.float64)
    error_of_mean = math.sqrt(variance / NUM_SAMPLES)
    error_of_variance = variance * math.sqrt(2 / NUM_SAMPLES)
    np.testing.assert_allclose(actions.mean(axis=0), PLANS, atol=4 * error_of_mean)
    np.testing.assert_allclose(actions.var(axis=0), variance, atol=4 * error_of_variance)


@pytest.mark.parametrize("variance", [0.01, 0.1, 0.7])
def test_gaussian_proposal_is_normal(variance):
    actions = np.asarray(proposed(GaussianPrior(variance))[:, 0])
    for index in np.ndindex(PLANS.shape):
        assert kstest(actions[:, *index], norm(PLANS[index], math.sqrt(variance)).cdf).pvalue > 1e-3, index


@pytest.mark.parametrize("variance", [0.003, 0.05, 0.4, 5.0])
def test_uniform_proposal_is_the_normal_truncated_to_the_box(variance):
    actions = np.asarray(proposed(UniformPrior(variance))[:, 0])
    for index in np.ndindex(PLANS.shape):
        assert kstest(actions[:, *index], truncated(variance, PLANS[index]).cdf).pvalue > 1e-3, index


@pytest.mark.parametrize("variance", [1e-4, 0.003, 0.05, 5.0])
def test_uniform_proposal_never_leaves_the_box(variance):
    plan = jnp.linspace(-1, 1, 201)[None, :, None]
    points = jnp.concatenate([iid(jax.random.key(1), (500, *plan.shape)), jnp.full((2, *plan.shape), FEWEST)])
    actions = np.asarray(UniformPrior(variance).propose(points.at[-1].set(MOST), plan))
    assert np.all(np.abs(actions) <= 1)


@pytest.mark.parametrize("variance", [0.01, 0.3])
def test_gaussian_log_ratio_is_scipys(variance):
    actions = np.asarray(proposed(GaussianPrior(variance)), np.float64)
    scale = math.sqrt(variance)
    expected = (norm.logpdf(actions, PLANS, scale) - norm.logpdf(actions, 0.0, scale)).sum(axis=-1)
    ratio = GaussianPrior(variance).log_ratio(jnp.asarray(actions, jnp.float32), BATCH)
    np.testing.assert_allclose(ratio, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variance", [0.01, 0.3, 5.0])
def test_uniform_log_ratio_is_scipys(variance):
    actions = np.asarray(proposed(UniformPrior(variance)), np.float64)
    expected = np.zeros(actions.shape[:-1])
    for slot, component in np.ndindex(PLANS.shape):
        plan, scale = PLANS[slot, component], math.sqrt(variance)
        bounds = (-1 - plan) / scale, (1 - plan) / scale
        density = truncnorm.logpdf(actions[..., slot, component], *bounds, loc=plan, scale=scale)
        expected[..., slot] += density - math.log(0.5)
    ratio = UniformPrior(variance).log_ratio(jnp.asarray(actions, jnp.float32), BATCH)
    np.testing.assert_allclose(ratio, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("prior", [GaussianPrior(0.5), UniformPrior(0.3)])
def test_the_prior_has_mass_one_under_the_proposal(prior):
    plan = jnp.array([[[0.3, -0.2], [-0.5, 0.0]]])
    actions = prior.propose(iid(jax.random.key(2), (NUM_SAMPLES, *plan.shape)), plan)
    density_ratio = np.exp(-np.asarray(prior.log_ratio(actions, plan), np.float64))
    standard_error = density_ratio.std(axis=0) / math.sqrt(NUM_SAMPLES)
    assert np.all(standard_error < 0.05)
    assert np.all(np.abs(density_ratio.mean(axis=0) - 1) < 4 * standard_error)


def test_gaussian_log_ratio_is_zero_around_the_zero_plan():
    plan = jnp.zeros((1, 3, 2))
    actions = jax.random.normal(jax.random.key(0), (64, 1, 3, 2))
    np.testing.assert_array_equal(GaussianPrior(0.1).log_ratio(actions, plan), np.zeros((64, 1, 3)))


@pytest.mark.parametrize("prior", [GaussianPrior(0.1), UniformPrior(0.1)])
def test_log_ratio_keeps_time_steps_apart(prior):
    plan = jnp.full((1, 3, 2), 0.5)
    actions = jax.random.uniform(jax.random.key(0), (8, 1, 3, 2))
    moved = np.asarray(prior.log_ratio(actions.at[:, :, 1].add(-0.3), plan) - prior.log_ratio(actions, plan))
    assert np.all(moved[..., [0, 2]] == 0)
    assert np.all(moved[..., 1] != 0)


@pytest.mark.parametrize("variance", [0.05, 0.4])
def test_uniform_proposal_inverts_the_distribution_function(variance):
    points = np.linspace(-0.999, 0.999, 101)
    plan = np.linspace(-1, 1, 21)
    expected = truncated(variance, plan).ppf((1 + points[:, None]) / 2)
    shape = (points.size, 1, plan.size, 1)
    batch = jnp.broadcast_to(jnp.asarray(points, jnp.float32)[:, None, None, None], shape)
    actions = propose_compiled(UniformPrior(variance), batch, jnp.asarray(plan, jnp.float32)[None, :, None])
    np.testing.assert_allclose(actions[:, 0, :, 0], expected, atol=2e-4)


@pytest.mark.parametrize("variance", [0.003, 0.05])
def test_the_outermost_point_is_not_thrown_to_the_far_face(variance):
    plan = np.linspace(-1, 1, 4001)
    batch = jnp.asarray(plan, jnp.float32)[None, :, None]
    actions = propose_compiled(UniformPrior(variance), jnp.full((1, *batch.shape), MOST), batch)
    expected = truncated(variance, plan).ppf((1 + MOST) / 2)
    np.testing.assert_allclose(actions[0, 0, :, 0], expected, atol=0.3 * math.sqrt(variance))
