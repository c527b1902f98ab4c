"""Processes given by a table of ᾱ: the discrete-time models, Stable Diffusion among them."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, is_concrete, upcast, whole_number
from guidejax.processes.base import Process


def _counting(t: Any) -> Array:
    """t as a float that tells the entries of a table apart: bfloat16 doesn't."""
    return upcast(jnp.asarray(t, jnp.result_type(float, t)))


class Discrete(Process):
    """A table of log-SNRs, made continuous; see `discrete`."""

    log_snrs: Any

    def _neighbours(self, u: Array) -> tuple[Array, Array]:
        """λ of the entries before and after u, which counts them from 1."""
        count = self.log_snrs.shape[0]
        before = jnp.clip(jnp.floor(u), 1, count - 1)[..., None]
        # A comparison, not a gather, which raises on times sharded over an explicit mesh.
        number = jnp.arange(1, count + 1, dtype=u.dtype)
        pick = lambda n: jnp.max(jnp.where(number == n, self.log_snrs, -jnp.inf), axis=-1)  # noqa: E731
        return pick(before), pick(before + 1)

    def _ratios(self, t: Any) -> tuple[Array, Array, Array, Array, Array]:
        """(whether before the first entry, σ/α there, whether into zero SNR, α/σ there, else λ).

        Each is finite, with a finite gradient, where it isn't asked for too.
        """
        count = self.log_snrs.shape[0]
        t = _counting(t)
        u = count * t
        low, high = self._neighbours(u)
        share = u - jnp.clip(jnp.floor(u), 1, count - 1)
        clean, to_zero = u < 1, jnp.isneginf(high)
        line = low + share * (jnp.where(to_zero, low, high) - low)
        first = jnp.minimum(u, 1) * jnp.exp(-self.log_snrs[0] / 2)
        last = jnp.where(to_zero, 1 - share, 1) * jnp.exp(low / 2)
        return clean, first, to_zero & ~clean, last, line

    def log_snr(self, t):
        """λ(t): straight lines between the entries, and what `discrete` says beyond them."""
        clean, first, to_zero, last, line = self._ratios(t)
        towards = 2 * jnp.log(jnp.where(to_zero, last, 1))
        return jnp.where(
            clean, -2 * jnp.log(jnp.where(clean, first, 1)), jnp.where(to_zero, towards, line)
        )

    def alpha(self, t):
        """α = √sigmoid(λ)."""
        clean, first, to_zero, last, line = self._ratios(t)
        inner = jnp.where(to_zero, last * (1 + last**2) ** -0.5, jnp.sqrt(jax.nn.sigmoid(line)))
        return jnp.where(clean, (1 + first**2) ** -0.5, inner)

    def sigma(self, t):
        """σ = √sigmoid(−λ)."""
        clean, first, to_zero, last, line = self._ratios(t)
        inner = jnp.where(to_zero, (1 + last**2) ** -0.5, jnp.sqrt(jax.nn.sigmoid(-line)))
        return jnp.where(clean, first * (1 + first**2) ** -0.5, inner)

    def inverse_log_snr(self, log_snr):
        """The t at which λ(t) = `log_snr`."""
        count = self.log_snrs.shape[0]
        wanted = jnp.asarray(log_snr, jnp.result_type(float))
        above = jnp.sum(self.log_snrs > wanted[..., None], axis=-1)  # entries with less noise
        low, high = self._neighbours(above.astype(wanted.dtype))
        falls = jnp.where(jnp.isneginf(high) | (low == high), 1, low - high)
        inside = jnp.minimum(jnp.clip(above, 1, count - 1) + (low - wanted) / falls, count)
        to_zero = count - jnp.exp((jnp.minimum(wanted, low) - low) / 2)
        clean = jnp.exp((self.log_snrs[0] - jnp.maximum(wanted, self.log_snrs[0])) / 2)
        u = jnp.where(above < 1, clean, jnp.where(jnp.isneginf(high), to_zero, inside))
        return jnp.where(jnp.isnan(wanted), jnp.nan, u / count)

    def index(self, t):
        """The index i that the network is told at t: N t − 1, and 0 between clean and the first.

        Between two entries it is a fraction, as networks with a sinusoidal embedding of the index
        take it; within a rounding of an entry it is that entry's whole number.
        """
        index = jnp.maximum(self.log_snrs.shape[0] * _counting(t) - 1, 0)
        whole = jnp.round(index)
        return jnp.where(jnp.abs(index - whole) < 1e-3, whole, index)

    def times(self, indices: Any) -> np.ndarray:
        """The times (i + 1)/N of table entries, to be a grid: `np.append(process.times(i), 0)`."""
        count, indices = self.log_snrs.shape[0], np.asarray(indices, float)
        if not np.all((indices >= 0) & (indices <= count - 1)):
            raise ValueError(f"a table of {count} has the indices 0 to {count - 1}; got {indices}.")
        return (indices + 1) / count


