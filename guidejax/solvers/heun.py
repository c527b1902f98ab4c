"""Heun's method."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from guidejax._arrays import Array, Tree, combine, safe_divide, tree_map
from guidejax.processes import Process
from guidejax.solvers.base import Denoised, Solver, toward

# The share of x̂0 in x, of which the slope d = (x − size · x̂0)/σ is made.
Size = Callable[[Process, Array], Array]


class Start(NamedTuple):
    """What is left of a step's first prediction: the slope d there, and half the step's length."""

    slope: Tree
    half: Array


def begin(x: Tree, t: Array) -> Start:
    """What a run begins with."""
    return Start(tree_map(jnp.zeros_like, x), jnp.zeros_like(t))


def predict(
    size: Size, denoised: Denoised, process: Process, x: Tree, t: Array, s: Array, length: Array
) -> tuple[Tree, Start]:
    """DDIM's step; the slope d at its start."""
    a, b, _ = toward(process, s, t, jnp.ones(()))
    here = 1 / process.sigma(t)
    slope = combine((here, -here * size(process, t)), x, denoised.x0)
    # Where s = 0 is only known at run time, the slope there is 0/0 and DDIM's step stands.
    half = jnp.where(process.sigma(s) > 0, length / 2, 0)
    return combine((a, b), x, denoised.x0), Start(slope, half)


def correct(
    size: Size, numbers: Any, denoised: Denoised, process: Process, x: Tree, s: Array, start: Start
) -> Tree:
    """x + length/2 · (d' − d) with the slope at both ends of the step."""
    there = safe_divide(1.0, process.sigma(s))
    slope = combine((there, -there * size(process, s)), x, denoised.x0)
    return combine((1, start.half, -start.half), x, slope, start.slope)


def _size(process, t):
    return process.alpha(t) + process.sigma(t)


def _step(numbers, denoised, process, x, t, s, key, memory):
    # n_s (τ_s − τ_t) with n = α + σ and τ = σ/n.
    length = process.sigma(s) - _size(process, s) * process.sigma(t) / _size(process, t)
    return predict(_size, denoised, process, x, t, s, length)


_correct = functools.partial(correct, _size)


def heun() -> Solver:
    """Heun's method: the mean of the slopes at both ends of the step, two predictions a step.

    On dz/dτ = ε̂ − x̂0, the probability-flow ODE in z = x/(α + σ) and τ = σ/(α + σ): every process
    is rectified flow in these coordinates, and they are regular from pure noise (α = 0) on. The
    second prediction takes the ω of the next step, the one that denoises from there. Second order;
    exact where x̂0 and ε̂ are constant. A last step into s = 0 is DDIM's, with one prediction.

    Example:
        >>> heun().stages
        2
    """
    return Solver({}, _step, begin, correct=_correct)
