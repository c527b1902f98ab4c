"""What a solver is: one step x_t → x_s from the guided x0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from guidejax._arrays import Array, Tree, is_concrete, safe_sqrt
from guidejax.processes import Process

STATIC = {"static": True}


class Denoised(NamedTuple):
    """What was predicted at (x, t): the guided x0, and by name the branches that a solver needs."""

    x0: Tree
    branches: Mapping[str, Tree]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solver:
    """A step rule with its traced numbers.

    Attributes:
        numbers: Its numbers, traced.
        step: `step(numbers, denoised, process, x, t, s, key, memory) -> (x_s, memory)`, with
            `denoised` predicted at (x, t).
        init: `init(x, t) -> memory` for the first step, t the time that it denoises from.
        prepare: `prepare(numbers, process, x, t, key) -> (x, t)`, the point to denoise from, for
            solvers that add noise before the network looks; None is (x, t) itself.
        correct: `correct(numbers, denoised, process, x, s, memory) -> x_s` for solvers of two
            predictions a step: `denoised` was predicted at the end of the step, with the ω of the
            step that starts there. Not called on a last step that is known to end at s = 0,
            where nothing is left to predict.
        branches: Names of the branches that it needs beside the guided x0, at every step.
    """

    numbers: Mapping[str, Any]
    step: Callable[..., tuple[Tree, Tree]] = dataclasses.field(metadata=STATIC)
    init: Callable[[Tree, Array], Tree] = dataclasses.field(
        default=lambda x, t: (), metadata=STATIC
    )
    prepare: Callable[..., tuple[Tree, Array]] | None = dataclasses.field(
        default=None, metadata=STATIC
    )
    correct: Callable[..., Tree] | None = dataclasses.field(default=None, metadata=STATIC)
    branches: tuple[str, ...] = dataclasses.field(default=(), metadata=STATIC)

    @property
    def stages(self) -> int:
        """Predictions a step."""
        return 1 if self.correct is None else 2


def normal_like(key: Array, x: Tree) -> Tree:
    """ε ~ N(0, I) in the shape and dtype of `x`.

    `key` is one key for the batch, or (batch,) keys, one a sample: then a sample's noise is the
    same however the batch is cut up.
    """
    leaves, treedef = jax.tree.flatten(x)

    def draw(key: Array, shape: tuple[int, ...], index: int, dtype: Any) -> Array:
        # A single array draws from the key itself.
        key = jax.random.fold_in(key, index) if len(leaves) > 1 else key
        return jax.random.normal(key, shape, dtype)

    noise = []
    for index, leaf in enumerate(leaves):
        if key.ndim:
            one = lambda k, shape=leaf.shape[1:], i=index, d=leaf.dtype: draw(k, shape, i, d)  # noqa: E731
            noise.append(jax.vmap(one)(key))
        else:
            noise.append(draw(key, leaf.shape, index, leaf.dtype))
    return jax.tree.unflatten(treedef, noise)


def as_keys(key: Array) -> Array:
    """Typed keys of `key`: `jax.random.key`, or a raw `PRNGKey` (2,), or (batch, 2) of them."""
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def fold_in(key: Array, data: Any) -> Array:
    """`jax.random.fold_in` for one key or (batch,) keys."""
    return (
        jax.vmap(lambda k: jax.random.fold_in(k, data))(key)
        if key.ndim
        else (jax.random.fold_in(key, data))
    )


def toward(process: Process, s: Array, t: Array, keep: Array) -> tuple[Array, Array, Array]:
    """(A, B, C) of x_s = α_s x̂0 + σ_s (keep · ε̂ + √(1 − keep²) ε) = A x_t + B x̂0 + C ε.

    `keep` is the share of the noise ε̂ = (x_t − α_t x̂0)/σ_t that stays: 1 is DDIM.
    """
    sigma_s = process.sigma(s)
    ratio = sigma_s / process.sigma(t)
    a = ratio * keep
    b = process.alpha(s) - process.alpha(t) * a
    return a, b, sigma_s * safe_sqrt(1 - keep**2)


def noise_left(process: Process, s: Array, t: Array) -> Array:
    """(σ_s/α_s) / (σ_t/α_t) in [0, 1): 0 from pure noise and into data."""
    return process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))


def check_range(who: str, name: str, value: Any, lo: float = 0.0, hi: float = 1.0) -> None:
    """Raise `ValueError` where a number that is known now is not within [lo, hi]."""
    if is_concrete(value):
        host = np.asarray(value)
        if not np.all((host >= lo) & (host <= hi)):
            raise ValueError(f"{who} expects {name} in [{lo:g}, {hi:g}], got {value}.")
