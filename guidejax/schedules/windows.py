"""Schedules that switch guidance on and off: off, they cost no unconditional pass."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array
from guidejax.processes.base import ROUNDING
from guidejax.schedules.base import check_unit, curve, progress, require, scaled, schedule
from guidejax.weights.base import Step, Weight, as_weight

UNITS = ("t", "log_snr", "sigma", "step")


def _inside(step: Step, lo: Array, hi: Array, unit: str) -> Array:
    position = step.position(unit)
    # To a rounding: in somebody's loop the time 0.2 may be 1 − 0.8.
    low, high = (2 * ROUNDING * jnp.maximum(jnp.abs(end), 1) for end in (lo, hi))
    return jnp.logical_and(position >= lo - low, position <= hi + high)


def _interval(step: Step, lo: Array, hi: Array, unit: str) -> Array:
    return jnp.where(_inside(step, lo, hi, unit), jnp.ones((), jnp.result_type(float)), 0)


@schedule(
    keeps="peak",
    source="Kynkäänniemi et al. 2404.07724, Eq. (5)",
    example={"value": 2.0, "lo": 0.25, "hi": 0.75},
)
def interval(value: Any, lo: Any, hi: Any, unit: str = "t") -> Weight:
    """Guidance in a limited interval: ω = value where lo ≤ t ≤ hi, 0 outside.

    Kynkäänniemi et al. 2404.07724, Eq. (5), there in σ and half open at `lo`; here both ends
    belong to it, to a rounding. Acts on ω; keeps the peak. Outside the interval the sampler makes
    no unconditional pass.

    Args:
        value: ω inside: a number, (batch,) numbers or any `Weight`.
        lo: Lower end, in `unit`.
        hi: Upper end, in `unit`, at least `lo`.
        unit: What the ends are compared with, of the time denoised from: "t", "log_snr",
            "sigma" (σ/α) or "step" (index on the grid, 0 the noisiest).

    Raises:
        ValueError: If lo > hi, an end is NaN, the unit is unknown, or a finite end lies outside
            [0, 1] in unit "t".

    Example:
        >>> weight = interval(4.0, lo=0.2, hi=0.8)
        >>> [float(weight(s=t - 0.1, t=t)) for t in (0.9, 0.5)]
        [0.0, 4.0]
    """
    if unit not in UNITS:
        raise ValueError(f"unknown unit {unit!r}; expected one of {', '.join(UNITS)}.")
    require("interval", "lo ≤ hi", lambda a, b: a <= b, lo, hi)
    if unit == "t":
        # An open end may be infinite.
        inside = lambda end: (end > -ROUNDING) & (end < 1 + ROUNDING) | np.isinf(end)  # noqa: E731
        expected = "ends within [0, 1] in unit='t' (for steps or noise levels give their unit)"
        require("interval", expected, lambda a, b: inside(a) & inside(b), lo, hi)
    return as_weight(value) * curve(_interval, {"lo": lo, "hi": hi}, {"unit": unit}, _inside)


def _kept(step: Step, start: Array, stop: Array) -> Array:
    # int(start · N) ≤ i < int(stop · N); the bit more is for 0.29 · 100 = 28.999.
    first, last = (jnp.floor(end * step.num_steps + 1e-4) for end in (start, stop))
    return jnp.logical_and(step.index >= first, step.index < last)


def _cutoff(step: Step, start: Array, stop: Array) -> Array:
    return jnp.where(_kept(step, start, stop), jnp.ones((), jnp.result_type(float)), 0)


@schedule(
    keeps="peak",
    source="diffusers guidance start and stop; Lumina-Image 2.0",
    example={"value": 2.0, "start": 0.1, "stop": 0.6},
)
def cutoff(value: Any, start: Any = 0.0, stop: Any = 1.0) -> Weight:
    """ω = value from one fraction of the N steps to another, 0 before and after.

    Step i is guided where ⌊start · N⌋ ≤ i < ⌊stop · N⌋, the products as meant: 0.29 · 100 is 29,
    where diffusers' guiders, which truncate the rounded product 28.999…, are a step early.
    Lumina-Image 2.0 truncates at stop = 0.25. Acts on ω; keeps the peak. An `interval` is in time
    or noise.

    Args:
        value: ω of the guided steps: a number, (batch,) numbers or any `Weight`.
        start: Fraction of the steps left out at the noisy end.
        stop: Fraction after which guidance ends.

    Raises:
        ValueError: If not 0 ≤ start ≤ stop ≤ 1.

    Example:
        >>> cutoff(3.0, stop=0.5).table(jnp.linspace(1, 0, 5)).tolist()
        [3.0, 3.0, 0.0, 0.0]
    """
    ordered = lambda a, b: (a >= 0) & (a <= b) & (b <= 1)  # noqa: E731
    require("cutoff", "0 ≤ start ≤ stop ≤ 1", ordered, start, stop)
    return as_weight(value) * curve(_cutoff, {"start": start, "stop": stop}, where=_kept)


def _faded(step: Step, full: Array, off: Array) -> Array:
    gap = off - full
    inside = jnp.clip((off - step.t) / jnp.where(gap > 0, gap, 1), 0, 1)
    return jnp.where(gap > 0, inside, jnp.where(step.t <= full, 1.0, 0.0))


def _not_faded(step: Step, full: Array, off: Array) -> Array:
    return jnp.asarray(step.t) <= off


@schedule(
    keeps="peak",
    source="Sadat et al. 2310.17347 (CADS), dynamic CFG",
    example={"value": 2.0, "full": 0.6, "off": 0.9},
)
def cads_gate(value: Any, full: Any = 0.6, off: Any = 0.9, on: str = "excess") -> Weight:
    """CADS's dynamic guidance: ω = value · γ(t), γ = 1 for t ≤ full, falling to 0 at off.

    γ(t) = (off − t)/(off − full) between (Sadat et al. 2310.17347; there γ anneals the condition
    too). Keeps the peak. Acts on ω, so that above `off` the sample is the conditional model's at
    half the cost; on="total" has γ on ω + 1, where it would be the unconditional model's.

    Args:
        value: ω below `full`: a number, (batch,) numbers or any `Weight`.
        full: Time below which guidance is whole.
        off: Time above which there is none, at least `full`.
        on: "excess" or "total".

    Raises:
        ValueError: If full > off, or one of them is no time.

    Example:
        >>> weight = cads_gate(4.0, full=0.5, off=1.0)
        >>> [float(weight(s=t - 0.1, t=t)) for t in (1.0, 0.75, 0.25)]
        [0.0, 2.0, 4.0]
    """
    require("cads_gate", "full ≤ off", lambda a, b: a <= b, full, off)
    require("cads_gate", "times in [0, 1]", lambda a, b: (a >= 0) & (b <= 1), full, off)
    return scaled(value, curve(_faded, {"full": full, "off": off}, where=_not_faded), on)


def _stepped(step: Step, ratio: Array, at: Array, unit: str, low_first: bool) -> Array:
    early = progress(step, unit) < at
    return jnp.where(early == low_first, ratio, 1.0)


def _stepped_support(step: Step, ratio: Array, at: Array, unit: str, low_first: bool) -> Array:
    return jnp.logical_or(ratio != 0, (progress(step, unit) < at) != low_first)


def _steps(value: Any, ratio: Any, at: Any, unit: str, on: str, low_first: bool) -> Weight:
    options = {"unit": check_unit(unit), "low_first": low_first}
    shape = curve(_stepped, {"ratio": ratio, "at": at}, options, _stepped_support)
    return scaled(value, shape, on)


@schedule(
    keeps="peak",
    source="Jin et al. 2509.22007, official code",
    example={"value": 2.0, "ratio": 0.4, "at": 0.3},
)
def step_up(
    value: Any, ratio: Any = 1 / 3, at: Any = 0.25, unit: str = "step", on: str = "excess"
) -> Weight:
    """Little guidance first: ω = ratio · value while progress < at, then value.

    The stage-wise paper's "early low" run (Jin et al. 2509.22007), whose program has the third on
    ω + 1. Acts on ω, or with on="total" on ω + 1. Keeps the peak, not the mean: `with_mean` makes
    it comparable.

    Args:
        value: ω of the later steps: a number, (batch,) numbers or any `Weight`.
        ratio: Share of it in the earlier ones.
        at: Progress of the change, in [0, 1].
        unit: What progress is: "step", i/(N − 1), or "t", 1 − t.
        on: "excess" or "total".

    Raises:
        ValueError: If `at` is not in [0, 1].

    Example:
        >>> step_up(3.0).table(jnp.linspace(1, 0, 7)).tolist()  # τ = 0, 0.2, 0.4, ...
        [1.0, 1.0, 3.0, 3.0, 3.0, 3.0]
    """
    require("step_up", "at in [0, 1]", lambda a: (a >= 0) & (a <= 1), at)
    return _steps(value, ratio, at, unit, on, True)


@schedule(
    keeps="peak",
    source="Jin et al. 2509.22007, official code; 2602.00716",
    example={"value": 2.0, "ratio": 0.4, "at": 0.3},
)
def step_down(
    value: Any, ratio: Any = 1 / 3, at: Any = 0.25, unit: str = "step", on: str = "excess"
) -> Weight:
    """Much guidance first: ω = value while progress < at, then ratio · value.

    The stage-wise paper's "early high" run (Jin et al. 2509.22007), whose program has the third on
    ω + 1. Acts on ω, or with on="total" on ω + 1; there ratio = 0 makes the rest unconditional,
    ω = −1, as in 2602.00716 (at 0.5 to 0.7). Keeps the peak, not the mean: `with_mean` makes it
    comparable.

    Args:
        value: ω of the earlier steps: a number, (batch,) numbers or any `Weight`.
        ratio: Share of it in the later ones; 0 saves their unconditional passes.
        at: Progress of the change, in [0, 1].
        unit: What progress is: "step", i/(N − 1), or "t", 1 − t.
        on: "excess" or "total".

    Raises:
        ValueError: If `at` is not in [0, 1].

    Example:
        >>> step_down(3.0).table(jnp.linspace(1, 0, 7)).tolist()  # τ = 0, 0.2, 0.4, ...
        [3.0, 3.0, 1.0, 1.0, 1.0, 1.0]
    """
    require("step_down", "at in [0, 1]", lambda a: (a >= 0) & (a <= 1), at)
    return _steps(value, ratio, at, unit, on, False)
