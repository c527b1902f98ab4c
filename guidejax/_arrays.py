"""Per-sample array helpers shared by every room: broadcasting, reductions, checks."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

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


def upcast(x: Array | float) -> Array:
    """`x` as an array in the dtype its reductions run in."""
    x = jnp.asarray(x)
    return x.astype(accumulator(x.dtype))


def restore(value: Array, like: Array | float) -> Array:
    """`value` in the dtype of `like`; as it is where `like` holds integers."""
    dtype = jnp.result_type(like)
    return value.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else value


def expand(value: Array | float, x: Array) -> Array:
    """Give a scalar or (batch,) `value` trailing axes so that it broadcasts against `x`.

    An array with as many axes as `x` is left as it is: (1, 1, 1, channels) is one number a channel.

    Raises:
        ValueError: If it has another number of axes.
    """
    value = jnp.asarray(value)
    if value.ndim == 0 or value.ndim == x.ndim:
        return value
    if value.ndim != 1 or x.ndim == 0:
        raise ValueError(
            f"a number of shape {value.shape} doesn't go with an array of shape {x.shape}; "
            "expected a scalar, (batch,), or as many axes as the array has."
        )
    return value.reshape(value.shape + (1,) * (x.ndim - 1))


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


Axes = int | tuple[int, ...] | None


def _axes(a: Array, axis: Axes) -> int | tuple[int, ...]:
    return tuple(range(1, a.ndim)) if axis is None else axis


def dot(a: Array, b: Array, axis: Axes = None, *, keepdims: bool = False) -> Array:
    """⟨a, b⟩ over `axis`; None is all axes but the batch's, which gives shape (batch,)."""
    return jnp.sum(upcast(a) * upcast(b), axis=_axes(a, axis), keepdims=keepdims)


def square_norm(a: Array) -> Array:
    """‖a‖² of each sample, shape (batch,); beyond 10¹⁹ and below 10⁻¹⁹ float32 doesn't hold it."""
    return dot(a, a)


def magnitude(*arrays: Array, axis: Axes = None) -> Array:
    """A power of four near the largest |element| of each vector, without gradient; axes are kept.

    What is divided by it can be squared, whatever its size, and loses no bit by that; its square
    root is exact too. Of several arrays it is the magnitude of the largest. NaN and infinity don't
    count; where all are 0 it is the least that has an inverse.
    """
    sizes = [jnp.abs(jax.lax.stop_gradient(upcast(a))) for a in arrays]
    peaks = [
        jnp.max(jnp.where(jnp.isfinite(a), a, 0), axis=_axes(a, axis), keepdims=True, initial=0)
        for a in sizes
    ]
    peak = functools.reduce(jnp.maximum, peaks)
    limits = jnp.finfo(peak.dtype)
    root = jnp.sqrt(jnp.clip(peak, 16 * limits.tiny, limits.max / 256))
    root = root / (2 * jnp.frexp(root)[0])
    return root * root


def over(a: Array, size: Array) -> Array:
    """a/size, `size` being its `magnitude`; 0 for what is beyond all measure of it.

    XLA may compute `a` anew for each of its uses, with and without fused products. What is left of
    a difference that cancels is then rounding here, and was 0 where its magnitude was found: over
    that it would be infinite.
    """
    a = upcast(a)
    beyond = (jnp.abs(a) > 2**12 * size) & jnp.isfinite(a)
    return jnp.where(beyond, 0, a) / size


def norm(a: Array, axis: Axes = None, *, keepdims: bool = False) -> Array:
    """‖a‖ over `axis`; None is all axes but the batch's, which gives shape (batch,).

    Right for elements of any size: nothing is squared before it is scaled. Its gradient at a = 0
    is 0.
    """
    size = magnitude(a, axis=axis)
    small = over(a, size)
    length = size * safe_sqrt(dot(small, small, axis, keepdims=True))
    return length if keepdims else jnp.squeeze(length, _axes(a, axis))


def unit(a: Array, axis: Axes = None) -> Array:
    """a/‖a‖ over `axis`, None being all axes but the batch's; 0 where a = 0."""
    small = over(a, magnitude(a, axis=axis))
    return small * safe_divide(1.0, safe_sqrt(dot(small, small, axis, keepdims=True)))


def project(a: Array, onto: Array) -> Array:
    """P(a), the component of `a` along `onto`, for each sample; 0 where `onto` is 0."""
    direction = unit(onto)
    return expand(dot(a, direction), a) * direction


def safe_sqrt(x: Array) -> Array:
    """√x, and 0 with gradient 0 where x ≤ 0."""
    zero = x <= 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


@jax.custom_jvp
def _divide(a: Array, b: Array) -> Array:
    """a / b, whose derivative squares nothing: JAX's own has b⁻², beyond float32 from 10⁻¹⁹."""
    return a / b


@_divide.defjvp
def _(primals, tangents):
    (a, b), (da, db) = primals, tangents
    ratio = _divide(a, b)
    return ratio, _divide(da - ratio * db, b)


def safe_divide(a: Array | float, b: Array, otherwise: float = 0.0) -> Array:
    """a / b, and `otherwise` with gradient 0 where b = 0; NaN where either is NaN."""
    dtype = jnp.result_type(a, b, 0.0)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    zero = b == 0
    ratio = _divide(a, jnp.where(zero, 1, b))
    return jnp.where(zero, jnp.where(jnp.isnan(a), a, otherwise), ratio)