def discrete(alphas_cumprod: Any) -> Discrete:
    """A process of a table ᾱ_0 > ᾱ_1 > … > ᾱ_{N−1}, any model's `alphas_cumprod`.

    Entry i stands at t = (i + 1)/N: t = 0 is clean data, t = 1 the last entry. There
    α = √ᾱ_i and σ = √(1 − ᾱ_i). In between, and nowhere else defined by the table:

    * between two entries the log-SNR is linear in t;
    * between clean and the first entry σ/α grows linearly from 0;
    * into a last entry of ᾱ = 0 (zero terminal SNR) α/σ falls linearly to 0.

    `denoiser(..., time="index")` tells a network the index, N t − 1 (`Discrete.index`).

    Args:
        alphas_cumprod: (N,), N ≥ 2, falling, within (0, 1) but for a last entry of 0. A table that
            doesn't come down to 1/2 is warned of: sampling begins from noise.

    Raises:
        ValueError: If the table is none.

    Example:
        >>> process = discrete([0.9, 0.5, 0.1])
        >>> [round(float(process.alpha(t)) ** 2, 4) for t in (0.0, 1 / 3, 2 / 3, 1.0)]
        [1.0, 0.9, 0.5, 0.1]
        >>> [float(process.index(t)) for t in (0.1, 2 / 3, 1.0)]
        [0.0, 1.0, 2.0]
    """
    if not is_concrete(alphas_cumprod):
        traced = jnp.asarray(alphas_cumprod)
        return Discrete(jnp.log(traced) - jnp.log1p(-traced))
    bars = np.asarray(alphas_cumprod, np.float64)
    falls = bars.ndim == 1 and bars.size > 1 and bool(np.all(np.diff(bars) < 0))
    if not (falls and bars[0] < 1 and bars[-1] >= 0):
        raise ValueError(
            "discrete expects alphas_cumprod (N,), N ≥ 2, falling within (0, 1), a last entry of 0 "
            f"allowed; got shape {bars.shape}, from {bars.ravel()[:1]} to {bars.ravel()[-1:]}."
        )
    if bars[-1] > 0.5:
        warnings.warn(
            f"the table ends at ᾱ = {bars[-1]:.3g}, where more is left of the data than there is "
            "noise, and sampling begins from noise. Is it of alphas_cumprod, not of alphas? Its N "
            "are the noise levels of training, whatever the steps of sampling.",
            stacklevel=2,
        )
    with np.errstate(divide="ignore"):
        log_snrs = np.log(bars) - np.log1p(-bars)
    return Discrete(jnp.asarray(log_snrs, jnp.result_type(float)))


def _from_betas(betas: np.ndarray) -> Discrete:
    return discrete(np.cumprod(1 - betas))


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """DDPM's table: β rises linearly (Ho et al. 2006.11239, §4).

    Args:
        steps: N, the noise levels of training, whatever the steps of sampling.
        beta_start: β of the first entry.
        beta_end: β of the last.

    Example:
        >>> round(float(linear().alpha(1.0)), 4)
        0.0064
    """
    return _from_betas(np.linspace(beta_start, beta_end, whole_number("noise levels", steps)))


def scaled_linear(
    steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Discrete:
    """Stable Diffusion's table: √β rises linearly (Rombach et al. 2112.10752, its code).

    Args:
        steps: N, the noise levels of training, whatever the steps of sampling.
        beta_start: β of the first entry.
        beta_end: β of the last.

    Example:
        >>> process = scaled_linear()
        >>> round(float(process.alpha(1.0)) ** 2, 6), float(process.index(1.0))
        (0.00466, 999.0)
    """
    return _from_betas(
        np.linspace(beta_start**0.5, beta_end**0.5, whole_number("noise levels", steps)) ** 2
    )


def squared_cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Discrete:
    """Improved DDPM's table: ᾱ ∝ cos²(π/2 · (u + s)/(1 + s)) (Nichol & Dhariwal 2102.09672).

    Their Eq. (17), by β_i = min(1 − ᾱ(u_{i+1})/ᾱ(u_i), max_beta), u_i = i/N; diffusers calls it
    "squaredcos_cap_v2".

    Args:
        steps: N, the noise levels of training, whatever the steps of sampling.
        offset: s.
        max_beta: Largest β.

    Example:
        >>> round(float(squared_cosine().alpha(0.5)) ** 2, 3)
        0.494
    """
    u = np.linspace(0, 1, whole_number("noise levels", steps) + 1)
    bars = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return _from_betas(np.minimum(1 - bars[1:] / bars[:-1], max_beta))


def zero_terminal_snr(process: Discrete) -> Discrete:
    """The table rescaled so that its last entry is pure noise (Lin et al. 2305.08891, Algorithm 1).

    √ᾱ is shifted so that its last entry is 0 and scaled so that its first stays. A network that
    predicts ε says nothing of x0 there; those trained with such a table predict v.

    Args:
        process: A `discrete` process.

    Example:
        >>> float(zero_terminal_snr(scaled_linear()).alpha(1.0))
        0.0
    """
    if not isinstance(process, Discrete):
        raise ValueError(f"expected a process with a table, got {type(process).__name__}.")
    if not is_concrete(process.log_snrs):
        raise ValueError("zero_terminal_snr takes a table that is known: call it outside of jit.")
    root = np.sqrt(1 / (1 + np.exp(-np.asarray(process.log_snrs, np.float64))))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return discrete(root**2)
