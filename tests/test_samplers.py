"""Samplers: each component uniform, problems apart, and less variance where it is promised."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from soft_mpcritic.planning import SAMPLERS, antithetic, iid

COMMON = (1024, 8, 3, 2)  # one shape for most tests: drawn once per sampler
every_sampler = pytest.mark.parametrize("name", list(SAMPLERS))


@functools.cache
def drawn(name, shape, seed=0):
    return np.asarray(jax.jit(SAMPLERS[name], static_argnums=1)(jax.random.key(seed), shape), np.float64)


def smooth(points):
    """A smooth integrand with mean sinh(1)^D over the cube, one estimate per problem."""
    return np.exp(points).prod(axis=(2, 3)).mean(axis=0)


@every_sampler
@pytest.mark.parametrize("num_samples", [1, 2, 7, 16])
def test_points_have_the_shape_asked_for(name, num_samples):
    shape = (num_samples, 2, 3, 2)
    assert jax.eval_shape(lambda key: SAMPLERS[name](key, shape), jax.random.key(0)).shape == shape


@every_sampler
def test_points_are_strictly_inside_the_cube(name):
    points = drawn(name, COMMON)
    assert np.abs(points).max() < 1
    assert np.abs(points).max() > 0.99


@pytest.mark.parametrize("bits", [0, 2**32 - 1])
@pytest.mark.parametrize("sampler", [iid, antithetic])
def test_the_extreme_random_bits_stay_inside_the_cube(monkeypatch, sampler, bits):
    monkeypatch.setattr(
        "soft_mpcritic.planning.samplers._hash_bits", lambda key, shape: jnp.full(shape, bits, jnp.uint32)
    )
    points = np.asarray(sampler(jax.random.key(0), (2, 1, 1, 1)))
    np.testing.assert_array_equal(np.abs(points), np.float32(1 - 2.0**-23))


def test_hashed_points_do_not_depend_on_their_neighbours():
    """Correlations of points, and of their squares, at lags within and across the four words of a hash."""
    points = np.asarray(iid(jax.random.key(3), (2**16, 1, 1, 1))).ravel()
    for series in (points * math.sqrt(3), (points**2 - 1 / 3) / math.sqrt(4 / 45)):
        for lag in (1, 2, 3, 4, 5, 16, 255, 2**14, 2**14 + 1, 2**15):
            assert abs(np.mean(series[lag:] * series[:-lag])) < 4.5 / math.sqrt(len(series) - lag)


@every_sampler
def test_every_component_has_the_moments_of_a_uniform(name):
    points = drawn(name, COMMON)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=4 * math.sqrt(1 / 3 / 1024))
    np.testing.assert_allclose((points**2).mean(axis=0), 1 / 3, atol=4 * math.sqrt(4 / 45 / 512))


@every_sampler
def test_every_component_is_uniform(name):
    points = drawn(name, COMMON)[:512]  # half: the other half of antithetic points mirrors it
    for index in np.ndindex(8, 3, 2):
        assert kstest(points[:, *index], "uniform", (-1, 2)).pvalue > 2e-4, index


@every_sampler
def test_one_sample_alone_is_uniform_over_keys(name):
    keys = jax.random.split(jax.random.key(3), 1000)
    points = np.asarray(jax.jit(jax.vmap(lambda key: SAMPLERS[name](key, (8, 1, 1, 2))))(keys))
    for sample in (0, 3, 7):
        for component in (0, 1):
            assert kstest(points[:, sample, 0, 0, component], "uniform", (-1, 2)).pvalue > 1e-3, (sample, component)


@every_sampler
def test_problems_are_independent(name):
    estimates = (drawn(name, (16, 1000, 2, 2)) ** 2).prod(axis=(2, 3)).mean(axis=0)  # even: antithetic keeps its noise
    assert estimates.std() > 1e-4
    for lag in (1, 2, 500):
        correlation = np.corrcoef(estimates[:-lag], estimates[lag:])[0, 1]
        assert abs(correlation) < 4 / math.sqrt(1000 - lag), lag


@every_sampler
def test_components_of_a_sequence_are_uncorrelated(name):
    points = drawn(name, COMMON)[:, 0].reshape(1024, 6)
    correlations = np.corrcoef(points.T) - np.eye(6)
    assert np.abs(correlations).max() < 4 / math.sqrt(512)


@every_sampler
def test_a_key_decides_the_points(name):
    assert np.mean(drawn(name, COMMON) == drawn(name, COMMON, seed=1)) < 1e-3
    np.testing.assert_array_equal(drawn(name, COMMON), drawn.__wrapped__(name, COMMON))


@pytest.mark.parametrize("num_samples", [1, 2, 7, 64])
def test_antithetic_points_sum_to_zero_in_pairs(num_samples):
    points = drawn("antithetic", (num_samples, 3, 2, 2))
    pairs, half = num_samples // 2, (num_samples + 1) // 2
    np.testing.assert_array_equal(points[:pairs], -points[half:])
    assert np.unique(np.abs(points[:half])).size == points[:half].size  # no pair twice, no partner for the odd one


@pytest.mark.parametrize("num_samples", [8, 1024])
def test_sobol_puts_one_point_in_each_of_k_cells_of_every_dimension(num_samples):
    points = drawn("sobol", (num_samples, *COMMON[1:]))
    cells = np.sort(np.floor((points + 1) / 2 * num_samples).astype(int), axis=0)
    np.testing.assert_array_equal(cells, np.broadcast_to(np.arange(num_samples)[:, None, None, None], cells.shape))


@pytest.mark.parametrize("columns", [2, 4, 8, 16, 32])
def test_sobol_stays_a_net_when_scrambled(columns):
    points = (drawn("sobol", (64, 8, 1, 2)) + 1) / 2  # 64 points: each box of area 1/64 holds one, of any aspect
    boxes = np.floor(points[..., 0, 0] * columns) * (64 // columns) + np.floor(points[..., 0, 1] * (64 // columns))
    np.testing.assert_array_equal(np.sort(boxes, axis=0), np.broadcast_to(np.arange(64)[:, None], (64, 8)))


def test_sobol_with_fewer_samples_is_the_start_of_the_longer_one():
    np.testing.assert_array_equal(drawn("sobol", (48, 3, 2, 2)), drawn("sobol", (64, 3, 2, 2))[:48])


def test_every_problem_and_dimension_has_a_scramble_of_its_own():
    points = drawn("sobol", (32, 6, 2, 2)).reshape(32, 24)
    assert np.unique(points, axis=1).shape[1] == 24
    orders = np.argsort(points.reshape(32, 6, 4)[..., 0], axis=0)  # not one net merely shifted: the order differs too
    assert np.unique(orders, axis=1).shape[1] == 6


def test_sobol_and_antithetic_integrate_a_smooth_function_better_than_iid():
    exact = math.sinh(1) ** 4
    errors = {name: smooth(drawn(name, (128, 256, 2, 2))) - exact for name in SAMPLERS}
    rms = {name: math.sqrt((error**2).mean()) for name, error in errors.items()}
    assert rms["sobol"] < 0.2 * rms["iid"]
    assert rms["antithetic"] < 0.9 * rms["iid"]
    for name, error in errors.items():
        assert abs(error.mean()) < 4 * error.std() / math.sqrt(256), name  # and without bias
