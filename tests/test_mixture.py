"""Proposals of several widths, and those that follow the return's gradient: exact densities and closed forms."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm, truncnorm

from soft_mpcritic.planning import MPPI, GaussianPrior, UniformPrior, iid, sobol
from soft_mpcritic.planning.mixture import Mixture
from soft_mpcritic.planning.mppi import ascend

NUM_SAMPLES = 4096
CENTRES = tuple(jnp.asarray(c, jnp.float32) for c in ([[[0.5, -0.2], [0.1, 0.0]]], [[[0.3, 0.0], [0.0, 0.2]]]))
PRIORS = [GaussianPrior(0.3), UniformPrior(0.4)]
every_prior = pytest.mark.parametrize("prior", PRIORS, ids=["gaussian", "uniform"])


def points(num_samples=NUM_SAMPLES):
    return iid(jax.random.key(0), (num_samples, *CENTRES[0].shape))


def proposal_log_density(prior, actions, centre, width):
    scale = width * math.sqrt(prior.variance)
    if isinstance(prior, GaussianPrior):
        return norm.logpdf(actions, centre, scale)
    bounds = (-1 - centre) / scale, (1 - centre) / scale
    return truncnorm.logpdf(actions, *bounds, loc=centre, scale=scale)


def prior_log_density(prior, actions):
    if isinstance(prior, GaussianPrior):
        return norm.logpdf(actions, 0, math.sqrt(prior.variance))
    return np.full(actions.shape, -math.log(2))


@every_prior
@pytest.mark.parametrize("widest", [1.0, 0.6, 1.5])
def test_the_ratios_of_all_steps_add_up_to_that_of_the_sequence(prior, widest):
    mixture = Mixture(prior, CENTRES, widest)
    actions = np.asarray(mixture.propose(points(101)), np.float64)
    parts = [
        proposal_log_density(prior, actions, np.asarray(centre, np.float64), width).sum(axis=(2, 3)) + math.log(share)
        for centre, width, share in zip(CENTRES, (widest, 0.5 * widest), (51 / 101, 50 / 101), strict=True)
    ]
    expected = logsumexp(parts, axis=0) - prior_log_density(prior, actions).sum(axis=(2, 3))
    ratio = mixture.log_ratio(jnp.asarray(actions, jnp.float32))
    np.testing.assert_allclose(ratio.sum(axis=-1), expected, rtol=1e-4, atol=1e-4)


@every_prior
def test_the_first_steps_ratio_knows_nothing_of_later_steps(prior):
    mixture = Mixture(prior, CENTRES)
    actions = mixture.propose(points(64))
    later = actions.at[:, :, 1].multiply(0.5)
    np.testing.assert_allclose(mixture.log_ratio(actions)[..., 0], mixture.log_ratio(later)[..., 0], atol=1e-6)
    assert np.all(mixture.log_ratio(actions)[..., 1] != mixture.log_ratio(later)[..., 1])


@every_prior
def test_the_prior_has_mass_one_under_the_mixture(prior):
    mixture = Mixture(prior, CENTRES)
    actions = mixture.propose(points())
    density_ratio = np.exp(-np.asarray(mixture.log_ratio(actions).sum(axis=-1), np.float64))
    standard_error = density_ratio.std(axis=0) / math.sqrt(NUM_SAMPLES)
    assert np.all(standard_error < 0.08)
    assert np.all(np.abs(density_ratio.mean(axis=0) - 1) < 4 * standard_error)


@every_prior
def test_one_component_is_the_priors_own_proposal(prior):
    mixture = Mixture(prior, CENTRES[:1])
    actions = mixture.propose(points(64))
    np.testing.assert_array_equal(actions, prior.propose(points(64), CENTRES[0]))
    np.testing.assert_array_equal(mixture.log_ratio(actions), prior.log_ratio(actions, CENTRES[0]))


@every_prior
def test_each_component_gets_a_block_of_samples_with_its_centre_and_width(prior):
    centre = jnp.full((1, 2, 2), 0.1)  # far from the faces, at these widths
    narrow = dataclasses.replace(prior, variance=0.04)
    actions = np.asarray(Mixture(narrow, [centre, -centre, centre], 0.8).propose(points()))
    for block, mean, width in zip(np.array_split(actions, 3), (0.1, -0.1, 0.1), (0.8, 0.4, 0.2), strict=True):
        scale = 0.2 * width
        np.testing.assert_allclose(block.mean(axis=0), mean, atol=4 * scale / math.sqrt(len(block)))
        np.testing.assert_allclose(block.std(axis=0), scale, atol=4 * scale / math.sqrt(2 * len(block)))


def test_more_components_than_samples_leave_some_without():
    actions = Mixture(GaussianPrior(0.1), [CENTRES[0]] * 4).propose(points(2))
    assert actions.shape == (2, *CENTRES[0].shape)
    assert np.all(np.isfinite(Mixture(GaussianPrior(0.1), [CENTRES[0]] * 4).log_ratio(actions)))


# --- the step up the gradient -----------------------------------------------------------------------------------


def test_a_short_step_is_the_mean_of_the_tilted_gaussian():
    plan, slope = jnp.array([[[0.1], [-0.2]]]), jnp.array([[[0.3], [-0.1]]])
    moved = ascend(plan, slope, variance=0.04, temperature=2.0)
    np.testing.assert_allclose(moved, plan + 0.04 * slope / 2.0, rtol=1e-6)


def test_a_steep_slope_is_trusted_for_two_deviations():
    plan, slope = jnp.zeros((2, 3, 2)), jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2)), jnp.float32)
    moved = np.asarray(ascend(plan, 1e4 * slope, variance=0.01, temperature=0.1))
    np.testing.assert_allclose(np.sqrt((moved**2).mean(axis=(1, 2))), 0.2, rtol=1e-5)
    scale = np.linalg.norm(slope, axis=(1, 2), keepdims=True) / np.linalg.norm(moved, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(moved * scale, slope, rtol=1e-4)


def test_a_step_neither_leaves_the_box_nor_wastes_length_on_its_faces():
    plan, slope = jnp.array([[[1.0], [0.0], [-1.0]]]), jnp.array([[[50.0], [1.0], [1.0]]])
    moved = np.asarray(ascend(plan, slope, variance=0.01, temperature=1e-3))[0, :, 0]
    step = 0.2 * math.sqrt(3 / 2)  # two components share the length
    np.testing.assert_allclose(moved, [1.0, step, -1.0 + step], rtol=1e-5)


@pytest.mark.parametrize("slope", [np.nan, np.inf, -np.inf, 0.0])
def test_a_slope_that_says_nothing_moves_nothing(slope):
    plan = jnp.full((2, 3, 1), 0.4)
    np.testing.assert_array_equal(ascend(plan, jnp.full((2, 3, 1), slope), 0.1, 0.1), plan)


# --- solves -----------------------------------------------------------------------------------------------------

SLOPES = np.array([[0.8], [-0.5]])


def planner(prior, **changes):
    settings = {"num_samples": 16384, "temperature": 0.5, "ratio_discount": 1.0, "widths": 3}
    return MPPI(prior, sobol, **{**settings, **changes})


@functools.partial(jax.jit, static_argnums=(0, 2))
def solve(planner, plan, returns_fn):
    return planner.solve(jax.random.key(0), plan, returns_fn)


def linear_return(actions):
    return jnp.einsum("kbta,ta->kb", actions, jnp.asarray(SLOPES, jnp.float32))


@pytest.mark.parametrize(("guided", "width"), [(False, 1.0), (True, 1.0), (True, 0.7), (False, 1.4)])
def test_linear_return_with_gaussian_prior(guided, width):
    start = jnp.array([[[0.0], [0.0]], [[0.5], [-0.3]], [[0.2], [0.3]]])
    result = solve(planner(GaussianPrior(0.3), guided=guided, width=width), start, linear_return)
    ess = np.asarray(result.stats.effective_samples)
    assert np.all(ess > 100)
    exact = 0.3 * (SLOPES**2).sum() / (2 * 0.5)
    assert np.all(np.abs(result.value - exact) < 4 * 0.5 / np.sqrt(ess))
    error_of_plan = np.asarray(result.plan) - 0.3 * SLOPES / 0.5
    assert np.all(np.abs(error_of_plan) < 4 * math.sqrt(0.3) / np.sqrt(ess)[:, None, None])


@pytest.mark.parametrize("guided", [False, True])
def test_linear_return_with_uniform_prior(guided):
    start = jnp.array([[[0.0], [0.0]], [[0.3], [-0.3]]])
    result = solve(planner(UniformPrior(0.6), guided=guided), start, linear_return)
    ess = np.asarray(result.stats.effective_samples)
    assert np.all(ess > 100)
    exact = 0.5 * np.log(np.sinh(SLOPES / 0.5) / (SLOPES / 0.5)).sum()
    assert np.all(np.abs(result.value - exact) < 4 * 0.5 / np.sqrt(ess))


@pytest.mark.parametrize("guided", [False, True])
def test_under_a_uniform_prior_a_narrower_proposal_is_one_of_less_variance(guided):
    start = jnp.array([[[0.0], [0.0]], [[0.3], [-0.3]]])
    narrow = solve(planner(UniformPrior(0.6), guided=guided, num_samples=64, width=0.5), start, linear_return)
    less = solve(planner(UniformPrior(0.15), guided=guided, num_samples=64), start, linear_return)
    for one, other in zip(jax.tree.leaves(narrow), jax.tree.leaves(less), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def steep_return(actions):
    """Greatest at 0.3 everywhere."""
    return -jnp.sum((actions - 0.3) ** 2, axis=(2, 3))


def regret(iterations, **changes):
    start = jnp.zeros((8, 5, 6))
    settings = {"num_samples": 8, "temperature": 1e-4, "keep_nominal": True, "iterations": iterations, **changes}
    solved = solve(planner(UniformPrior(0.1), **settings), start, steep_return)
    return -np.asarray(steep_return(solved.plan[None])[0])


def test_several_widths_reach_what_a_single_one_cannot():
    assert np.all(regret(64, widths=1) > 0.5)
    assert np.all(regret(64, widths=5) < 0.5)


def test_following_the_gradient_needs_few_samples_in_many_dimensions():
    unguided = regret(8, widths=4, num_samples=64)
    assert np.all(regret(8, widths=4, guided=True) < 0.25 * unguided)


def test_problems_stay_independent_when_guided():
    start = jnp.zeros((2, 2, 1))
    guided = planner(UniformPrior(0.1), num_samples=8, guided=True)
    together = solve(guided, start, lambda a: linear_return(a).at[:, 1].set(jnp.nan))
    alone = solve(guided, start, linear_return)
    np.testing.assert_array_equal(together.plan[0], alone.plan[0])
    np.testing.assert_array_equal(together.plan[1], start[1])
