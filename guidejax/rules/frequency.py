"""Rules that guide each spatial frequency by its own weight.

Samples are channels last: the axes between the batch and the channels are spatial, (batch, H, W,
C), and video's time counts as one. A (batch, n) array is one signal of length n. Any size will do.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, expand, project, restore, upcast
from guidejax.rules.base import rule


def spatial_axes(x: Array) -> tuple[int, ...]:
    """The axes between batch and channels; axis 1 of a (batch, n) array."""
    return tuple(range(1, max(x.ndim - 1, 2)))


def along(matrix: np.ndarray | Array, x: Array, axis: int) -> Array:
    """`matrix` times `x` along one axis, at full precision (TPU's default is bfloat16)."""
    matrix = jnp.asarray(matrix, x.dtype)
    product = jnp.tensordot(x, matrix, axes=([axis], [1]), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, -1, axis)


@functools.cache
def _blur(n: int) -> np.ndarray:
    """(n, n): the binomial filter (1, 4, 6, 4, 1)/16, mirrored at the ends."""
    source = np.pad(np.arange(n), 2, mode="reflect")
    matrix = np.zeros((n, n))
    for row in range(n):
        np.add.at(matrix[row], source[row : row + 5], np.array([1, 4, 6, 4, 1]) / 16)
    return matrix


@functools.cache
def _resample(n: int, m: int) -> np.ndarray:
    """(m, n): linear interpolation at the centres of m cells over n, clamped at the ends."""
    position = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(n)), 0)


