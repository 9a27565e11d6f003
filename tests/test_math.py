"""Shared formulas against NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from soft_mpcritic.math import effective_sample_size, hl_gauss, log_mean_exp, normal_points, polyak

EDGES = np.linspace(-2, 2, 21)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_log_mean_exp_is_scipys_at_any_offset(offset):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) + np.float32(offset)
    expected = logsumexp(x.astype(np.float64), axis=0) - np.log(50)
    np.testing.assert_allclose(log_mean_exp(jnp.asarray(x)), expected, rtol=1e-6, atol=2e-6)


def test_log_mean_exp_of_one_entry_is_that_entry():
    np.testing.assert_array_equal(log_mean_exp(jnp.array([[2.5, -7.0]])), [2.5, -7.0])


def test_log_mean_exp_counts_minus_infinity_as_zero_mass():
    x = jnp.array([[0.0, -jnp.inf], [-jnp.inf, -jnp.inf]])
    np.testing.assert_allclose(log_mean_exp(x), [-np.log(2), -np.inf], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.25] * 4, 4.0),
        ([1.0, 0, 0, 0], 1.0),
        ([0.5, 0.5, 0, 0], 2.0),
        ([0.0] * 4, 0.0),
        ([0.7, 0.1, 0.1, 0.1], 1.92308),
    ],
)
def test_effective_sample_size_is_kishs(weights, expected):
    columns = jnp.array([weights, weights]).T
    np.testing.assert_allclose(effective_sample_size(columns), [expected, expected], rtol=1e-5)


@pytest.mark.parametrize("step", [0.0, 0.25, 1.0])
def test_polyak_moves_every_leaf_by_the_step(step):
    target, online = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array(-3.0),)}, {"a": jnp.zeros(2), "b": (jnp.array(5.0),)}
    moved = polyak(target, online, step)
    np.testing.assert_allclose(moved["a"], (1 - step) * np.array([1.0, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(moved["b"][0], (1 - step) * -3.0 + step * 5.0, rtol=1e-6)


@pytest.mark.parametrize("value", [-1.93, -0.5, 0.0, 0.31, 2.0])
def test_hl_gauss_is_the_truncated_normals_histogram(value):
    cdf = norm.cdf(EDGES, loc=value, scale=0.15)
    expected = np.diff(cdf) / (cdf[-1] - cdf[0])
    histogram = hl_gauss(jnp.array([value]), jnp.asarray(EDGES, jnp.float32), 0.15)[0]
    np.testing.assert_allclose(histogram, expected, atol=1e-6)


def test_hl_gauss_keeps_the_mean_inside_the_support():
    values = jnp.linspace(-1.0, 1.0, 11)
    histogram = hl_gauss(values, jnp.asarray(EDGES, jnp.float32), 0.15)
    np.testing.assert_allclose(np.asarray(histogram) @ (0.5 * (EDGES[1:] + EDGES[:-1])), values, atol=1e-3)


def test_hl_gauss_moves_outsiders_to_the_nearest_end():
    outside = hl_gauss(jnp.array([-50.0, 50.0]), jnp.asarray(EDGES, jnp.float32), 0.15)
    ends = hl_gauss(jnp.array([-2.0, 2.0]), jnp.asarray(EDGES, jnp.float32), 0.15)
    np.testing.assert_array_equal(outside, ends)
    np.testing.assert_allclose(jnp.sum(outside, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize(("count", "size"), [(1, 3), (16, 1), (16, 12)])
def test_normal_points_have_the_normals_quantiles_in_every_component_and_half_spaces_their_probability(count, size):
    points = normal_points(count, size)
    quantiles = norm.ppf((np.arange(count) + 0.5) / count)
    np.testing.assert_allclose(np.sort(points, axis=0), np.tile(quantiles[:, None], size), atol=1e-6)
    bounds = np.linspace(-3, 3, 61)
    below = np.mean(points[None] < bounds[:, None, None], axis=1)
    assert np.abs(below - norm.cdf(bounds)[:, None]).max() <= 0.5 / count + 1e-6


def test_normal_points_are_the_same_each_time_and_their_components_in_different_orders():
    points = normal_points(16, 4)
    normal_points.cache_clear()
    np.testing.assert_array_equal(points, normal_points(16, 4))
    assert np.abs(np.corrcoef(points.T) - np.eye(4)).max() < 0.9
