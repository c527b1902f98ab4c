"""Per-image statistics that guidance moves: saturation, clipping, contrast, channels, norms."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from guidejax._arrays import magnitude, norm, safe_divide, safe_sqrt
from guidejax.metrics._checks import real_array

Array = jax.Array

# Rec. 709 luma, on the gamma-coded values that images hold.
_LUMA = (0.2126, 0.7152, 0.0722)


def _check_range(value_range: tuple[float, float]) -> None:
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range is {value_range}; expected (lo, hi) with lo < hi.")


def _images(images: Any, channels: tuple[int, ...] | None = None) -> Array:
    images = real_array("images", images)
    if images.ndim < 3:
        raise ValueError(f"images has shape {images.shape}; expected (..., height, width, C).")
    if channels is not None and images.shape[-1] not in channels:
        raise ValueError(
            f"images has shape {images.shape}; expected channels last, one of {channels} of them."
        )
    return images


def _unit(images: Array, value_range: tuple[float, float]) -> Array:
    lo, hi = value_range
    return jnp.clip((images - lo) / (hi - lo), 0, 1)


@jax.jit
def _saturation(images: Array, value_range: tuple[float, float]) -> Array:
    images = _unit(images, value_range)
    top, low = jnp.max(images, axis=-1), jnp.min(images, axis=-1)
    return jnp.mean(safe_divide(top - low, top), axis=(-2, -1))


def saturation(images: Any, value_range: tuple[float, float] = (-1.0, 1.0)) -> Array:
    """The mean HSV saturation of each RGB image.

    S = (max - min) / max over a pixel's three channels, brought to [0, 1] and clipped there as a
    viewer would; 0 for a black pixel. Averaged over pixels.

    Args:
        images: RGB (..., height, width, 3).
        value_range: The (lo, hi) that stand for black and full colour.

    Returns:
        (...,) in [0, 1], float32 at least.

    Raises:
        ValueError: Not three channels last, an empty range, NaN or infinite pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> pixels = jnp.array([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]])
        >>> float(saturation(pixels, value_range=(0.0, 1.0)))
        0.5

    References:
        Smith, Color Gamut Transform Pairs, 1978; Sadat et al., Eliminating Oversaturation and
        Artifacts of High Guidance Scales, 2024, for its use.
    """
    _check_range(value_range)
    return _saturation(_images(images, (3,)), value_range)


def clipped_fraction(images: Any, value_range: tuple[float, float] = (-1.0, 1.0)) -> Array:
    """The share of each image's values outside of the range, which a viewer clips.

    Args:
        images: (..., height, width, C).
        value_range: (lo, hi), both within.

    Returns:
        (...,) in [0, 1], float32 at least; piecewise constant, with gradient 0.

    Raises:
        ValueError: Fewer than 3 axes, an empty range, NaN or infinite pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> float(clipped_fraction(jnp.array([[[-2.0], [-1.0], [0.0], [1.5]]])))
        0.5
    """
    _check_range(value_range)
    images = _images(images)
    outside = ((images < value_range[0]) | (images > value_range[1])).astype(images.dtype)
    return jnp.mean(jnp.where(jnp.isnan(images), jnp.nan, outside), axis=(-3, -2, -1))


def rms_contrast(images: Any, value_range: tuple[float, float] = (-1.0, 1.0)) -> Array:
    """The standard deviation of the luma over each image's pixels.

    Values are brought to [0, 1] and clipped; luma is Rec. 709's weighted mean of R, G, B, or the
    one channel of a grey image.

    Args:
        images: (..., height, width, 3) or (..., height, width, 1).
        value_range: The (lo, hi) that stand for black and white.

    Returns:
        (...,) in [0, 1/2], float32 at least; gradient 0 for a flat image.

    Raises:
        ValueError: Neither 1 nor 3 channels last, an empty range, NaN or infinite pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> float(rms_contrast(jnp.array([[[-1.0], [1.0]]])))
        0.5

    References:
        Peli, Contrast in complex images, 1990.
    """
    _check_range(value_range)
    return _contrast(_images(images, (1, 3)), value_range)


@jax.jit
def _contrast(images: Array, value_range: tuple[float, float]) -> Array:
    images = _unit(images, value_range)
    if images.shape[-1] == 3:
        luma = jnp.sum(images * jnp.asarray(_LUMA, images.dtype), axis=-1)
    else:
        luma = images[..., 0]
    centred = luma - jnp.mean(luma, axis=(-2, -1), keepdims=True)
    return safe_sqrt(jnp.mean(jnp.square(centred), axis=(-2, -1)))


def channel_statistics(images: Any) -> tuple[Array, Array]:
    """The mean and the standard deviation (over N) of each channel of each image.

    Args:
        images: (..., height, width, C), in any units.

    Returns:
        Two arrays (..., C) in the images' units, float32 at least; the deviation's gradient is 0
        where it is 0.

    Raises:
        ValueError: Fewer than 3 axes, NaN or infinite pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> mean, std = channel_statistics(jnp.array([[[1.0, 5.0], [3.0, 5.0]]]))
        >>> mean.tolist(), std.tolist()
        ([2.0, 5.0], [1.0, 0.0])
    """
    return _channels(_images(images))


@jax.jit
def _channels(images: Array) -> tuple[Array, Array]:
    mean = jnp.mean(images, axis=(-3, -2), keepdims=True)
    centred = images - mean
    size = magnitude(centred, axis=(-3, -2))
    variance = jnp.mean(jnp.square(centred / size), axis=(-3, -2))
    return mean[..., 0, 0, :], size[..., 0, 0, :] * safe_sqrt(variance)


def _samples(x: Any) -> Array:
    x = real_array("x", x)
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}; expected (batch, d...).")
    return x


def sample_rms(x: Any) -> Array:
    """The root mean square ‖x‖ / √d of each sample.

    1 for white noise of unit variance, whatever d: norms of different sizes compare.

    Args:
        x: (batch, d...).

    Returns:
        (batch,) in units of x, float32 at least; gradient 0 at x = 0.

    Raises:
        ValueError: No axis but the batch, NaN or infinite values.

    Example:
        >>> import jax.numpy as jnp
        >>> sample_rms(jnp.array([[3.0, -3.0], [0.0, 0.0]])).tolist()
        [3.0, 0.0]
    """
    return _rms(_samples(x))


@jax.jit
def _rms(x: Array) -> Array:
    return norm(x) / math.prod(x.shape[1:]) ** 0.5


def sample_norm(x: Any) -> Array:
    """The Euclidean norm of each sample.

    Args:
        x: (batch, d...).

    Returns:
        (batch,) in units of x, float32 at least; gradient 0 at x = 0.

    Raises:
        ValueError: No axis but the batch, NaN or infinite values.

    Example:
        >>> import jax.numpy as jnp
        >>> sample_norm(jnp.array([[3.0, -4.0], [0.0, 0.0]])).tolist()
        [5.0, 0.0]
    """
    return norm(_samples(x))
