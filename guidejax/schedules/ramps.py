"""Schedules that are a smooth curve of how far the denoising is.

Progress u is 1 − t (unit="t"), or i/(N − 1) of the grid's N steps (unit="step"), as the papers'
programs have it on their uniform grids; on other grids the two differ. Means are over u.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import betaln

from guidejax._arrays import Array
from guidejax.schedules.base import check_unit, curve, progress, require, scaled, schedule
from guidejax.weights.base import Step, Weight, as_weight

WANG = "Wang et al. 2404.13040"


def _linear(step: Step, unit: str) -> Array:
    return 2 * progress(step, unit)


def _inv_linear(step: Step, unit: str) -> Array:
    return 2 * (1 - progress(step, unit))


def _cosine(step: Step, unit: str) -> Array:
    return 2 * jnp.sin(jnp.pi / 2 * progress(step, unit)) ** 2


def _sine(step: Step, unit: str) -> Array:
    return 2 * jnp.cos(jnp.pi / 2 * progress(step, unit)) ** 2


def _v(step: Step, unit: str) -> Array:
    return 2 * jnp.abs(1 - 2 * progress(step, unit))


def _lambda(step: Step, unit: str) -> Array:
    return 2 - _v(step, unit)


def _powered(step: Step, power: Array, unit: str) -> Array:
    # The gradient of u^p in p at u = 0 is 0, not 0 · log 0.
    u = progress(step, unit)
    risen = jnp.where(u > 0, jnp.where(u > 0, u, 1) ** power, 0)
    return jnp.sin(jnp.pi / 2 * risen) ** 2  # (1 − cos)/2 that doesn't cancel where u is small


def _beta(step: Step, a: Array, b: Array, unit: str) -> Array:
    u = progress(step, unit)
    least = jnp.finfo(u.dtype).tiny
    log_u, log_v = (jnp.log(jnp.maximum(x, least)) for x in (u, 1 - u))
    return jnp.exp((a - 1) * log_u + (b - 1) * log_v - betaln(a, b))


def _exponential(step: Step, rate: Array) -> Array:
    return jnp.exp(rate * (1 - jnp.asarray(step.t)))


def _ramp_up(step: Step, full: Array) -> Array:
    return jnp.minimum(1, (1 - jnp.asarray(step.t)) / (1 - full))


def _linear_sigma(step: Step, start: Array, end: Array, sigma_max: Array, sigma_min: Array) -> Any:
    sigma = jnp.clip(step.position("sigma"), sigma_min, sigma_max)  # first: it may be infinite
    return start + (end - start) * (sigma_max - sigma) / (sigma_max - sigma_min)


def _ramp(fn: Any, mean: Any, unit: str, on: str) -> Weight:
    return scaled(mean, curve(fn, options={"unit": check_unit(unit)}), on)


def _clamped(fn: Any, mean: Any, floor: Any, unit: str, on: str) -> Weight:
    return curve(_larger, {"ramp": _ramp(fn, mean, unit, on), "floor": as_weight(floor)})


def _larger(step: Step, ramp: Array, floor: Array) -> Array:
    return jnp.maximum(floor, ramp)


@schedule(keeps="mean", source=WANG, example={"mean": 2.0})
def linear_ramp(mean: Any, unit: str = "t", on: str = "excess") -> Weight:
    """ω = 2 · mean · u: rising while denoising.

    Wang et al. 2404.13040 ("linear"): the best of their simple ramps. Their pseudo-code has it on
    ω, their figures read as if on ω + 1. Acts on ω, or on ω + 1 with on="total". Keeps the mean;
    the peak is 2 · mean, at u = 1.

    Args:
        mean: Mean of ω over u: a number, (batch,) numbers or any `Weight`.
        unit: What u is: "t", 1 − t, or "step", i/(N − 1).
        on: "excess", the ramp is on ω; "total", on ω + 1, which starts at the unconditional model,
            ω = −1, and ends at 2 · mean + 1.

    Example:
        >>> times = jnp.linspace(1, 0, 5)
        >>> linear_ramp(2.0).table(times).tolist()
        [0.0, 1.0, 2.0, 3.0]
        >>> linear_ramp(2.0, on="total").table(times).tolist()
        [-1.0, 0.5, 2.0, 3.5]
    """
    return _ramp(_linear, mean, unit, on)


@schedule(keeps="mean", source=WANG, example={"mean": 2.0})
def inv_linear(mean: Any, unit: str = "t", on: str = "excess") -> Weight:
    """ω = 2 · mean · (1 − u): falling while denoising.

    Wang et al. 2404.13040 ("inv-linear"), worse than a constant there. Keeps the mean; the peak is
    2 · mean, at u = 0. Acts on ω, or on ω + 1 with on="total". Arguments as `linear_ramp`'s.

    Example:
        >>> inv_linear(2.0).table(jnp.linspace(1, 0, 5)).tolist()
        [4.0, 3.0, 2.0, 1.0]
    """
    return _ramp(_inv_linear, mean, unit, on)


@schedule(keeps="mean", source=WANG, example={"mean": 2.0})
def cosine_ramp(mean: Any, unit: str = "t", on: str = "excess") -> Weight:
    """ω = mean · (1 − cos πu): rising while denoising, flat at both ends.

    Wang et al. 2404.13040 ("cosine"). Keeps the mean; the peak is 2 · mean, at u = 1. Acts on ω,
    or on ω + 1 with on="total". Arguments as `linear_ramp`'s.

    Example:
        >>> table = cosine_ramp(2.0).table(jnp.linspace(1, 0, 4))
        >>> [round(float(omega), 4) for omega in table]  # cos π/3 = 1/2, cos 2π/3 = −1/2
        [0.0, 1.0, 3.0]
    """
    return _ramp(_cosine, mean, unit, on)


@schedule(keeps="mean", source=WANG, example={"mean": 2.0})
def sine(mean: Any, unit: str = "t", on: str = "excess") -> Weight:
    """ω = mean · (1 + cos πu): falling while denoising, flat at both ends.

    Wang et al. 2404.13040 ("sine", the mirror image of their cosine), worse than a constant there.
    Keeps the mean; the peak is 2 · mean, at u = 0. Acts on ω, or on ω + 1 with on="total".
    Arguments as `linear_ramp`'s.

    Example:
        >>> table = sine(2.0).table(jnp.linspace(1, 0, 4))
        >>> [round(float(omega), 4) for omega in table]
        [4.0, 3.0, 1.0]
    """
    return _ramp(_sine, mean, unit, on)


@schedule(keeps="mean", source=WANG, example={"mean": 2.0})
def v_shape(mean: Any, unit: str = "t", on: str = "excess") -> Weight:
    """ω = 2 · mean · |1 − 2u|: high at both ends, 0 half way.

    Wang et al. 2404.13040 ("V-shape"). Keeps the mean; the peak is 2 · mean. Acts on ω, or on
    ω + 1 with on="total". Arguments as `linear_ramp`'s.

    Example:
        >>> v_shape(2.0).table(jnp.linspace(1, 0, 5)).tolist()
        [4.0, 2.0, 0.0, 2.0]
    """
    return _ramp(_v, mean, unit, on)


@schedule(keeps="mean", source=WANG, example={"mean": 2.0})
def lambda_shape(mean: Any, unit: str = "t", on: str = "excess") -> Weight:
    """ω = 2 · mean · (1 − |1 − 2u|): 0 at both ends, high half way.

    Wang et al. 2404.13040 ("Λ-shape"). Keeps the mean; the peak is 2 · mean, at u = 1/2. Acts on
    ω, or on ω + 1 with on="total". `triangular` is the stage-wise paper's. Arguments as
    `linear_ramp`'s.

    Example:
        >>> lambda_shape(2.0).table(jnp.linspace(1, 0, 5)).tolist()
        [0.0, 2.0, 4.0, 2.0]
    """
    return _ramp(_lambda, mean, unit, on)


@schedule(keeps=None, source=WANG, example={"mean": 2.0, "floor": 0.5})
def clamp_linear(mean: Any, floor: Any = 0.0, unit: str = "t", on: str = "excess") -> Weight:
    """ω = max(floor, 2 · mean · u): rising while denoising, never under the floor.

    Wang et al. 2404.13040 ("clamp-linear"), their recommendation, whose pseudo-code has the ramp
    on ω. Keeps neither: the unclamped ramp has mean `mean` over u and peak 2 · mean at u = 1, and
    the clamp adds to the mean. Acts on ω; with on="total" the ramp is on ω + 1, and the floor is
    still an ω.

    Args:
        mean: Mean of the ramp: a number, (batch,) numbers or any `Weight`.
        floor: Least ω (the paper's c: 2 for SD1.5, 4 for SDXL).
        unit: What u is: "t", 1 − t, or "step", i/(N − 1).
        on: "excess" or "total".

    Example:
        >>> weight = clamp_linear(2.0, floor=1.0)
        >>> float(weight(s=0.8, t=0.9)), float(weight(s=0.4, t=0.5))
        (1.0, 2.0)
    """
    return _clamped(_linear, mean, floor, unit, on)


@schedule(keeps=None, source=WANG, example={"mean": 2.0, "floor": 0.5})
def clamp_cosine(mean: Any, floor: Any = 0.0, unit: str = "t", on: str = "excess") -> Weight:
    """ω = max(floor, mean · (1 − cos πu)): rising while denoising, never under the floor.

    Wang et al. 2404.13040 ("clamp-cosine"). Keeps neither: the unclamped ramp has mean `mean` and
    peak 2 · mean, and the clamp adds to the mean. Acts on ω, or on ω + 1 with on="total".
    Arguments as `clamp_linear`'s.

    Example:
        >>> weight = clamp_cosine(2.0, floor=1.0)
        >>> float(weight(s=0.8, t=0.9)), round(float(weight(s=0.4, t=0.5)), 4)
        (1.0, 2.0)
    """
    return _clamped(_cosine, mean, floor, unit, on)


@schedule(keeps="peak", source=WANG + " (pcs); DiT, MDT", example={"value": 2.0, "power": 4.0})
def parabolic_cosine(value: Any, power: Any = 4.0, unit: str = "t", on: str = "excess") -> Weight:
    """ω = value · (1 − cos(π u^power))/2, the "pcs" of Wang et al. 2404.13040 and of MDT.

    Keeps the peak, value at u = 1; the mean is value/2 for power 1, .178 · value for power 4. Acts
    on ω, as MDT's program does, or on ω + 1 with on="total".

    Args:
        value: ω at the end: a number, (batch,) numbers or any `Weight`.
        power: How late it rises; positive, 1 to 4 in the papers.
        unit: What u is: "t", 1 − t, or "step", i/(N − 1).
        on: "excess" or "total".

    Raises:
        ValueError: If `power` is not positive.

    Example:
        >>> weight = parabolic_cosine(4.0, power=2.0)
        >>> round(float(weight(s=0.0, t=0.5)), 4)  # 2 (1 − cos π/4)
        0.5858
    """
    require("parabolic_cosine", "power > 0", lambda p: p > 0, power)
    shape = curve(_powered, {"power": power}, {"unit": check_unit(unit)})
    return scaled(value, shape, on)


@schedule(keeps="peak", source="CogVideoX, as intended", example={"value": 2.0, "power": 5.0})
def power_cosine(value: Any, power: Any = 5.0, unit: str = "step", on: str = "excess") -> Weight:
    """ω = value · (1 − cos(π τ^power))/2 by step, τ = i/(N − 1): CogVideoX's dynamic guidance.

    Its program has 1 + value · (1 − cos(...))/2 as the scale ω + 1, and a raw t up to 999 where
    a step's index belongs; this is what it means. Keeps the peak, value at the last step. Acts on
    ω, or on ω + 1 with on="total". The same curve as `parabolic_cosine`, whose arguments it takes.

    Example:
        >>> table = power_cosine(2.0, power=1.0).table(jnp.linspace(1, 0, 4))
        >>> [round(float(omega), 4) for omega in table]
        [0.0, 1.0, 2.0]
    """
    require("power_cosine", "power > 0", lambda p: p > 0, power)
    shape = curve(_powered, {"power": power}, {"unit": check_unit(unit)})
    return scaled(value, shape, on)


@schedule(
    keeps="mean",
    source="Malarz et al. 2502.10574 (β-CFG)",
    example={"mean": 2.0, "a": 2.0, "b": 3.0},
)
def beta_curve(
    mean: Any, a: Any = 2.0, b: Any = 2.0, unit: str = "t", on: str = "excess"
) -> Weight:
    """ω = mean · Beta(u; a, b), the density u^(a−1) (1 − u)^(b−1) / B(a, b).

    β-CFG's schedule (Malarz et al. 2502.10574; a = b = 2 is 6u(1 − u), with peak 1.5 · mean). The
    paper has it on the scale, so that both ends are unconditional, and divides the difference by
    a power of its norm, which is `beta_cfg`. Acts on ω, or on ω + 1 with on="total". Keeps the
    mean.

    Args:
        mean: Mean of ω over u: a number, (batch,) numbers or any `Weight`.
        a: Larger is later; at least 1.
        b: Larger is earlier; at least 1.
        unit: What u is: "t", 1 − t, or "step", i/(N − 1).
        on: "excess" or "total".

    Raises:
        ValueError: If a or b is less than 1, where the density has no bound.

    Example:
        >>> table = beta_curve(2.0).table(jnp.linspace(1, 0, 3))
        >>> [round(float(omega), 4) for omega in table]
        [0.0, 3.0]
    """
    require("beta_curve", "a ≥ 1 and b ≥ 1", lambda a, b: (a >= 1) & (b >= 1), a, b)
    return scaled(mean, curve(_beta, {"a": a, "b": b}, {"unit": check_unit(unit)}), on)


@schedule(
    keeps=None,
    source="Gao et al. 2603.08155 (C²FG)",
    example={"start": 2.0, "rate": 0.7},
)
def c2fg(start: Any, rate: Any = 0.6931472, on: str = "excess") -> Weight:
    """ω = start · exp(rate · (1 − t)): C²FG, growing as the two scores part.

    Gao et al. 2603.08155; printed also as ω_max e^(−rate · t), with ω_max = start · e^rate. Keeps
    neither: `start` is ω at t = 1, the peak is start · e^rate at t = 0. Acts on ω; the paper's
    weight is the scale, on="total".

    Args:
        start: ω at t = 1: a number, (batch,) numbers or any `Weight`.
        rate: Growth; in the paper log 2 for DiT, 1 for SiT, 0.2 for SD1.5 and SD3.5.
        on: "excess" or "total".

    Raises:
        ValueError: If `rate` is not finite.

    Example:
        >>> weight = c2fg(2.0)
        >>> round(float(weight(s=0.5, t=1.0)), 4), round(float(weight(s=0.0, t=1e-6)), 4)
        (2.0, 4.0)
    """
    require("c2fg", "a finite rate", lambda r: abs(r) < float("inf"), rate)
    return scaled(start, curve(_exponential, {"rate": rate}), on)


@schedule(keeps="peak", source="2507.08965", example={"value": 2.0, "full": 0.5})
def ramp_up(value: Any, full: Any = 0.5, on: str = "excess") -> Weight:
    """ω = min(value, value · (1 − t)/(1 − full)): a linear rise, whole from t = full on.

    Ramp-up of 2507.08965, there for masked diffusion. Keeps the peak. Acts on ω, or on ω + 1 with
    on="total".

    Args:
        value: ω from `full` on: a number, (batch,) numbers or any `Weight`.
        full: Time at which the ramp ends, in [0, 1).
        on: "excess" or "total".

    Raises:
        ValueError: If `full` is not in [0, 1).

    Example:
        >>> ramp_up(4.0).table(jnp.linspace(1, 0, 5)).tolist()
        [0.0, 2.0, 4.0, 4.0]
    """
    require("ramp_up", "full in [0, 1)", lambda f: (f >= 0) & (f < 1), full)
    return scaled(value, curve(_ramp_up, {"full": full}), on)


@schedule(
    keeps=None,
    source="2501.18865 (REG), with EDM2",
    example={"start": 0.5, "end": 2.0, "sigma_max": 4.0, "sigma_min": 0.1},
)
def linear_sigma(start: Any, end: Any, sigma_max: Any, sigma_min: Any = 0.0) -> Weight:
    """ω linear in σ/α: `start` at sigma_max and above, `end` at sigma_min and below.

    ω = start + (end − start)(σ_max − σ)/(σ_max − σ_min) (REG, 2501.18865, for EDM2). Acts on ω;
    keeps neither mean nor peak: it is given by its ends.

    Args:
        start: ω at the noisy end: a number, (batch,) numbers or any `Weight`.
        end: ω at the clean end.
        sigma_max: σ/α of the noisy end; EDM's is 80.
        sigma_min: σ/α of the clean end.

    Raises:
        ValueError: If not 0 ≤ sigma_min < sigma_max.

    Example:
        >>> from guidejax.processes import edm
        >>> weight = linear_sigma(0.0, 2.0, sigma_max=80.0)
        >>> round(float(weight(s=0.0, t=0.5, process=edm(rho=1.0))), 4)
        1.0
    """
    ordered = lambda low, high: (low >= 0) & (low < high)  # noqa: E731
    require("linear_sigma", "0 ≤ sigma_min < sigma_max", ordered, sigma_min, sigma_max)
    numbers = {"start": start, "end": end, "sigma_max": sigma_max, "sigma_min": sigma_min}
    return curve(_linear_sigma, numbers)
