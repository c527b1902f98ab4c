"""UniPC, predictor and corrector at one evaluation a step."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from guidejax._arrays import Array, Tree, combine, safe_divide, tree_map
from guidejax.processes.base import bridge
from guidejax.solvers.base import Solver, lengths


class Past(NamedTuple):
    """Of the step before: its start, x̂0 there and one step earlier, and both lengths in λ."""

    t: Array
    x0: Tree
    earlier: Tree
    length: Array
    earlier_length: Array


def _start(x: Tree, t: Array) -> Past:
    zero = tree_map(jnp.zeros_like, x)
    return Past(t, zero, zero, jnp.zeros_like(t), jnp.zeros_like(t))


def _corrector(h: Array, before: Array) -> tuple[Array, Array]:
    """ρ₁/r₁ and ρ₂ of UniC-2 with B(h) = e^−h − 1; UniC-1 with nothing before; 0 for h = 0."""
    live = h != 0
    h = jnp.where(live, h, 1)
    r = -before / h
    phi = jnp.expm1(-h)
    first = -1 / h - 1 / phi
    second = -2 * first / h - 1 / phi
    rho = (first - second) / (1 - r)
    old, new = rho * safe_divide(1.0, r), jnp.where(before == 0, 1 / 2, first - rho)
    return jnp.where(live, old, 0), jnp.where(live, new, 0)


def _step(numbers, denoise, process, x, t, s, key, memory):
    x0 = denoise(x, t)
    # UniC-2, less the prediction that stands in x: what x̂0 at its end adds to the step before.
    old, new = _corrector(memory.length, memory.earlier_length)
    old = old + safe_divide(memory.length, 2 * memory.earlier_length)
    _, b, _ = bridge(process, t, memory.t, 0.0)
    x = combine((1, -b * (old + new), b * old, b * new), x, memory.x0, memory.earlier, x0)
    # UniP-2, which is the step of DPM-Solver++(2M).
    length, lean = lengths(process, s, t, memory.length)
    a, b, _ = bridge(process, s, t, 0.0)
    after = Past(t, x0, memory.x0, length.astype(t.dtype), memory.length)
    return combine((a, b * (1 + lean), -b * lean), x, x0, memory.x0), after


def unipc() -> Solver:
    """UniPC-2 in x̂0: a predictor and a corrector that share their one evaluation a step.

    The x̂0 that is evaluated for the next step also corrects the step that led there (Zhao et al.
    2302.04867, multistep UniPC, in its form for x̂0, B(h) = e^−h − 1; diffusers' "bh2" of order 2).
    The predictor is the step of `dpmpp_2m`; the corrector makes it third order. The step into the
    last time isn't corrected, nor is a step from pure noise (α = 0), where λ is infinite. Where
    guidance turns on or off it begins anew, and the step that leads there isn't corrected either.

    Example:
        >>> unipc().init(jnp.ones((1, 2)), jnp.array(1.0)).x0.tolist()
        [[0.0, 0.0]]
    """
    return Solver({}, _step, init=_start, multistep=True)
