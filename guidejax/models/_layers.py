"""Layers of PyTorch's networks, by the names of their tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from guidejax._arrays import Array

Params = Mapping[str, Array]


def linear(params: Params, name: str, x: Array) -> Array:
    """x Wᵀ + b, of W (out, in) and b, where there is one."""
    weight = params[f"{name}.weight"]
    y = jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
    return _biased(params, name, y)


def conv(
    params: Params, name: str, x: Array, stride: int = 1, padding: int | tuple[int, int] = 0
) -> Array:
    """2-D convolution of x (batch, height, width, channels) by W (out, in, height, width).

    `padding` is at all sides, or (above and below, left and right).
    """
    sides = padding if isinstance(padding, tuple) else (padding, padding)
    y = jax.lax.conv_general_dilated(
        x, params[f"{name}.weight"], (stride, stride), [(side, side) for side in sides],
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )  # fmt: skip
    return _biased(params, name, y)


def _biased(params: Params, name: str, y: Array) -> Array:
    return y + params[f"{name}.bias"] if f"{name}.bias" in params else y


def layer_norm(params: Params, name: str | None, x: Array, eps: float) -> Array:
    """Mean 0 and variance 1 along the last axis, in float32; then scale and shift by `name`."""
    z = x.astype(jnp.float32)
    z = z - z.mean(axis=-1, keepdims=True)
    z = z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + eps)
    return _scaled(params, name, z, x.dtype)


def rms_norm(params: Params, name: str | None, x: Array, eps: float) -> Array:
    """Mean square 1 along the last axis, in float32; then scale by `name`."""
    z = x.astype(jnp.float32)
    z = z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + eps)
    return _scaled(params, name, z, x.dtype)


def group_norm(params: Params, name: str, x: Array, eps: float, groups: int = 32) -> Array:
    """Mean 0 and variance 1 of each group of channels of x (batch, ..., channels), in float32."""
    z = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    z = z - z.mean(axis=(1, 3), keepdims=True)
    z = z * jax.lax.rsqrt(jnp.mean(z**2, axis=(1, 3), keepdims=True) + eps)
    return _scaled(params, name, z.reshape(x.shape), x.dtype)


def _scaled(params: Params, name: str | None, z: Array, dtype: jnp.dtype) -> Array:
    if name is not None and f"{name}.weight" in params:
        z = z * params[f"{name}.weight"].astype(jnp.float32)
    if name is not None and f"{name}.bias" in params:
        z = z + params[f"{name}.bias"].astype(jnp.float32)
    return z.astype(dtype)


def attend(
    q: Array, k: Array, v: Array, heads: int, mask: Array | None = None, scale: float | None = None
) -> Array:
    """Attention of q (batch, length, width) to k and v, split into heads.

    Args:
        q: Queries.
        k: Keys (batch, length of the others, width).
        v: Values, likewise.
        heads: How many.
        mask: True where a query may look, against (batch, heads, length, length of the others).
        scale: Of the logits; 1/√(width of a head) by default.
    """
    split = lambda a: a.reshape(*a.shape[:2], heads, a.shape[-1] // heads)  # noqa: E731
    found = jax.nn.dot_product_attention(split(q), split(k), split(v), mask=mask, scale=scale)
    return found.reshape(*found.shape[:2], -1)


def sinusoids(t: Array, width: int, shift: float = 0.0, longest: float = 10000.0) -> Array:
    """(cos, sin) of t by `width`/2 frequencies, longest^(−i/(width/2 − shift)), (batch, width)."""
    half = width // 2
    rates = jnp.exp(-math.log(longest) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = t.astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rows(table: Array, index: Array) -> Array:
    """Rows of a table (n, width); NaN for an index that it lacks, which JAX takes for another."""
    beyond = jnp.where(index < 0, table.shape[0], index)
    return table.at[beyond].get(mode="fill", fill_value=jnp.nan)


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Of a norm with scale and shift."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear_shapes(name: str, out: int, into: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Of a linear layer."""
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def conv_shapes(name: str, out: int, into: int, kernel: int = 3) -> dict[str, tuple[int, ...]]:
    """Of a convolution."""
    return {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}
