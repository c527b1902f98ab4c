"""Per-sample array helpers shared by every room: broadcasting, reductions, checks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# A time grid: NumPy where it is known before tracing, so that Python may look at it under jit.
Times = jax.Array | np.ndarray
Tree = Any


def accumulator(dtype: Any) -> Any:
    """The dtype that sums over `dtype` run in: float32 at least, float64 kept."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(x: Array) -> Array:
    """`x` in the dtype its reductions run in."""
    return x.astype(accumulator(x.dtype))


def expand(value: Array | float, x: Array) -> Array:
    """Give a scalar or (batch,) `value` trailing axes so that it broadcasts against `x`."""
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def combine(coefficients: tuple[Array | float, ...], *terms: Tree) -> Tree:
    """Σ coefficient · term, summed in float32 at least, in the dtype of the first term."""

    def one(*leaves):
        wide = accumulator(leaves[0].dtype)
        products = [
            expand(c, leaf).astype(wide) * leaf.astype(wide)
            for c, leaf in zip(coefficients, leaves, strict=True)
        ]
        return sum(products[1:], products[0]).astype(leaves[0].dtype)

    return tree_map(one, *terms)


def dot(a: Array, b: Array) -> Array:
    """⟨a, b⟩ of each sample over all non-batch axes, shape (batch,)."""
    return jnp.sum(upcast(a) * upcast(b), axis=tuple(range(1, a.ndim)))


def square_norm(a: Array) -> Array:
    """‖a‖² of each sample, shape (batch,)."""
    return dot(a, a)


def norm(a: Array) -> Array:
    """‖a‖ of each sample, shape (batch,); its gradient at a = 0 is 0, not NaN."""
    return safe_sqrt(square_norm(a))


def safe_sqrt(x: Array) -> Array:
    """√x for x ≥ 0, with gradient 0 where x = 0; NaN of NaN."""
    live = jnp.logical_not(x <= 0)
    return jnp.where(live, jnp.sqrt(jnp.where(live, x, 1)), 0)


def safe_divide(a: Array | float, b: Array, otherwise: float = 0.0) -> Array:
    """a / b, and `otherwise` (with gradient 0) where b = 0, unless a is NaN."""
    nonzero = (b != 0) | jnp.isnan(a)
    return jnp.where(nonzero, a / jnp.where(nonzero, b, 1), otherwise)


def quantile(x: Array, q: Array | float, axis: int = 1) -> Array:
    """The q-quantile along `axis` with linear interpolation; `q` is a scalar or (batch,)."""
    n = x.shape[axis]
    ranks = jnp.arange(n, dtype=accumulator(x.dtype)).reshape((n,) + (1,) * (x.ndim - 1 - axis))
    rank = expand(jnp.clip(q, 0, 1), x) * (n - 1)
    # A hat over the ranks and not a lookup: q may be traced, per sample, and differentiated.
    hat = jnp.maximum(1 - jnp.abs(ranks - rank), 0)
    return jnp.sum(hat * jnp.sort(upcast(x), axis=axis), axis=axis)


def is_concrete(*values: Any) -> bool:
    """Whether every leaf of `values` is known now, so that Python may look at it."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


@contextlib.contextmanager
def concretely() -> Iterator[None]:
    """Within, what is known now is evaluated now, also under jit and in the body of a shard_map."""
    nowhere = jax.sharding.AbstractMesh((), ())
    with jax.ensure_compile_time_eval(), jax.sharding.use_abstract_mesh(nowhere):
        yield


def same_structure(a: Tree, b: Tree) -> bool:
    """Whether two pytrees have the same containers and leaves in the same places."""
    return jax.tree.structure(a) == jax.tree.structure(b)  # type: ignore[operator]  # untyped stub


def shard_like(value: Array, x: Array) -> Array:
    """`value` with its batch split as that of `x` on a mesh with explicit axes; else as it is."""
    sharding = jax.typeof(x).sharding
    if not len(sharding.spec) or sharding.spec[0] is None:
        return value
    spec = jax.sharding.PartitionSpec(sharding.spec[0])
    return jax.reshard(value, jax.sharding.NamedSharding(sharding.mesh, spec))


def check_finite(what: str, value: Any) -> None:
    """Raise `ValueError` if a concrete `value` holds a NaN or an infinity."""
    for leaf in jax.tree.leaves(value):
        if is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True):
            array = np.asarray(leaf)
            if not np.issubdtype(array.dtype, np.number):
                array = np.asarray(leaf, np.float32)  # bfloat16 is no np.number
            if not np.all(np.isfinite(array)):
                raise ValueError(f"{what} holds NaN or infinite values; expected finite numbers.")


def check_not_nan(what: str, value: Any) -> None:
    """Raise `ValueError` if a concrete `value` holds a NaN; infinities may stand for "no limit"."""
    for leaf in jax.tree.leaves(value):
        known = is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True)
        if known and np.any(np.isnan(np.asarray(leaf, np.float32))):
            raise ValueError(f"{what} is NaN or holds one; expected numbers.")


def tree_map(fn: Callable[..., Any], *trees: Tree) -> Tree:
    """`jax.tree.map`: a state may be one array or several (image and text latents)."""
    return jax.tree.map(fn, *trees)


def batch_size(x: Tree) -> int:
    """The common leading axis of every leaf of `x`."""
    leaves = jax.tree.leaves(x)
    if not leaves or any(jnp.ndim(leaf) == 0 for leaf in leaves):
        raise ValueError("expected arrays with a leading batch axis, got a scalar or nothing.")
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) != 1:
        raise ValueError(f"expected one batch size on every leaf, got {sorted(sizes)}.")
    return sizes.pop()
