"""Student-t intervals over seeds, on the host in float64: numbers of a table, not of a graph."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.stats


class Interval(NamedTuple):
    """An estimate and the confidence interval about it; floats, or arrays of one shape."""

    estimate: Any
    low: Any
    high: Any


def geometric_mean(values: Any) -> float:
    """exp of the mean logarithm.

    Example:
        >>> round(geometric_mean([1.0, 4.0]), 6)
        2.0
    """
    return float(np.exp(np.mean(np.log(np.asarray(list(values), np.float64)))))


def _values(what: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{what} holds NaN or infinite values; expected finite numbers.")
    return array


def mean_interval(values: Any, confidence: float = 0.95, axis: int = 0) -> Interval:
    """The mean over seeds and its Student-t interval.

    mean ± t_{n-1} s/√n, with s over n - 1.

    Args:
        values: One result a seed along `axis`, n >= 2 of them.
        confidence: Two-sided, in (0, 1).
        axis: The seeds' axis.

    Returns:
        `Interval(estimate, low, high)`, float64, `axis` reduced.

    Raises:
        ValueError: Fewer than 2 seeds, no such axis, a confidence outside of (0, 1), NaN or
            infinite values.

    Example:
        >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])
        >>> round(float(mean), 3), round(float(low), 3), round(float(high), 3)
        (2.0, -0.484, 4.484)

    References:
        Student, The probable error of a mean, 1908.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number in (0, 1).")
    array = _values("values", values)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"values has shape {array.shape}; expected an axis {axis}.")
    n = array.shape[axis]
    if n < 2:
        raise ValueError(f"values has {n} seed(s); expected at least 2 for an interval.")
    mean = array.mean(axis=axis)
    quantile = scipy.stats.t.ppf((1 + confidence) / 2, n - 1)
    half = quantile * array.std(axis=axis, ddof=1) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def _pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = _values("a", a), _values("b", b)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}; expected pairs, of one shape.")
    return a, b


def paired_difference_interval(a: Any, b: Any, confidence: float = 0.95, axis: int = 0) -> Interval:
    """The mean of a - b over paired seeds and its Student-t interval.

    Args:
        a: One result a seed along `axis`, n >= 2.
        b: Results of the same seeds, of the same shape.
        confidence: Two-sided, in (0, 1).
        axis: The seeds' axis.

    Returns:
        `Interval(estimate, low, high)`, float64; a and b differ where it leaves 0 out.

    Raises:
        ValueError: Shapes that differ, and as `mean_interval`.

    Example:
        >>> interval = paired_difference_interval([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
        >>> float(interval.low), float(interval.high)
        (1.0, 1.0)
    """
    a, b = _pair(a, b)
    return mean_interval(a - b, confidence, axis)


def paired_ratio_interval(a: Any, b: Any, confidence: float = 0.95, axis: int = 0) -> Interval:
    """The geometric mean of a / b over paired seeds and its interval, exp of that on log(a / b).

    Args:
        a: Positive results, one a seed along `axis`, n >= 2.
        b: Positive results of the same seeds, of the same shape.
        confidence: Two-sided, in (0, 1).
        axis: The seeds' axis.

    Returns:
        `Interval(estimate, low, high)`, float64; a and b differ where it leaves 1 out.

    Raises:
        ValueError: Values that aren't positive, shapes that differ, and as `mean_interval`.

    Example:
        >>> ratio = paired_ratio_interval([2.0, 4.0, 6.0], [4.0, 8.0, 12.0])
        >>> round(float(ratio.estimate), 4), round(float(ratio.low), 4), round(float(ratio.high), 4)
        (0.5, 0.5, 0.5)
    """
    a, b = _pair(a, b)
    if not (np.all(a > 0) and np.all(b > 0)):
        raise ValueError("a or b holds values <= 0; expected positive numbers for a ratio.")
    return Interval(*(np.exp(v) for v in mean_interval(np.log(a) - np.log(b), confidence, axis)))
