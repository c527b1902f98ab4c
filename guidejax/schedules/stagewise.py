"""Schedules of the stage-wise theory of guidance: its own, and those it asks for.

Jin, Shi, Gu, arXiv 2509.22007. In one mode of width σ_y, the unconditional model being N(0, I),
samples come out with std σ_y · exp(−∫ ω(t) K(t) dt) (`guidejax.analytic.within_mode_std`), with

    K = dL/dt,   L = ½ log(b/a),   a = α² + σ²,   b = α² σ_y² + σ²,

on rectified flow K = t(1 − t)(1 − σ_y²)/(ab). E[ω] = ∫ ω K is the contraction exponent: what
guidance costs in diversity within modes, linear in ω. K ≥ 0 is 0 at both ends and peaks between,
near the data for narrow modes (t = .11, .29, .38 for σ_y = .1, .3, .5), just where the paper's own
triangle and the usual intervals are high. `least_contraction` and `low_contraction` spend the same
mean of ω where K is low. On a grid all of it is exact: a step t → s costs ω · (L(t) − L(s)).

What E leaves out: guidance near t = 1 costs diversity between modes (the paper's Theorem 3.2), and
the clock is the process's own t.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, safe_divide
from guidejax.schedules.base import curve, require, row_of, schedule
from guidejax.schedules.budgets import lengths
from guidejax.weights.base import Step, Weight, as_weight


def _triangle(num_steps: int, peak: float, form: str) -> np.ndarray:
    """Rise of each step, 0 at the foot and 1 at the top."""
    n = np.arange(num_steps)
    if form == "paper":
        top = max(int(np.ceil(num_steps * peak)), 1)
        down = (num_steps - n) / max(num_steps - top, 1)
        return np.where(n <= top, n / top, down)
    if num_steps == 1:
        return np.ones(1)
    if num_steps % 2:
        half = num_steps // 2
        return 1 - np.abs(n - half) / half
    half = num_steps // 2
    # The official code's even case: the top is step N/2 and the last step is back at the foot.
    return np.where(n < half, n / half, 1 - (n - half) / max(half - 1, 1))


def _triangular(step: Step, mean: Array, peak: float, form: str) -> Array:
    share = lengths(step, "triangular")
    rise = jnp.asarray(_triangle(step.num_steps, peak, form), share.dtype)
    scale = mean + 1
    rise = rise.reshape(rise.shape + (1,) * max(scale.ndim, share.ndim - 1))
    raw = 1 + 2 * (scale - 1) * rise
    share = share.reshape(share.shape + (1,) * (raw.ndim - share.ndim))
    return row_of(raw * safe_divide(scale, jnp.sum(raw * share, axis=0)), step) - 1


@schedule(
    keeps="mean",
    acts_on="total",
    source="Jin et al. 2509.22007, §3, and official code",
    example={"mean": 2.0},
)
def triangular(mean: Any, peak: float = 0.5, form: str = "code") -> Weight:
    """The stage-wise paper's TV-CFG: low, high, low again, at the same time-weighted mean.

    w_n rises in step index from 1 to 2w − 1 and falls back, then is scaled so that
    Σ w_n (t_n − t_{n+1}) = w, with w = mean + 1 (Jin et al. 2509.22007, §3). Acts on ω + 1;
    keeps the time-weighted mean, so that after scaling the ends are not exactly at ω = 0.

    Args:
        mean: Time-weighted mean of ω over the grid: a number, (batch,) numbers or any `Weight`.
        peak: Where the top stands, as a fraction of the steps; only `form="paper"` moves it.
        form: "code" is the authors' program, whose last step is at the foot; "paper" is the
            printed formula, which reaches the foot one step after the last.

    Raises:
        ValueError: If `form` is unknown or `peak` is not in (0, 1).

    Example:
        >>> times = jnp.linspace(1, 0, 5)
        >>> [round(float(w), 3) for w in triangular(3.0).table(times)]
        [0.231, 3.923, 7.615, 0.231]
    """
    if form not in ("code", "paper"):
        raise ValueError(f"unknown form {form!r}; expected 'code' or 'paper'.")
    if not 0 < peak < 1:
        raise ValueError(f"expected peak in (0, 1), got {peak}.")
    return curve(_triangular, {"mean": mean}, {"peak": float(peak), "form": form})


def _rates(step: Step, std: Array, who: str) -> tuple[Array, Array]:
    """(mean of K over each step of the grid, length of each step), (steps, ...) alike."""
    process, share = step.needs("process", who), lengths(step, who)
    times = jnp.asarray(step.times)
    signal, noise = process.alpha(times) ** 2, process.sigma(times) ** 2
    clean, noisy = signal / (signal + noise), noise / (signal + noise)
    if std.ndim > clean.ndim - 1:
        clean, noisy, share = clean[:, None], noisy[:, None], share[:, None]
    # ½ log(b/a), in the form that doesn't cancel: 1 − (1 − σ_y²) is 0 for a narrow mode.
    near = clean > 1 / 2
    far = jnp.log1p(jnp.where(near, 0, -(1 - std**2) * clean))
    level = jnp.where(near, jnp.log(jnp.where(near, std**2 * clean + noisy, 1)), far) / 2
    rates = -jnp.diff(level, axis=0) / share
    return jnp.broadcast_to(rates, jnp.broadcast_shapes(rates.shape, share.shape)), share


def _cheaper(rates: Array, step: Step, share: Array, slack: Any = 0.0) -> Array:
    """Total length of the steps whose K is below this one's; of equal ones, the noisier first."""
    here, number = row_of(rates, step), jnp.arange(rates.shape[0])
    number = number.reshape((-1,) + (1,) * (rates.ndim - 1))
    less = (rates + slack < here) | ((rates == here) & (number < step.index) & (slack == 0))
    return jnp.sum(jnp.where(less & (number != step.index), share, 0), axis=0)


