"""Processes given by a formula in t."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from guidejax._arrays import is_concrete, safe_sqrt
from guidejax.processes.base import Process, check_process


class RectifiedFlow(Process):
    """α = 1 − t, σ = t."""

    def alpha(self, t):
        return 1 - jnp.asarray(t)

    def sigma(self, t):
        return jnp.asarray(t)

    def log_snr(self, t):
        return 2 * (jnp.log1p(-jnp.asarray(t)) - jnp.log(t))

    def inverse_log_snr(self, log_snr):
        return jax.nn.sigmoid(-jnp.asarray(log_snr) / 2)


class Cosine(Process):
    """α = cos(πt/2), σ = sin(πt/2)."""

    def alpha(self, t):
        # sin(π(1−t)/2) is exactly 0 at t = 1, where cos(πt/2) rounds to −4e-8.
        return jnp.sin(jnp.pi / 2 * (1 - jnp.asarray(t)))

    def sigma(self, t):
        return jnp.sin(jnp.pi / 2 * jnp.asarray(t))

    def inverse_log_snr(self, log_snr):
        # From λ = −100 on it is 1, whose slope would be 0 times an infinite one.
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-jnp.maximum(log_snr, -100) / 2))


class LinearVP(Process):
    """α² = exp(−B(t)), σ² = 1 − α², B(t) = β_min t + (β_max − β_min) t²/2."""

    beta_min: Any
    beta_max: Any

    def _integral(self, t):
        t = jnp.asarray(t)
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def alpha(self, t):
        return jnp.exp(-self._integral(t) / 2)

    def sigma(self, t):
        return safe_sqrt(-jnp.expm1(-self._integral(t)))  # at t = 0 its slope has no number

    def log_snr(self, t):
        return -jnp.log(jnp.expm1(self._integral(t)))

    def inverse_log_snr(self, log_snr):
        # B = softplus(−λ), then the positive root of the quadratic in t, written so that it
        # doesn't cancel where B is small; far beyond t = 1 any finite λ will do.
        b = jax.nn.softplus(-jnp.maximum(log_snr, -1e4))
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return 2 * b / (self.beta_min + root)


class EDM(Process):
    """α = 1, σ = σ_max t^ρ."""

    sigma_max: Any
    rho: Any

    def alpha(self, t):
        return jnp.ones_like(jnp.asarray(t, jnp.result_type(float, t)))

    def sigma(self, t):
        return self.sigma_max * jnp.asarray(t, jnp.result_type(float, t)) ** self.rho

    def log_snr(self, t):
        return -2 * (jnp.log(self.sigma_max) + self.rho * jnp.log(t))

    def inverse_log_snr(self, log_snr):
        return jnp.exp(-(jnp.asarray(log_snr) / 2 + jnp.log(self.sigma_max)) / self.rho)


def rectified_flow() -> Process:
    """Rectified flow: α(t) = 1 − t, σ(t) = t (Liu et al. 2209.03003; Lipman et al. 2210.02747).

    Also called flow matching with the linear (conditional optimal transport) path.

    Example:
        >>> process = rectified_flow()
        >>> float(process.alpha(0.25)), float(process.sigma(0.25))
        (0.75, 0.25)
    """
    return RectifiedFlow()


def cosine() -> Process:
    """Cosine process: α(t) = cos(πt/2), σ(t) = sin(πt/2) (Nichol & Dhariwal 2102.09672, no offset).

    Example:
        >>> round(float(cosine().log_snr(0.5)), 6)
        0.0
    """
    return Cosine()


def linear_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Variance-preserving process with linear β(t) (Ho et al. 2006.11239; Song et al. 2011.13456).

    α(t)² = exp(−∫₀ᵗ β), β(t) = β_min + t (β_max − β_min), σ² = 1 − α².

    Args:
        beta_min: β at t = 0, positive.
        beta_max: β at t = 1, at least β_min.

    Raises:
        ValueError: If not 0 < beta_min ≤ beta_max.

    Example:
        >>> process = linear_vp()
        >>> round(float(process.alpha(1.0)), 4)
        0.0066
    """
    if is_concrete(beta_min, beta_max) and not 0 < float(beta_min) <= float(beta_max):
        raise ValueError(f"expected 0 < beta_min ≤ beta_max, got {beta_min} and {beta_max}.")
    return LinearVP(beta_min, beta_max)


def edm(sigma_max: float = 80.0, rho: float = 7.0) -> Process:
    """Variance-exploding process of EDM: α(t) = 1, σ(t) = σ_max t^ρ (Karras et al. 2206.00364).

    A uniform grid in t is the ρ-spaced grid of EDM's Eq. (5) with σ_min = 0, so that t = 0 is
    data exactly; `karras_times` gives the grid of that equation for a positive σ_min.

    Args:
        sigma_max: Noise level at t = 1, positive.
        rho: Exponent of the spacing, positive.

    Raises:
        ValueError: If either number is not positive.

    Example:
        >>> float(edm(rho=1.0).sigma(0.5))
        40.0
    """
    if is_concrete(sigma_max, rho) and not (float(sigma_max) > 0 and float(rho) > 0):
        raise ValueError(f"expected positive sigma_max and rho, got {sigma_max} and {rho}.")
    return EDM(sigma_max, rho)


class Shifted(Process):
    """`process` at the time τ(t) = k t / (1 + (k − 1) t)."""

    process: Process
    shift: Any

    def _inner(self, t):
        t = jnp.asarray(t, jnp.result_type(float, t))
        later = self.shift * t
        return later / (later + (1 - t))  # at t = 1 it is 1, to no rounding

    def alpha(self, t):
        return self.process.alpha(self._inner(t))

    def sigma(self, t):
        return self.process.sigma(self._inner(t))

    def log_snr(self, t):
        return self.process.log_snr(self._inner(t))

    def inverse_log_snr(self, log_snr):
        inner = self.process.inverse_log_snr(log_snr)
        here = jnp.minimum(inner, 1)
        # Beyond t = 1 τ has a pole; there the process's own time says enough.
        return jnp.where(inner > 1, inner, here / (self.shift - (self.shift - 1) * here))


class ShiftedTable(Shifted):
    """The same of a process with a table."""

    def index(self, t):
        table: Any = self.process
        return table.index(self._inner(t))


def shifted(process: Process, shift: float) -> Process:
    """The same process, run at the shifted time τ(t) = k t / (1 + (k − 1) t).

    A uniform grid then spends more of its steps at high noise (k > 1), as larger images need
    (Esser et al. 2403.03206, §5.3.2; k = 3 for Stable Diffusion 3, and e^μ for Flux's μ, which
    grows with the picture: diffusers' `use_dynamic_shifting`). On rectified flow σ(t) = τ(t):
    diffusers' `shift`. There the shift adds −2 log k to the log-SNR, as the resolution shift of
    Hoogeboom et al. 2301.11093 does.

    A network that was trained on `process` is told that process's time: wrap it there and move it,
    `gj.denoiser(network, process).on(gj.processes.shifted(process, 3.0))`.

    Args:
        process: Any process.
        shift: k, positive; 1 changes nothing.

    Raises:
        ValueError: If k is not positive, or `process` is none.

    Example:
        >>> float(shifted(rectified_flow(), 3.0).sigma(0.5))
        0.75
    """
    check_process(process)
    if is_concrete(shift) and not float(shift) > 0:
        raise ValueError(f"expected a positive shift, got {shift}.")
    return (ShiftedTable if hasattr(process, "index") else Shifted)(process, shift)
