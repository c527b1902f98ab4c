"""Random numbers of a run: the same for a sample however the batch is cut up."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

from guidejax._arrays import Array, Tree, tree_map

_DRAWN: contextvars.ContextVar[tuple[Any, Tree] | None] = contextvars.ContextVar(
    "drawn", default=None
)


@contextlib.contextmanager
def drawn_once(key: Array, like: Tree) -> Iterator[None]:
    """Within, `normal_like(key, like)` is one array, however often it is asked for.

    A step that is replayed in several branches would hold the generator in each of them.
    """
    token = _DRAWN.set((key, normal_like(key, like)))
    try:
        yield
    finally:
        _DRAWN.reset(token)


def normal_like(key: Array, x: Tree) -> Tree:
    """ε ~ N(0, I) in the shape and dtype of `x`.

    `key` is one key for the batch, or (batch,) keys, one a sample: then a sample's noise is the
    same however the batch is cut up.
    """
    drawn = _DRAWN.get()
    if drawn is not None and drawn[0] is key:
        form = lambda tree: tree_map(lambda a: (a.shape, a.dtype), tree)  # noqa: E731
        if form(drawn[1]) == form(x):
            return drawn[1]
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


def as_keys(key: Any) -> Array:
    """Typed keys of `key`: `jax.random.key`, or a raw `PRNGKey` (2,), or (batch, 2) of them.

    Raises:
        ValueError: If it is no key.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype is None or dtype != "uint32" or not getattr(key, "shape", ()):
        what = f"{dtype}{key.shape}" if dtype is not None else repr(key)
        raise ValueError(f"expected a random key, such as jax.random.key(0); got {what}.")
    return jax.random.wrap_key_data(key)


def fold_in(key: Array, data: Any) -> Array:
    """`jax.random.fold_in` for one key or (batch,) keys."""
    if key.ndim:
        return jax.vmap(lambda k: jax.random.fold_in(k, data))(key)
    return jax.random.fold_in(key, data)
