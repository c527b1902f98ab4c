"""Pairwise squared distances, their memory, and their gradient: what the two-sample metrics use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from guidejax._arrays import is_concrete, magnitude
from guidejax.metrics._checks import positive_int

Array = jax.Array
Method = Literal["direct", "gram"]
METHODS = ("direct", "gram")


def check_method(method: str) -> None:
    """Raise unless `method` names a way to compute squared distances."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {METHODS}.")


def check_options(method: str, chunk: int | None) -> None:
    """Raise unless `method` and `chunk` are such as `row_means` takes."""
    check_method(method)
    if chunk is not None:
        positive_int("chunk", chunk)


def check_beta(beta: Any) -> None:
    """Raise unless `beta` is a scalar in (0, 2]."""
    if jnp.ndim(beta) != 0:
        raise ValueError(f"beta has shape {jnp.shape(beta)}; expected a scalar.")
    if is_concrete(beta) and not 0 < float(beta) <= 2:
        raise ValueError(f"beta is {float(beta)}; expected 0 < beta <= 2.")


def matmul(a: Array, b: Array) -> Array:
    """Matrix product a b without the bfloat16 passes of a TPU or the TF32 of a GPU."""
    return jnp.matmul(a, b, precision="highest")


def transpose(a: Array) -> Array:
    """The last two axes swapped."""
    return jnp.swapaxes(a, -1, -2)


def _center(x: Array, y: Array) -> tuple[Array, Array]:
    # Distances don't move with the origin; products of large offsets lose the digits of small ones.
    # One NaN sample leaves the others' alone.
    known = jax.lax.stop_gradient(jnp.where(jnp.isfinite(y), y, 0))
    center = jnp.mean(known, axis=-2, keepdims=True)
    return x - center, y - center


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _square_distances(x: Array, y: Array, method: str) -> Array:
    if method == "direct":
        # XLA fuses the difference into the sum: no (n, m, d) array exists. The barrier keeps it
        # from writing one to share x, broadcast, among calls (the cross term and the self term).
        x, y = jax.lax.optimization_barrier((x, y))
        return jnp.sum(jnp.square(x[..., :, None, :] - y[..., None, :, :]), axis=-1)
    x, y = _center(x, y)
    xx = jnp.sum(x * x, axis=-1)[..., :, None]
    yy = jnp.sum(y * y, axis=-1)[..., None, :]
    square = xx + yy - 2 * matmul(x, transpose(y))
    # Below the rounding of the three terms a difference is noise, whose power's slope would be too.
    return jnp.where(square <= 32 * jnp.finfo(x.dtype).eps * (xx + yy), 0, square)


@_square_distances.defjvp
def _square_distances_jvp(method: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # 2⟨xᵢ - yⱼ, dxᵢ - dyⱼ⟩ multiplied out: its transpose is two matrix products, where that of the
    # direct form writes the (n, m, d) array that the forward pass never does (and, on a CPU, takes
    # 40 times as long).
    out = _square_distances(*primals, method)
    (x, y), (dx, dy) = _center(*primals), tangents
    own = jnp.sum(x * dx, axis=-1)[..., :, None] + jnp.sum(y * dy, axis=-1)[..., None, :]
    cross = matmul(x, transpose(dy)) + matmul(dx, transpose(y))
    return out, 2 * (own - cross)


@partial(jax.jit, static_argnames="method")
def square_distances(x: Array, y: Array, method: str = "direct") -> Array:
    """‖xᵢ - yⱼ‖² for x (..., n, d), y (..., m, d): (..., n, m)."""
    batch = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x = jnp.broadcast_to(x, batch + x.shape[-2:])
    y = jnp.broadcast_to(y, batch + y.shape[-2:])
    return _square_distances(x, y, method)


def power(square: Array, beta: Any) -> Array:
    """square^(beta/2), with gradient 0 where square = 0."""
    # The inner where keeps the power's infinite slope at 0 out of the gradient's 0 · ∞.
    apart = jnp.logical_not(square < jnp.finfo(square.dtype).tiny)
    return jnp.where(apart, jnp.where(apart, square, 1) ** (beta / 2), 0)


def at_unit_scale(fn: Callable[..., Array], beta: Any, *sets: Array) -> Array:
    """fn(*sets) of sets (..., n, d), for an fn homogeneous of degree `beta`.

    It is called on sets of magnitude 1: a distance that has its place in the dtype comes out,
    though its square be out of range.
    """
    size = magnitude(*sets, axis=(-2, -1))
    value = fn(*(a / size for a in sets))
    root = jnp.sqrt(size[..., 0, 0]) ** jnp.asarray(beta, size.dtype)
    root = root.reshape(root.shape + (1,) * (value.ndim - root.ndim))
    return value * root * root  # size^β by itself may be out of range where the product isn't


def over_rows(fn: Callable[[Any], Array], rows: Any, chunk: int | None) -> Array:
    """fn((k, ...) rows) -> (k, ...) results, on `chunk` rows at a time; all at once if None."""
    if chunk is None:
        return fn(rows)

    @jax.checkpoint  # or the scan would keep every block for the backward pass
    def one(row: Any) -> Array:
        return fn(jax.tree.map(lambda leaf: leaf[None], row))[0]

    return jax.lax.map(one, rows, batch_size=chunk)


def row_means(
    fn: Callable[[Array], Array], x: Array, y: Array, *, same: bool, method: str, chunk: int | None
) -> Array:
    """mean_j fn(‖xᵢ - yⱼ‖²) for each i, shape (n,); with `same`, over j ≠ i only."""
    columns = jnp.arange(y.shape[0])

    def block(rows: tuple[Array, Array]) -> Array:
        points, index = rows
        values = fn(square_distances(points, y, method))
        if not same:
            return jnp.mean(values, axis=-1)
        others = jnp.where(index[:, None] == columns, 0, values)
        return jnp.sum(others, axis=-1) / (y.shape[0] - 1)

    return over_rows(block, (x, jnp.arange(x.shape[0])), chunk)