def _least(step: Step, std: Array, peak: Array) -> Array:
    rates, share = _rates(step, std, "least_contraction")
    left = 1 / peak - _cheaper(rates, step, share)
    return peak * jnp.clip(left / row_of(share, step), 0, 1)


def _least_support(step: Step, std: Array, peak: Array) -> Array:
    # Rounding may order steps of nearly the same K otherwise: then they count as guided.
    rates, share = _rates(step, std, "least_contraction")
    slack = 1e-3 * jnp.max(jnp.abs(rates), axis=0)
    return _cheaper(rates, step, share, slack) < 1 / peak + 1e-4


def _check_std(who: str, std: Any) -> None:
    require(who, "std in (0, 1)", lambda s: (s > 0) & (s < 1), std)


@schedule(
    keeps="mean",
    source="guidejax, from Theorem 3.5 of Jin et al. 2509.22007",
    example={"mean": 2.0, "std": 0.3, "peak": 2.0},
)
def least_contraction(mean: Any, std: Any = 0.3, peak: Any = 2.0) -> Weight:
    """Least contraction within modes for a given mean and peak of ω: what the theory asks for.

    Minimise E[ω] = ∫ ω K dt subject to ∫ ω dt = mean and 0 ≤ ω ≤ cap = peak · mean. Without the cap
    the problem is degenerate: all of ω goes where K is least, a spike at an end of time that costs
    nothing. With it, it is linear with a box, and the bathtub principle solves it: take ω = cap
    where K < k, ω = 0 where K > k, k such that {K < k} has length 1/peak. (Any other ω* has
    ∫ (ω* − ω)(K − k) ≥ 0, both factors having one sign, and the means agree.) K has one peak, so
    this guides at both ends and leaves out the middle, where an interval guides; on a grid it fills
    steps in the order of their K, the last in part. It is at or below every schedule with that mean
    and peak, a constant, an interval or the triangle, and makes 1/peak of the unconditional passes.
    See the module's notes on what E leaves out.

    Acts on ω; keeps the time-weighted mean over the grid.

    Args:
        mean: Mean of ω over time: a number, (batch,) numbers or any `Weight`.
        std: Width σ_y of a mode, relative to the unconditional model's; in (0, 1).
        peak: Largest ω over the mean, at least 1: 1 is a constant, 2 guides half of the time.

    Raises:
        ValueError: If std is not in (0, 1) or peak is below 1.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> weight = least_contraction(3.0, std=0.5)  # K's peak is at t = 0.38
        >>> weight.table(jnp.linspace(1, 0, 5), process=rectified_flow()).tolist()
        [6.0, 0.0, 0.0, 6.0]
    """
    _check_std("least_contraction", std)
    require("least_contraction", "peak ≥ 1", lambda p: p >= 1, peak)
    return as_weight(mean) * curve(_least, {"std": std, "peak": peak}, where=_least_support)


