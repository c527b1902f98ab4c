import numpy as np
import pytest
import scipy.stats

from experiments.statistics import (
    mean_interval,
    paired_difference_interval,
    paired_ratio_interval,
)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_mean_interval_is_scipys():
    values = draw(0, 5, 3)
    got = mean_interval(values, 0.9)
    low, high = scipy.stats.t.interval(
        0.9, 4, loc=values.mean(0), scale=scipy.stats.sem(values, axis=0)
    )
    np.testing.assert_allclose(got.low, low, rtol=1e-12)
    np.testing.assert_allclose(got.high, high, rtol=1e-12)
    np.testing.assert_allclose(mean_interval(values.T, 0.9, axis=1), got)


def test_it_covers():
    values = draw(0, 5, 4000)
    _, low, high = mean_interval(values)
    covered = np.mean((low < 0) & (high > 0))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_paired_difference_agrees_with_the_paired_test():
    a, b = draw(0, 6), draw(1, 6) + 0.5
    got = paired_difference_interval(a, b)
    want = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose([got.low, got.high], want, rtol=1e-12)


def test_pairing_removes_what_seeds_share():
    seeds = draw(0, 8)
    a, b = np.exp(seeds + 0.1), np.exp(seeds)
    np.testing.assert_allclose(paired_ratio_interval(a, b), np.exp(0.1), rtol=1e-6)
    assert mean_interval(a).low < mean_interval(b).high


def test_ratio_is_the_interval_of_logs_and_inverts():
    a, b = np.exp(draw(0, 7)), np.exp(draw(1, 7))
    got, inverse = paired_ratio_interval(a, b), paired_ratio_interval(b, a)
    want = scipy.stats.ttest_rel(np.log(a), np.log(b)).confidence_interval(0.95)
    np.testing.assert_allclose([got.low, got.high], np.exp(want), rtol=1e-12)
    np.testing.assert_allclose(1 / np.array(inverse), [got.estimate, got.high, got.low])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0, 2.0], confidence=1.0), "confidence"),
        (lambda: mean_interval([1.0, 2.0], confidence=np.nan), "confidence"),
        (lambda: mean_interval([]), "at least 2"),
        (lambda: mean_interval([1.0]), "at least 2"),
        (lambda: mean_interval(1.0), "axis"),
        (lambda: mean_interval([1.0, np.nan]), "NaN"),
        (lambda: paired_difference_interval([1.0, 2.0], [1.0]), "one shape"),
        (lambda: paired_ratio_interval([1.0, 0.0], [1.0, 1.0]), "positive"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
