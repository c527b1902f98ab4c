"""Refinements that bring x̂0 back into the range of the data."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    expand,
    flatten,
    norm,
    quantile,
    resized,
    restore,
    safe_divide,
    upcast,
)
from guidejax.rules.base import rule


def check_percentile(name: str, value: Array | float) -> None:
    """Raise `ValueError` for what is no percentile: a fraction of 1 above all."""
    number = np.asarray(value)
    if np.any((number < 0) | (number > 100) | ((number > 0) & (number <= 1))):
        raise ValueError(
            f"{name} is {value}; expected a percentile from 0 to 100, as 99.5, not 0.995."
        )


def _check_ends(lo: Array | float, hi: Array | float) -> None:
    if np.any(np.asarray(lo) > np.asarray(hi)):
        raise ValueError(f"threshold expects lo ≤ hi, got lo={lo}, hi={hi}.")


def _check_dynamic(percentile: Array | float, limit: Any, most: Any) -> None:
    check_percentile("dynamic_threshold's percentile", percentile)


def _check_mimic(percentile: Array | float, **others: Any) -> None:
    check_percentile("mimic's percentile", percentile)


@rule(
    space="x0",
    paper="Saharia et al. (Imagen), arXiv 2205.11487, §2.3",
    exact_at_zero=False,
    check=_check_ends,
)
def threshold(guided: Array, *, lo: Array | float = -1.0, hi: Array | float = 1.0) -> Array:
    """Static thresholding: clip x̂0 to [lo, hi] (Saharia et al. 2205.11487, §2.3).

    Args:
        guided: The clean prediction so far, (batch, ...).
        lo: Lower end of the data's range, scalar or (batch,).
        hi: Upper end, at least `lo`.

    Returns:
        The clipped prediction, in the dtype of `guided`.

    Raises:
        ValueError: If lo > hi.

    Example:
        >>> threshold(jnp.array([[-3.0, 0.5, 2.0]])).tolist()
        [[-1.0, 0.5, 1.0]]
    """
    g = upcast(guided)
    return restore(jnp.clip(g, expand(lo, g), expand(hi, g)), guided)


@rule(
    space="x0",
    paper="Saharia et al. (Imagen), arXiv 2205.11487, §2.3",
    exact_at_zero=False,
    check=_check_dynamic,
)
def dynamic_threshold(
    guided: Array,
    *,
    percentile: Array | float = 99.5,
    limit: Array | float = 1.0,
    most: Array | float | None = None,
) -> Array:
    """Dynamic thresholding: clip x̂0 to [−q, q] and divide by q (Saharia et al. 2205.11487, §2.3).

    q is a percentile of |x̂0| over one whole sample, 1 at least: a sample in range is left alone, a
    saturated one is compressed. The paper sets no largest q; diffusers' default, most = 1, is
    static thresholding.

    Args:
        guided: The clean prediction so far, (batch, ...).
        percentile: In per cent, 0 to 100 and not within (0, 1], scalar or (batch,).
        limit: Range of the data, where it is not [−1, 1]: x̂0/limit is thresholded.
        most: Largest q, in units of `limit`; None is no limit.

    Returns:
        The prediction in [−limit, limit], in the dtype of `guided`.

    Raises:
        ValueError: If `percentile` is none; 0.995 is meant as 99.5.

    Example:
        >>> dynamic_threshold(jnp.array([[-4.0, 1.0, 2.0]]), percentile=50.0).tolist()
        [[-1.0, 0.5, 1.0]]
    """
    g = upcast(guided)
    limit = expand(limit, g)
    g = g / limit
    q = quantile(flatten(jnp.abs(g)), jnp.asarray(percentile) / 100)
    q = expand(jnp.clip(q, 1, most), g)
    return restore(jnp.clip(g, -q, q) / q * limit, guided)


@rule(
    space="x0",
    paper="mcmonkey, sd-dynamic-thresholding (no paper)",
    exact_at_zero=False,
    static=("centre", "measure"),
    check=_check_mimic,
)
def mimic(
    cond: Array,
    uncond: Array,
    guided: Array,
    *,
    mimic_omega: Array | float = 6.0,
    percentile: Array | float = 100.0,
    phi: Array | float = 1.0,
    centre: str = "mean",
    measure: str = "range",
) -> Array:
    """Mimic a lower ω: give each channel of the guided prediction the range it has at that ω.

    With m = c + ω_m (c − u) and every channel centred on its mean, R_m = max |m| and R_g a
    percentile of |g|: clip g to ±max(R_m, R_g), scale it by R_m/max(R_m, R_g), and add the mean of
    g back (sd-dynamic-thresholding, whose "mimic scale" is ω_m + 1 = 7). Channels are the last
    axis; a (batch, n) array is one channel. Its option to share one range among the channels
    shares it among the whole batch, and is left out.

    Args:
        cond: Conditional clean prediction c, (batch, ..., channels).
        uncond: Unconditional clean prediction u, the same shape.
        guided: The clean prediction so far, the same shape.
        mimic_omega: ω_m, scalar or (batch,).
        percentile: In per cent, 0 to 100, for R_g; the "threshold percentile".
        phi: 0 leaves `guided` as it is, 1 is the full effect.
        centre: "mean", or "zero": g · R_m/R_g without clipping or centring the result.
        measure: "range" as above (the extension's AD), or "std" for both R.

    Returns:
        The prediction with its range set, in the dtype of `guided`.

    Raises:
        ValueError: If `centre` or `measure` is unknown, or `percentile` is none.

    Example:
        >>> c, u = jnp.array([[-1.0, 1.0]]), jnp.zeros((1, 2))
        >>> mimic(c, u, 8 * c, mimic_omega=1.0).tolist()
        [[-2.0, 2.0]]
    """
    if centre not in ("mean", "zero") or measure not in ("range", "std"):
        raise ValueError(
            f"mimic expects centre 'mean' or 'zero' and measure 'range' or 'std', got {centre!r} "
            f"and {measure!r}."
        )
    c, u, g = upcast(cond), upcast(uncond), upcast(guided)
    m = c + expand(mimic_omega, c) * (c - u)
    # (batch, elements, channels)
    channels = g.shape[-1] if g.ndim > 2 else 1
    elements = math.prod(g.shape[1:]) // max(channels, 1)
    columns = lambda x: x.reshape(x.shape[0], elements, channels)  # noqa: E731
    m, flat = columns(m), columns(g)
    mean = jnp.mean(flat, axis=1, keepdims=True)
    m, centred = m - jnp.mean(m, axis=1, keepdims=True), flat - mean
    if measure == "std":
        # Up to the factor that they share. A percentile that is NaN is seen, though not used.
        wanted, found = (norm(x, axis=1, keepdims=True) for x in (m, centred))
        found = jnp.where(expand(jnp.isnan(percentile), found), jnp.nan, found)
    else:
        # Not jnp.max, whose gradient compares m with its maximum: where XLA computes the two in
        # different roundings nothing is equal, and it divides by their number.
        wanted = quantile(jnp.abs(m), 1.0)[:, None]
        found = quantile(jnp.abs(centred), jnp.asarray(percentile) / 100)[:, None]
    # A constant channel has no range: what its mean is off by is rounding.
    within = functools.partial(norm, axis=1, keepdims=True)
    constant = within(centred) <= 4 * jnp.finfo(g.dtype).eps * within(flat)
    found = jnp.where(constant, 0 * found, found)
    if centre == "zero":
        result = resized(flat, wanted, found)
    elif measure == "std":
        result = mean + resized(centred, wanted, found)
    else:
        widest = jnp.maximum(wanted, found)
        ratio = safe_divide(wanted, widest, otherwise=1.0)
        result = mean + jnp.clip(centred, -widest, widest) * ratio
    phi = expand(phi, g)
    return restore((1 - phi) * g + phi * result.reshape(g.shape), guided)
