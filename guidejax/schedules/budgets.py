"""Schedules that keep a time-weighted mean Σ ωₙ (tₙ − tₙ₊₁) exactly, on the grid at hand."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, safe_divide
from guidejax.schedules.base import curve, require, row_of, schedule
from guidejax.weights.base import Step, Weight, as_weight


def lengths(step: Step, who: str) -> Array:
    """tₙ − tₙ₊₁ over the whole span, which they fill: (steps,) or (steps, batch), summing to 1."""
    times = jnp.asarray(step.needs("times", who))
    return -jnp.diff(times, axis=0) / (times[0] - times[-1])


def _over_mean(weight: Weight, step: Step) -> Array:
    mean = _mean(weight, step.needs("times", "with_mean"), step.cond, step.process)
    return safe_divide(weight.fn(weight.params, step), mean)


@functools.partial(jax.jit, inline=True)
def _mean(weight: Weight, times: Array, cond: Any, process: Any) -> Array:
    times = jnp.asarray(times)
    share = lengths(Step(None, None, times=times), "with_mean")
    rows = weight.table(times, cond, process=process)
    ndim = max(rows.ndim, share.ndim)
    rows, share = (x.reshape(x.shape + (1,) * (ndim - x.ndim)) for x in (rows, share))
    return jnp.sum(rows * share, axis=0)


def _over_mean_support(weight: Weight, step: Step) -> Any:
    return weight.active(step.s, step.t, process=step.process, times=step.times)


def with_mean(weight: Any, mean: Any) -> Weight:
    """Any weight, scaled so that its time-weighted mean on the sampler's grid is `mean`.

    ω'ₙ = ωₙ · mean / Σ ωₙ (tₙ − tₙ₊₁), the times over their span. Compares schedules at the same
    budget: `with_mean(interval(1.0, 0.15, 0.78), mean)` is the interval baseline of the stage-wise
    paper's program (Jin et al. 2509.22007). Acts on ω; keeps the mean, and no unconditional pass is
    made where the weight makes none.

    Args:
        weight: The shape: a `Weight`, a function or a number; a mean of 0 gives ω = 0.
        mean: Mean of ω over time: a number, (batch,) numbers or any `Weight`.

    Example:
        >>> from guidejax.schedules import interval
        >>> weight = with_mean(interval(1.0, lo=0.4, hi=0.6), mean=2.0)
        >>> weight.table(jnp.array([1.0, 0.5, 0.25, 0.0])).tolist()
        [0.0, 8.0, 0.0]
    """
    return as_weight(mean) * Weight(as_weight(weight), _over_mean, _over_mean_support)


def _dg(step: Step) -> Array:
    process = step.needs("process", "dg_cfg")
    # Away from the ends, where λ' has no bound and the curve is 0 all the same.
    t = jnp.clip(jnp.asarray(step.t, jnp.result_type(float)), 1e-4, 1 - 1e-4)
    log_snr, slope = jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))
    return jnp.sqrt(jax.nn.sigmoid(log_snr)) / -slope


@schedule(keeps="mean", source="2607.19725 (DG-CFG)", example={"mean": 2.0})
def dg_cfg(mean: Any) -> Weight:
    """ω = C · mean · (1 − ᾱ) √ᾱ / β, C so that the time-weighted mean is `mean`: DG-CFG.

    2607.19725, for variance-preserving processes, ᾱ = α², β = −d log ᾱ/dt. Since the log-SNR is
    λ = log(ᾱ/(1 − ᾱ)), (1 − ᾱ)/β = 1/|dλ/dt| and ᾱ = sigmoid(λ): in this form it is defined, and
    the same, for every process. Acts on ω; keeps the mean on the grid.

    Args:
        mean: Mean of ω over time: a number, (batch,) numbers or any `Weight`.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> table = dg_cfg(2.0).table(jnp.array([1.0, 0.5, 0.0]), process=rectified_flow())
        >>> [round(float(omega), 2) for omega in table]
        [0.0, 4.0]
    """
    return with_mean(curve(_dg), mean)


def _runs(step: Step, every: int) -> Array:
    times = jnp.asarray(step.needs("times", "compress"))
    first = np.arange(step.num_steps)
    last = np.minimum(first + every, step.num_steps)
    length = (times[first] - times[last]) / (times[first] - times[first + 1])
    return row_of(length, step) * _guided(step, every)


def _guided(step: Step, every: int) -> Array:
    return step.index % every == 0


@schedule(keeps="mean", source="2408.11194", example={"mean": 2.0}, options={"every": 3})
def compress(mean: Any, every: int = 2) -> Weight:
    """Guide every few steps, with what the steps between would have had: fewer passes.

    ω = mean · (tᵢ − tᵢ₊ₖ)/(tᵢ − tᵢ₊₁) on steps i = 0, k, 2k, ... with k = every, 0 on the others
    (Compress Guidance, 2408.11194, as we read it). Acts on ω; keeps the mean on the grid; the peak
    is k · mean on a uniform one. `dpmpp_2m` and `unipc` begin anew at every turn: take another
    solver.

    Args:
        mean: Mean of ω over time: a number, (batch,) numbers or any `Weight`.
        every: Steps from one guided step to the next; structure, not traced.

    Raises:
        ValueError: If `every` is not a positive integer.

    Example:
        >>> compress(2.0, every=2).table(jnp.linspace(1, 0, 5)).tolist()
        [4.0, 0.0, 4.0, 0.0]
    """
    require("compress", "every to be a positive integer", lambda k: k == int(k) and k >= 1, every)
    return as_weight(mean) * curve(_runs, options={"every": int(every)}, where=_guided)