def _level(rates: Array, share: Array, penalty: Array) -> Array:
    """ν with Σ share · (ν − K)₊ = penalty."""
    rank, length = jax.lax.sort(
        (jax.lax.stop_gradient(rates), jnp.broadcast_to(share, rates.shape)),
        dimension=0,
        num_keys=1,
    )
    # Over the j cheapest steps alone ν is at least the answer, and equal to it for the right j.
    full = (jax.lax.stop_gradient(penalty) + jnp.cumsum(rank * length, 0)) / jnp.cumsum(length, 0)
    on = jnp.where(rates < jnp.min(full, axis=0), share, 0)
    return (penalty + jnp.sum(on * rates, axis=0)) / jnp.sum(on, axis=0)


def _water(step: Step, std: Array, penalty: Array) -> tuple[Array, Array]:
    rates, share = _rates(step, std, "low_contraction")
    if penalty.ndim > rates.ndim - 1:
        rates, share = rates[:, None], share.reshape(share.shape[0], -1)
    rates = jnp.broadcast_to(rates, rates.shape[:1] + jnp.broadcast_shapes(
        rates.shape[1:], penalty.shape))  # fmt: skip
    return row_of(rates, step), _level(rates, share, penalty)


def _low(step: Step, std: Array, penalty: Array) -> Array:
    rate, level = _water(step, std, penalty)
    return jnp.maximum(level - rate, 0) / penalty


def _low_support(step: Step, std: Array, penalty: Array) -> Array:
    rate, level = _water(step, std, penalty)
    return rate < level + 1e-3 * (1 + level)


@schedule(
    keeps="mean",
    source="guidejax, from Theorem 3.5 of Jin et al. 2509.22007",
    example={"mean": 2.0, "std": 0.3, "penalty": 1.0},
)
def low_contraction(mean: Any, std: Any = 0.3, penalty: Any = 1.0) -> Weight:
    """Less contraction within modes for a given mean of ω, by a smooth schedule.

    Minimise ∫ ω K dt + penalty/(2 · mean) ∫ ω² dt subject to ∫ ω dt = mean and ω ≥ 0: in place of
    `least_contraction`'s cap, a price on unevenness. It is strictly convex, and its conditions are
    those of water-filling: ω = mean · (ν − K)₊ / penalty, ν such that the mean is kept. Where
    nothing is cut off, ω = mean · (1 + (K̄ − K)/penalty), and E = mean · (K̄ − Var K/penalty) with
    K̄ = ∫ K = log(1/σ_y), so that the gain over a constant is the variance of K. A large penalty is
    a constant, a small one the spike. See the module's notes on what E leaves out.

    Acts on ω; keeps the time-weighted mean over the grid.

    Args:
        mean: Mean of ω over time: a number, (batch,) numbers or any `Weight`.
        std: Width σ_y of a mode, relative to the unconditional model's; in (0, 1).
        penalty: Price of unevenness, positive, in units of K.

    Raises:
        ValueError: If std is not in (0, 1) or the penalty is not positive.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> weight = low_contraction(3.0, std=0.5)  # L = −log 2, −½ log(8/5)... at t = 0, 1/2
        >>> times = jnp.array([1.0, 0.5, 0.0])
        >>> [round(float(omega), 3) for omega in weight.table(times, process=rectified_flow())]
        [3.669, 2.331]
    """
    _check_std("low_contraction", std)
    require("low_contraction", "penalty > 0", lambda p: p > 0, penalty)
    return as_weight(mean) * curve(_low, {"std": std, "penalty": penalty}, where=_low_support)
