"""Statistics against closed forms and independent sums."""

import numpy as np
import pytest

from soft_mpcritic.statistics import (
    Band,
    Curve,
    common_steps,
    first_reaching,
    interquartile_mean,
    iqm_band,
    median_with_never,
    quantile_band,
)


def curve(means, steps=None, seconds=None) -> Curve:
    mean = np.asarray(means, float)
    step = 10 * np.arange(1, len(mean) + 1) if steps is None else np.asarray(steps)
    return Curve(step, step / 2.0 if seconds is None else np.asarray(seconds, float), mean, mean - 1, mean + 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4.0], 4.0),
        ([1.0, 3.0], 2.0),
        ([0.0, 6.0, 30.0], (0 + 4 * 6 + 30) / 6),
        ([1, 2, 3, 4.0], 2.5),
        ([-1000, 2, 3, 1e9], 2.5),
        ([5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6.0], 6.5),
        ([1, 3, 5, 7, 9, 11, 13, 15, 17.0], 9.0),
    ],
    ids=str,
)
def test_interquartile_means_known_on_paper(values, expected):
    assert interquartile_mean(np.array(values)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8, 11])
def test_interquartile_mean_is_the_mean_of_the_middle_half(count):
    """Every value four times over is the same distribution, and divisible by four: then it is a plain mean."""
    values = np.random.default_rng(count).normal(size=count)
    middle = np.sort(np.repeat(values, 4))[count : 3 * count]
    assert interquartile_mean(values) == pytest.approx(middle.mean(), abs=1e-12)


def test_interquartile_mean_works_along_any_axis():
    values = np.random.default_rng(0).normal(size=(5, 3, 2))
    for axis in range(3):
        expected = np.apply_along_axis(interquartile_mean, axis, values)
        np.testing.assert_allclose(interquartile_mean(values, axis=axis), expected, rtol=1e-12)


def test_the_interval_follows_shifts_and_scales_and_the_order_of_runs_is_nothing():
    values = np.random.default_rng(1).normal(size=(5, 4))
    band, other = iqm_band(values), iqm_band(values[[3, 1, 0, 4, 2]] * 2 + 7)
    assert (band.low < band.middle).all() and (band.middle < band.high).all()
    np.testing.assert_allclose(other.middle, 2 * band.middle + 7, rtol=1e-12)
    width, other_width = band.high - band.low, other.high - other.low
    np.testing.assert_allclose(other_width, 2 * width, rtol=0.1)  # other resamples, as the runs stand elsewhere


def test_the_interval_is_the_exact_one_of_all_resamples():
    """Of two runs the interquartile mean is the mean: resampled, 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4."""
    band = iqm_band(np.array([[0.0], [1.0]]))
    assert (band.low[0], band.middle[0], band.high[0]) == (0, 0.5, 1)


def test_the_interval_of_three_runs_is_that_of_their_27_resamples():
    """Its ends are the extreme runs: all three draws take the same run with probability 1/27 > 2.5 %."""
    band = iqm_band(np.array([[3.0], [0.0], [5.0]]))
    assert (band.low[0], band.high[0]) == pytest.approx((0, 5))


@pytest.mark.parametrize(("runs", "coverage"), [(2, 0.5), (3, 0.75), (5, 0.91), (10, 0.93)])
def test_the_interval_covers_as_documented(runs, coverage):
    """Experiments are columns. Of two and three runs it is their range, which misses if all fall on one side: 2 / 2^R.

    Tolerance: four standard errors of 400 experiments.
    """
    band = iqm_band(np.random.default_rng(runs).normal(size=(runs, 400)))
    tolerance = 4 * np.sqrt(coverage * (1 - coverage) / 400)
    assert np.mean((band.low <= 0) & (band.high >= 0)) == pytest.approx(coverage, abs=tolerance)


def test_equal_runs_have_an_interval_of_no_width():
    for band in (iqm_band(np.full((4, 3), 2.5)), quantile_band(np.full((4, 3), 2.5))):
        np.testing.assert_allclose(np.stack(band), 2.5, rtol=1e-12)


def test_a_single_run_has_no_interval():
    band = iqm_band(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(band.middle, [1, 2])
    assert np.isnan(band.low).all() and np.isnan(band.high).all()


def test_quantiles_are_interpolated_between_order_statistics():
    band = quantile_band(np.array([[0.0], [10.0], [20.0], [30.0], [40.0], [50.0]]))
    assert isinstance(band, Band)
    assert (band.low[0], band.middle[0], band.high[0]) == (10, 25, 40)


def test_a_curve_is_read_from_episodes_in_any_order():
    rows = [
        {"env_step": "20", "wall_seconds": "3.5", "episode": "0", "return": "1"},
        {"env_step": "10", "wall_seconds": "2.0", "episode": "1", "return": "4"},
        {"env_step": "10", "wall_seconds": "2.0", "episode": "0", "return": "-1"},
        {"env_step": "20", "wall_seconds": "3.5", "episode": "1", "return": "2"},
        {"env_step": "10", "wall_seconds": "2.0", "episode": "2", "return": "6"},
    ]
    read = Curve.from_rows(rows)
    expected = ([10, 20], [2, 3.5], [3, 1.5], [-1, 1], [6, 2])
    for column, values in zip(read, expected, strict=True):
        np.testing.assert_array_equal(column, values)


def test_runs_meet_at_the_steps_that_all_have():
    a, b = curve([1, 2, 3, 4], [10, 20, 30, 40]), curve([5, 6, 7], [20, 25, 40])
    steps = common_steps([a, b])
    np.testing.assert_array_equal(steps, [20, 40])
    np.testing.assert_array_equal(a.at(steps).mean, [2, 4])
    np.testing.assert_array_equal(b.at(steps).mean, [5, 7])
    np.testing.assert_array_equal(b.at(steps).wall_seconds, [10, 20])
    assert len(common_steps([a, curve([1], [11])])) == 0


@pytest.mark.parametrize(
    ("means", "first", "for_good"),
    [
        ([1, 5, 9], 1, 1),
        ([5, 5, 5], 0, 0),
        ([6, 1, 7, 4, 8], 0, 4),
        ([1, 6, 2], 1, None),
        ([1, 2, 4.999], None, None),
        ([np.nan, 6, np.nan], 1, None),
    ],
    ids=str,
)
def test_thresholds(means, first, for_good):
    assert first_reaching(curve(means), 5.0) == first
    assert first_reaching(curve(means), 5.0, stays=True) == for_good


def test_runs_that_never_get_there_are_later_than_any_other():
    assert median_with_never([3.0, None, 1.0]) == 3
    assert median_with_never([3.0, None, None]) == np.inf
    assert median_with_never([3.0, None]) == np.inf
    assert median_with_never([None]) == np.inf
    assert median_with_never([3.0, 1.0]) == 2
