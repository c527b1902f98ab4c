"""What a solver is: one step x_t → x_s, calling the denoiser where and as often as it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, combine, is_concrete, safe_divide, safe_sqrt
from guidejax.processes.base import Process

STATIC = {"static": True}


class Evaluate(Protocol):
    """The guided denoiser, as a solver's step calls it."""

    def __call__(self, x: Tree, t: Array) -> Tree:
        """The guided x̂0 at (x, t)."""

    def with_branches(self, x: Tree, t: Array) -> tuple[Tree, Mapping[str, Tree]]:
        """The same, and x̂0 of each of the solver's `branches` by name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solver:
    """A step rule with its traced numbers.

    Attributes:
        numbers: Its numbers, traced.
        step: `step(numbers, denoise, process, x, t, s, key, memory) -> (x_s, memory)`, a function
            of the module, with `denoise(x, t) -> x0` an `Evaluate`. How often it calls it, and
            where, may depend on s being the end of the run (`at_data`), and on nothing else.
        init: `init(x, t) -> memory` for the first step, t the time that it denoises from.
        branches: Names of the branches that it needs beside the guided x0, at every step.
        both_ways: Whether the times may also rise, from data to noise (inversion).
        multistep: Whether its memory is of predictions that it extrapolates from. It then begins
            anew, by `init`, for each sample at a step where its ω turns on or off: what lies before
            is of another field, and to go on from it would cost the method its order.
    """

    numbers: Mapping[str, Any]
    step: Callable[..., tuple[Tree, Tree]] = dataclasses.field(metadata=STATIC)
    init: Callable[[Tree, Array], Tree] = dataclasses.field(
        default=lambda x, t: (), metadata=STATIC
    )
    branches: tuple[str, ...] = dataclasses.field(default=(), metadata=STATIC)
    both_ways: bool = dataclasses.field(default=False, metadata=STATIC)
    multistep: bool = dataclasses.field(default=False, metadata=STATIC)


def at_data(s: Any) -> bool:
    """Whether a step is known to end at s = 0, where there is nothing left to evaluate.

    Example:
        >>> at_data(0.0), at_data(0.25)
        (True, False)
    """
    return is_concrete(s) and not np.any(np.asarray(s))


def slope(process: Process, x: Tree, x0: Tree, t: Array) -> Tree:
    """dx/dt = α̇ x̂0 + σ̇ ε̂ of the probability-flow ODE (Song et al. 2011.13456, Eq. (13)).

    ε̂ = (x − α x̂0)/σ; where σ = 0 it is taken as 0, which is its limit on smooth data.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> slope(rectified_flow(), jnp.array([[1.0]]), jnp.array([[3.0]]), 0.5).tolist()
        [[-4.0]]
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_dot, sigma_dot = process.derivatives(t)
    growth = jnp.where(sigma > 0, sigma_dot / jnp.where(sigma > 0, sigma, 1), 0)
    return combine((alpha_dot - alpha * growth, growth), x0, x)


def _size(process: Process, t: Array) -> Array:
    return process.alpha(t) + process.sigma(t)


def straight_slope(process: Process, x: Tree, x0: Tree, t: Array) -> Tree:
    """dz/dτ = ε̂ − x̂0 = (x − (α + σ) x̂0)/σ in z = x/(α + σ) and τ = σ/(α + σ); 0 where σ = 0.

    In these coordinates every process is rectified flow, and regular from pure noise (α = 0) on.
    """
    here = safe_divide(1.0, process.sigma(t))
    return combine((here, -here * _size(process, t)), x, x0)


def along(process: Process, x: Tree, t: Array, s: Array, direction: Tree) -> Tree:
    """x_s from x_t where dz/dτ is `direction`: z_s = z_t + (τ_s − τ_t) dz/dτ."""
    shrink = _size(process, s) / _size(process, t)
    return combine((shrink, process.sigma(s) - shrink * process.sigma(t)), x, direction)


def within(process: Process, t: Array, s: Array, share: Array | float) -> Array:
    """The time at which τ = σ/(α + σ) has gone this share of its way from t to s."""
    here, there = (process.sigma(time) / _size(process, time) for time in (t, s))
    tau = here + share * (there - here)
    return process.inverse_log_snr(2 * (jnp.log1p(-tau) - jnp.log(tau)))


def toward(process: Process, s: Array, t: Array, keep: Array | float) -> tuple[Array, Array, Array]:
    """(A, B, C) of x_s = α_s x̂0 + σ_s (keep · ε̂ + √(1 − keep²) ε) = A x_t + B x̂0 + C ε.

    `keep` is the share of the noise ε̂ = (x_t − α_t x̂0)/σ_t that stays: 1 is DDIM.
    """
    sigma_s = process.sigma(s)
    ratio = sigma_s / process.sigma(t)
    a = ratio * keep
    b = process.alpha(s) - process.alpha(t) * a
    return a, b, sigma_s * safe_sqrt(jnp.asarray(1 - keep**2))


def noise_left(process: Process, s: Array, t: Array) -> Array:
    """(σ_s/α_s) / (σ_t/α_t) in [0, 1): 0 from pure noise and into data."""
    return process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))


def lengths(process: Process, s: Array, t: Array, before: Array) -> tuple[Array, Array]:
    """(h, h/2h') of a step of length h = λ_s − λ_t in λ = log(α/σ), after one of length h'.

    From pure noise and into data h is infinite; it is 0 there, and so is a ratio of no use.
    """
    left = noise_left(process, s, t)
    h = jnp.where(left > 0, -jnp.log(jnp.where(left > 0, left, 1)), 0)
    return h, safe_divide(h, 2 * before)


def check_range(who: str, name: str, value: Any, lo: float = 0.0, hi: float = 1.0) -> None:
    """Raise `ValueError` where a number that is known now is not within [lo, hi]."""
    if is_concrete(value):
        host = np.asarray(value)
        if host.dtype.kind in "OSU":
            raise ValueError(f"{who} expects {name} to be a number, got {value!r}.")
        if not np.all((host >= lo) & (host <= hi)):
            raise ValueError(f"{who} expects {name} in [{lo:g}, {hi:g}], got {value}.")
