"""ω(s, t) set by hand: each says whether it acts on ω or ω + 1 and keeps the mean or the peak."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, is_concrete
from guidejax.weights.base import Step, Weight, as_weight

UNITS = ("t", "log_snr", "sigma", "step")


@dataclasses.dataclass(frozen=True)
class _Interval:
    unit: str

    def __call__(self, params: Any, step: Step) -> Array:
        inside = _Inside(self.unit)(params, step)
        return jnp.where(inside, jnp.ones((), jnp.result_type(float)), 0)


@dataclasses.dataclass(frozen=True)
class _Inside:
    unit: str

    def __call__(self, params: Any, step: Step) -> Array:
        lo, hi = params
        position = step.at(self.unit)
        return jnp.logical_and(position >= lo, position <= hi)


def interval(value: Any, lo: Any, hi: Any, unit: str = "t") -> Weight:
    """Guidance in a limited interval: ω = value where lo ≤ t ≤ hi, 0 outside.

    Kynkäänniemi et al. 2404.07724, Eq. (5), there in σ and half open at `lo`; here both ends
    belong to it. Acts on ω; keeps the peak. Outside the interval the sampler makes no
    unconditional pass.

    Args:
        value: ω inside: a number, (batch,) numbers or any `Weight`.
        lo: Lower end, in `unit`.
        hi: Upper end, in `unit`, at least `lo`.
        unit: What the ends are compared with, of the time denoised from: "t", "log_snr",
            "sigma" (σ/α) or "step" (index on the grid, 0 the noisiest).

    Raises:
        ValueError: If lo > hi, an end is NaN, or the unit is unknown.

    Example:
        >>> weight = interval(4.0, lo=0.2, hi=0.8)
        >>> [float(weight(s=t - 0.1, t=t)) for t in (0.9, 0.5)]
        [0.0, 4.0]
    """
    if unit not in UNITS:
        raise ValueError(f"unknown unit {unit!r}; expected one of {', '.join(UNITS)}.")
    if is_concrete(lo, hi) and not np.all(np.asarray(lo) <= np.asarray(hi)):
        raise ValueError(f"interval expects lo ≤ hi, got lo={lo}, hi={hi}.")
    return as_weight(value) * Weight((lo, hi), _Interval(unit), _Inside(unit))


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


@dataclasses.dataclass(frozen=True)
class _Triangular:
    peak: float
    form: str

    def __call__(self, mean: Any, step: Step) -> Array:
        times = jnp.asarray(step.needs("times", "triangular"))
        rise = jnp.asarray(_triangle(step.num_steps, self.peak, self.form), times.dtype)
        scale = jnp.asarray(mean) + 1
        rise = rise.reshape(rise.shape + (1,) * max(scale.ndim, times.ndim - 1))
        raw = 1 + 2 * (scale - 1) * rise
        delta = -jnp.diff(times, axis=0)
        delta = (delta / jnp.sum(delta, axis=0)).reshape(
            delta.shape + (1,) * (raw.ndim - times.ndim)
        )
        kept = raw * scale / jnp.sum(raw * delta, axis=0)
        row = jnp.take_along_axis(kept, jnp.broadcast_to(step.index, kept.shape[1:])[None], axis=0)[
            0
        ]
        return row - 1


def triangular(mean: Any, peak: float = 0.5, form: str = "code") -> Weight:
    """The stage-wise paper's TV-CFG: low, high, low again, at the same time-weighted mean.

    w_n rises in step index from 1 to 2w − 1 and falls back, then is scaled so that
    Σ w_n (t_n − t_{n+1}) = w, with w = mean + 1 (Jin et al. 2509.22007, §3). Acts on ω + 1;
    keeps the time-weighted mean, so that after scaling the ends are not exactly at ω = 0.

    Args:
        mean: Time-weighted mean of ω over the grid: a number or (batch,) numbers.
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
    return Weight(mean, _Triangular(float(peak), form))


@dataclasses.dataclass(frozen=True)
class _ClampLinear:
    def __call__(self, params: Any, step: Step) -> Array:
        mean, floor = params
        return jnp.maximum(floor, 2 * jnp.asarray(mean) * (1 - jnp.asarray(step.t)))


def clamp_linear(mean: Any, floor: Any = 0.0) -> Weight:
    """ω = max(floor, 2 · mean · (1 − t)): rising while denoising, never under the floor.

    Wang et al. 2404.13040 ("clamp-linear"), whose pseudo-code has the ramp on ω. Acts on ω; the
    unclamped ramp has mean `mean` over t in [0, 1] and peak 2 · mean at t = 0.

    Args:
        mean: Mean of the ramp.
        floor: Least ω, on the same scale (the paper's c: 2 for SD1.5, 4 for SDXL).

    Example:
        >>> weight = clamp_linear(2.0, floor=1.0)
        >>> float(weight(s=0.8, t=0.9)), float(weight(s=0.4, t=0.5))
        (1.0, 2.0)
    """
    return Weight((mean, floor), _ClampLinear())