def _halve(x: Array) -> Array:
    for axis in spatial_axes(x):
        n = x.shape[axis]
        x = along(_resample(n, -(-n // 2)) @ _blur(n), x, axis)
    return x


def _grow(x: Array, like: Array) -> Array:
    for axis in spatial_axes(x):
        n = like.shape[axis]
        x = along(_blur(n) @ _resample(x.shape[axis], n), x, axis)
    return x


def laplacian_pyramid(x: Array, levels: int) -> list[Array]:
    """Split into `levels` bands, the highest frequencies first; each is half the size of the last.

    Burt & Adelson's pyramid: blur by (1, 4, 6, 4, 1)/16 and halve, a band being what is lost; the
    last band is what remains. Sizes halve upwards, 7 → 4 → 2 → 1 → 1. `from_pyramid` inverts it.

    Example:
        >>> [band.shape for band in laplacian_pyramid(jnp.zeros((1, 7, 8, 3)), 3)]
        [(1, 7, 8, 3), (1, 4, 4, 3), (1, 2, 2, 3)]
    """
    bands = []
    for _ in range(levels - 1):
        small = _halve(x)
        bands.append(x - _grow(small, x))
        x = small
    return [*bands, x]


def from_pyramid(bands: list[Array]) -> Array:
    """The array of which `bands` are the `laplacian_pyramid`.

    Example:
        >>> x = jnp.arange(6.0).reshape(1, 3, 2, 1)
        >>> bool(jnp.allclose(from_pyramid(laplacian_pyramid(x, 2)), x, atol=1e-6))
        True
    """
    *bands, x = bands
    for band in reversed(bands):
        x = band + _grow(x, band)
    return x


def _gains(omega: Array, low: Array | float, levels: int, x: Array) -> list[Array]:
    """ω of each band: ω on the highest, low · ω on the lowest, linear between."""
    if levels < 1:
        raise ValueError(f"expected at least one level, got levels={levels}.")
    omega, low = expand(omega, x), expand(low, x)
    for number in (omega, low):
        if number.ndim and any(number.shape[axis] > 1 for axis in spatial_axes(x)):
            raise ValueError(
                "a weight of frequencies is the same everywhere: expected a scalar, (batch,) or "
                f"one a channel, got the shape {number.shape}."
            )
    return [omega * (1 + (low - 1) * (k / max(levels - 1, 1))) for k in range(levels)]


@rule(space="any", paper="Sadat et al., arXiv 2506.19713, Algorithm 1", static=("levels",))
def fdg(
    cond: Array,
    uncond: Array,
    omega: Array,
    *,
    low: Array | float = 4 / 9,
    levels: int = 2,
) -> Array:
    """Frequency-decoupled guidance: c + Σ_k ω_k L_k(c − u), L_k the bands of a Laplacian pyramid.

    High frequencies take ω, which sets detail, and low ones less, which keeps colour and diversity
    (Sadat et al. 2506.19713, without its projection: then only the difference enters, and the space
    doesn't matter). For SDXL the paper's scales are 10 and 5: ω = 9, low = 4/9.

    The official code takes the pyramid from kornia, which pads sizes that are no power of two up to
    one and mirrors otherwise; here every size is taken as it is.

    Args:
        cond: Conditional prediction c, (batch, H, W, channels), in any space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω of the highest band, scalar or (batch,); 0 returns `cond` exactly.
        low: Share of ω on the lowest band, scalar or (batch,); bands between are interpolated.
        levels: Number of bands; 1 is `cfg`.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Raises:
        ValueError: If `levels` is less than 1.

    Example:
        >>> c, u = jnp.full((1, 4, 4, 1), 2.0), jnp.ones((1, 4, 4, 1))
        >>> float(fdg(c, u, 8.0, low=0.25)[0, 0, 0, 0])
        4.0
    """
    c = upcast(cond)
    gains = _gains(omega, low, levels, c)
    bands = laplacian_pyramid(c - upcast(uncond), levels)
    shift = from_pyramid([w * d for w, d in zip(gains, bands, strict=True)])
    return restore(c + shift, cond)


@rule(space="x0", paper="Sadat et al., arXiv 2506.19713, Algorithm 2", static=("levels",))
def fdg_projected(
    cond: Array,
    uncond: Array,
    omega: Array,
    *,
    low: Array | float = 4 / 9,
    parallel: Array | float = 0.0,
    levels: int = 2,
) -> Array:
    """`fdg` with each band of c − u split along the same band of c, the parallel part weighted.

    d_k ← d_k − (1 − η) P_{c_k} d_k on every band, then c + Σ_k ω_k d_k (Sadat et al. 2506.19713,
    Algorithm 2). η = 1 is `fdg`; η = 0 is APG's projection band by band. Each band adds to c; that
    is diffusers' guider with `use_original_formulation=True`. Its default adds (ω_k + 1) d_k to u,
    which for η ≠ 1 is another rule.

    Args:
        cond: Conditional clean prediction c, (batch, H, W, channels).
        uncond: Unconditional clean prediction u, the same shape.
        omega: ω of the highest band, scalar or (batch,); 0 returns `cond` exactly.
        low: Share of ω on the lowest band.
        parallel: η, scalar or (batch,).
        levels: Number of bands.

    Returns:
        The guided clean prediction, in the dtype of `cond`.

    Raises:
        ValueError: If `levels` is less than 1.

    Example:
        >>> c, u = jnp.full((1, 4, 4, 1), 2.0), jnp.ones((1, 4, 4, 1))
        >>> float(fdg_projected(c, u, 8.0, low=0.25)[0, 0, 0, 0])
        2.0
    """
    c = upcast(cond)
    gains = _gains(omega, low, levels, c)
    deltas, bases = (laplacian_pyramid(x, levels) for x in (c - upcast(uncond), c))
    shifts = []
    for w, d, base in zip(gains, deltas, bases, strict=True):
        shifts.append(w * (d - (1 - expand(parallel, d)) * project(d, base)))
    return restore(c + from_pyramid(shifts), cond)


@functools.cache
def _low_pass(n: int, cutoff: int) -> np.ndarray:
    """(n, n): keep the discrete frequencies |k| < cutoff."""
    kept = np.abs(np.fft.fftfreq(n, 1 / n)) < cutoff
    return np.real(np.fft.ifft(kept[:, None] * np.fft.fft(np.eye(n), axis=0), axis=0))


@rule(
    space="any",
    paper="Huang et al. (FreSca), arXiv 2504.02154",
    exact_at_zero=False,
    static=("cutoff",),
)
def fresca(
    cond: Array,
    uncond: Array,
    omega: Array,
    *,
    low: Array | float = 1.0,
    high: Array | float = 1.25,
    cutoff: int = 20,
) -> Array:
    """FreSca: u + (ω + 1) F(c − u), F scaling Fourier frequencies by `low` and `high`.

    Low are those below `cutoff` cycles a side along every spatial axis (Huang et al.
    2504.02154). The paper scales the whole difference, so that ω = 0 is c only for low = high = 1.
    The official code's box takes in −cutoff and leaves out +cutoff; this one leaves out both.

    Args:
        cond: Conditional prediction c, (batch, H, W, channels), in any space.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,).
        low: Scale of the low frequencies, scalar or (batch,).
        high: Scale of the high frequencies, scalar or (batch,).
        cutoff: Lowest high frequency, an integer ≥ 0; beyond half the size all are low, so that
            20 changes nothing below 40 pixels a side.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Raises:
        ValueError: If `cutoff` is negative.

    Example:
        >>> c, u = jnp.full((1, 4, 4, 1), 2.0), jnp.ones((1, 4, 4, 1))
        >>> round(float(fresca(c, u, 3.0, low=0.5, cutoff=1)[0, 0, 0, 0]), 5)
        3.0
    """
    if cutoff < 0:
        raise ValueError(f"fresca expects cutoff ≥ 0, got {cutoff}.")
    c = upcast(cond)
    delta = c - upcast(uncond)
    slow = delta
    for axis in spatial_axes(delta):
        slow = along(_low_pass(delta.shape[axis], cutoff), slow, axis)
    high, low = expand(high, c), expand(low, c)
    scaled = high * delta + (low - high) * slow
    # u = c − δ, so that u + w F(δ) = c + (w F(δ) − δ).
    return restore(c + (expand(omega, c) + 1) * scaled - delta, cond)


@functools.cache
def _dct(n: int) -> np.ndarray:
    """(n, n): the orthonormal DCT-II."""
    k, i = np.arange(n)[:, None], np.arange(n)
    matrix = np.cos(np.pi * (2 * i + 1) * k / (2 * n)) * np.sqrt(2 / n)
    matrix[0] /= np.sqrt(2)
    return matrix


def dct_high_pass(x: Array, cutoff: Array | float, sharpness: Array | float = 50.0) -> Array:
    """DCT⁻¹(sigmoid(sharpness · (R − cutoff)) · DCT(x)), R the radius of (k/n) over the axes.

    Args:
        x: (batch, H, W, channels).
        cutoff: Radius where half is kept, in [0, 1) a side; scalar or (batch,).
        sharpness: Slope of the sigmoid.

    Example:
        >>> x = dct_high_pass(jnp.ones((1, 4, 4, 1)), cutoff=0.1, sharpness=1e3)
        >>> round(float(jnp.abs(x).max()), 6)
        0.0
    """
    axes = spatial_axes(x)
    spectrum = x
    for axis in axes:
        spectrum = along(_dct(x.shape[axis]), spectrum, axis)
    grids = np.meshgrid(*(np.arange(x.shape[a]) / x.shape[a] for a in axes), indexing="ij")
    radius = jnp.asarray(np.sqrt(sum(g**2 for g in grids)), x.dtype)
    radius = radius.reshape(radius.shape + (1,) * (x.ndim - 1 - len(axes)))
    spectrum *= jax.nn.sigmoid(expand(sharpness, x) * (radius - expand(cutoff, x)))
    for axis in axes:
        spectrum = along(_dct(x.shape[axis]).T, spectrum, axis)
    return spectrum