def resized(a: Array, to: Array, of: Array) -> Array:
    """a · to/of, for lengths `to` and `of`, where it is in range though to/of be not; a for of = 0.

    The ratio is taken as one near 1 times the square of a power of two: each factor has its place.
    """
    return _in_place(a, *_ratio(to, of))


def _ratio(to: Array, of: Array) -> tuple[Array, Array]:
    """(q, r), to/of = q r² with q near 1 and r a power of two; (1, 1) where of = 0."""
    sizes = [magnitude(length, axis=()) for length in (to, of)]
    quotient = safe_divide(to / sizes[0], of / sizes[1], otherwise=1.0)
    root = jnp.sqrt(sizes[0]) / jnp.sqrt(sizes[1])
    return quotient, jnp.where(of == 0, 1, root)


def _in_place(a: Array, quotient: Array, root: Array) -> Array:
    return a * root * quotient * root


def blend_resized(a: Array, to: Array, of: Array, share: Array | float) -> Array:
    """(1 − share) a + share · `resized(a, to, of)`; where to = of, or share = 0, a itself."""
    quotient, root = _ratio(to, of)
    share = expand(share, a)
    # The change itself where it is small, which then is exactly 0 where there is none.
    close = (root >= 1 / 4) & (root <= 4)
    change = quotient * jnp.where(close, root, 1) ** 2 - 1
    small = close & (jnp.abs(change) <= 1 / 2)
    far = (1 - share) * a + share * _in_place(a, quotient, root)
    return jnp.where(small, a + share * jnp.where(small, change, 0) * a, far)


def shrink_to(size: Array, most: Array) -> Array:
    """min(1, most/size): the factor by which what is `size` long gets no longer than `most`."""
    within = size <= most
    return jnp.where(within, 1, safe_divide(jnp.where(within, 1, most), jnp.where(within, 1, size)))


def flatten(x: Array) -> Array:
    """(batch, elements); a batch of 0 too, where `reshape(0, -1)` doesn't know the second."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def flat(x: Tree) -> Array:
    """Every leaf of a state side by side, in the dtype of reductions: (batch, d)."""
    return jnp.concatenate([flatten(upcast(leaf)) for leaf in jax.tree.leaves(x)], axis=1)


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


def broadcasts_to(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of as many axes broadcasts to the shape `to`."""
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))


def same_structure(a: Tree, b: Tree) -> bool:
    """Whether two pytrees have the same containers and leaves in the same places."""
    return jax.tree.structure(a) == jax.tree.structure(b)  # type: ignore[operator]  # untyped stub


def shard_like(value: Array, x: Array) -> Array:
    """`value` with its batch split as that of `x` on a mesh with explicit axes; else as it is."""
    sharding = jax.typeof(x).sharding
    if not len(sharding.spec) or sharding.spec[0] is None:
        return value
    spec = jax.sharding.PartitionSpec(sharding.spec[0])
    if is_concrete(value, x):  # Outside of a program there needn't be a mesh in scope.
        mesh = cast(jax.sharding.NamedSharding, x.sharding).mesh
        return jax.device_put(value, jax.sharding.NamedSharding(mesh, spec))
    return jax.sharding.reshard(value, jax.sharding.NamedSharding(sharding.mesh, spec))


def check_finite(what: str, value: Any) -> None:
    """Raise `ValueError` if a concrete `value` holds a NaN or an infinity."""
    for leaf in jax.tree.leaves(value):
        if is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True):
            array = np.asarray(leaf)
            if not np.issubdtype(array.dtype, np.number):
                array = np.asarray(leaf, np.float32)  # bfloat16 is no np.number
            if not np.all(np.isfinite(array)):
                raise ValueError(f"{what} holds NaN or infinite values; expected finite numbers.")


def whole_number(of: str, value: Any) -> int:
    """`value` as an int; `ValueError` where it is none, such as 50.0."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"expected a whole number of {of}, got {value!r}.") from None


def any_of_row(on: Any) -> Any:
    """Whether any flag of each row is on: (n, ...) -> (n,); a scalar is itself."""
    return on.any(axis=tuple(range(1, on.ndim))) if on.ndim else on


def check_floating(what: str, x: Tree) -> None:
    """Raise `ValueError` where an array of `x` is not of floating point numbers."""
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"{what} is {jnp.result_type(leaf)}; expected floating point numbers.")


def check_not_nan(what: str, value: Any) -> None:
    """Raise `ValueError` if a concrete `value` holds a NaN; infinities may stand for "no limit"."""
    for leaf in jax.tree.leaves(value):
        known = is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True)
        if known and np.any(np.isnan(np.asarray(leaf, np.float32))):
            raise ValueError(f"{what} is NaN or holds one; expected numbers.")


def check_mask(what: str, mask: Any) -> None:
    """Raise `ValueError` if a concrete mask isn't from 0 to 1: a picture's 255 would count 255."""
    if is_concrete(mask) and getattr(mask, "is_fully_addressable", True):
        values = np.asarray(mask, np.float32)
        if np.any((values < 0) | (values > 1)):
            raise ValueError(
                f"{what} holds numbers from {values.min():g} to {values.max():g}; expected 0 to 1, "
                "1 where it acts."
            )


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
