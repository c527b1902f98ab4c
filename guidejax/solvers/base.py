"""What a solver is: one step x_t → x_s from the guided x0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from guidejax._arrays import Array, Tree, accumulator, expand, tree_map


class Denoised(NamedTuple):
    """What was predicted at (x, t): the guided x0, and each branch by name."""

    x0: Tree
    branches: Mapping[str, Tree]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solver:
    """A step rule with its traced numbers.

    Attributes:
        numbers: Its numbers, traced.
        step: `step(numbers, denoised, again, process, x, t, s, key, state) -> (x_s, state)`.
            `denoised` was predicted at (x, t); `again(x, s)` predicts once more, at the end of
            the step, for two-stage solvers.
        init: `init(x) -> state`.
        stages: Predictions a step, 1 or 2.
    """

    numbers: Mapping[str, Any]
    step: Callable[..., tuple[Tree, Tree]] = dataclasses.field(metadata={"static": True})
    init: Callable[[Tree], Tree] = dataclasses.field(
        default=lambda x: (), metadata={"static": True}
    )
    stages: int = dataclasses.field(default=1, metadata={"static": True})


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


def combine(coefficients: tuple[Array, ...], *terms: Tree) -> Tree:
    """Σ coefficient · term in float32 at least, in the dtype of the first term."""

    def one(*leaves):
        wide = accumulator(leaves[0].dtype)
        total = sum(
            expand(c, leaf).astype(wide) * leaf.astype(wide)
            for c, leaf in zip(coefficients, leaves, strict=True)
        )
        return total.astype(leaves[0].dtype)

    return tree_map(one, *terms)
