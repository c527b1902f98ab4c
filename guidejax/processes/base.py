"""Noising processes: x_t = α(t) x0 + σ(t) ε with t = 0 data and t = 1 noise, ε ~ N(0, I).

A process is a pytree whose numbers are traced leaves. What a network predicts converts
from and to x0 by one affine map for each kind of prediction.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, dataclass_transform, get_args

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, Tree, combine, is_concrete, safe_sqrt

Prediction = Literal["x0", "eps", "v", "velocity", "score"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


class Process:
    """α, σ and the log-SNR of a Gaussian noising process; see `rectified_flow` and its peers."""

    def alpha(self, t: Array) -> Array:
        """Signal coefficient α(t), with α(0) = 1."""
        raise NotImplementedError

    def sigma(self, t: Array) -> Array:
        """Noise coefficient σ(t), with σ(0) = 0."""
        raise NotImplementedError

    def log_snr(self, t: Array) -> Array:
        """λ(t) = log(α²/σ²), falling in t; +∞ at t = 0 and, where α(1) = 0, −∞ at t = 1."""
        raise NotImplementedError

    def inverse_log_snr(self, log_snr: Array) -> Array:
        """The t at which λ(t) = `log_snr`."""
        raise NotImplementedError


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def _process(cls: type[_T]) -> type[_T]:
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(made)]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def flatten(process):
        return [getattr(process, name) for name in names], made

    def flatten_with_keys(process):
        return list(zip(keys, flatten(process)[0], strict=True)), made

    # Not `register_dataclass`: two dataclasses with as many numbers compare equal there, and one
    # in thirty calls, by chance of the hashes, jit would run rectified flow's program for cosine.
    jax.tree_util.register_pytree_with_keys(
        made, flatten_with_keys, lambda cls, numbers: cls(*numbers), flatten
    )
    return made


@_process
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


@_process
class Cosine(Process):
    """α = cos(πt/2), σ = sin(πt/2)."""

    def alpha(self, t):
        # sin(π(1−t)/2) is exactly 0 at t = 1, where cos(πt/2) rounds to −4e-8.
        return jnp.sin(jnp.pi / 2 * (1 - jnp.asarray(t)))

    def sigma(self, t):
        return jnp.sin(jnp.pi / 2 * jnp.asarray(t))

    def log_snr(self, t):
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def inverse_log_snr(self, log_snr):
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-jnp.asarray(log_snr) / 2))


@_process
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
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def log_snr(self, t):
        return -jnp.log(jnp.expm1(self._integral(t)))

    def inverse_log_snr(self, log_snr):
        # B = softplus(−λ), then the positive root of the quadratic in t, written so that it
        # doesn't cancel where B is small.
        b = jax.nn.softplus(-jnp.asarray(log_snr))
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return 2 * b / (self.beta_min + root)


@_process
class EDM(Process):
    """α = 1, σ = σ_max t^ρ."""

    sigma_max: Any
    rho: Any

    def alpha(self, t):
        return jnp.ones_like(jnp.asarray(t, jnp.result_type(float, t)))

    def sigma(self, t):
        return self.sigma_max * jnp.asarray(t) ** self.rho

    def log_snr(self, t):
        return -2 * (jnp.log(self.sigma_max) + self.rho * jnp.log(t))

    def inverse_log_snr(self, log_snr):
        return jnp.exp(-(jnp.asarray(log_snr) / 2 + jnp.log(self.sigma_max)) / self.rho)


def rectified_flow() -> Process:
    """Rectified flow: α(t) = 1 − t, σ(t) = t (Liu et al. 2209.03003; Lipman et al. 2210.02747).

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


def noise_to(process: Process, x0: Tree, t: Array, eps: Tree) -> Tree:
    """x_t = α(t) x0 + σ(t) ε, with `t` a scalar or (batch,).

    Example:
        >>> noise_to(rectified_flow(), jnp.ones((1, 2)), 0.25, jnp.zeros((1, 2))).tolist()
        [[0.75, 0.75]]
    """
    return combine((process.alpha(t), process.sigma(t)), x0, eps)


def _coefficients(process: Process, t: Array, kind: str) -> tuple[Array, Array]:
    """(a, b) with x0 = a x_t + b · prediction."""
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}; expected one of {', '.join(PREDICTIONS)}.")
    alpha, sigma = process.alpha(t), process.sigma(t)
    if kind == "x0":
        return jnp.zeros_like(alpha), jnp.ones_like(alpha)
    if kind == "eps":
        return 1 / alpha, -sigma / alpha
    if kind == "v":
        return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)
    if kind == "velocity":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    return 1 / alpha, sigma**2 / alpha


def to_x0(value: Tree, x: Tree, t: Array, process: Process, prediction: str) -> Tree:
    """The clean image that a network's output means.

    ε̂: (x − σε̂)/α;  v̂ = αε − σx0: (αx − σv̂)/(α²+σ²);  velocity û = ε − x0: (x − σû)/(α+σ);
    score ∇log p_t: (x + σ²·score)/α. From "eps" and "score" x0 is not defined where α = 0.

    Args:
        value: The network's output, the shape of `x`.
        x: The noisy state x_t, (batch, ...).
        t: Time, scalar or (batch,).
        process: The noising process.
        prediction: What `value` is: "x0", "eps", "v", "velocity" or "score".

    Returns:
        x0, in the dtype of `x`.

    Raises:
        ValueError: If `prediction` is none of these.

    Example:
        >>> x = jnp.ones((1, 2))
        >>> to_x0(jnp.zeros((1, 2)), x, 0.5, rectified_flow(), "eps").tolist()
        [[2.0, 2.0]]
    """
    if prediction == "x0":
        return value
    return combine(_coefficients(process, t, prediction), x, value)


def from_x0(x0: Tree, x: Tree, t: Array, process: Process, prediction: str) -> Tree:
    """The inverse of `to_x0`: what a network of that kind would have output; needs σ(t) > 0.

    Example:
        >>> x = jnp.ones((1, 2))
        >>> from_x0(2 * x, x, 0.5, rectified_flow(), "velocity").tolist()
        [[-2.0, -2.0]]
    """
    if prediction == "x0":
        return x0
    alpha, sigma = process.alpha(t), process.sigma(t)
    if prediction == "eps":
        share = 1 / sigma, -alpha / sigma
    elif prediction == "v":
        share = alpha / sigma, -(alpha**2 + sigma**2) / sigma
    elif prediction == "velocity":
        share = 1 / sigma, -(alpha + sigma) / sigma
    elif prediction == "score":
        share = -1 / sigma**2, alpha / sigma**2
    else:
        raise ValueError(
            f"unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}."
        )

    return combine(share, x, x0)


def convert(value: Tree, x: Tree, t: Array, process: Process, source: str, target: str) -> Tree:
    """A prediction of one kind, `source`, as another, `target`.

    Example:
        >>> x, eps = jnp.ones((1, 2)), jnp.zeros((1, 2))
        >>> convert(eps, x, 0.5, rectified_flow(), "eps", "velocity").tolist()
        [[-2.0, -2.0]]
    """
    if source == target:
        return value
    return from_x0(to_x0(value, x, t, process, source), x, t, process, target)


def x0_per_unit(process: Process, t: Array, space: str) -> Array:
    """∂x0/∂prediction at fixed x_t: what turns a difference in `space` into one in x0.

    At α = 0 an "eps" or "score" difference is 0/0; the factor is 0 there, so that a guided
    prediction falls back on the conditional one.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    if space in ("eps", "score"):
        live = alpha > 0
        scale = -sigma if space == "eps" else sigma**2
        return jnp.where(live, scale / jnp.where(live, alpha, 1), 0)
    return _coefficients(process, t, space)[1]


def bridge(process: Process, s: Array, t: Array, churn: Array) -> tuple[Array, Array, Array]:
    """Coefficients (A, B, C) of the DDIM bridge x_s = A x_t + B x0 + C ε, s < t.

    With r_ij = (α_t/α_s)^i (σ_s/σ_t)^j and churn e (Galashov et al. 2510.00815, Eqs. (2), (23)):
    A = e² r₁₂ + (1−e²) r₀₁;  B = α_s (1 − e² r₂₂ − (1−e²) r₁₁);
    C² = σ_s² (1 − (e² r₁₁ + 1 − e²)²).
    Whatever the churn, x_s | x0 ~ N(α_s x0, σ_s² I); e = 0 is DDIM, e = 1 is DDPM's posterior.

    Args:
        process: The noising process.
        s: Target time, scalar or (batch,).
        t: Current time, s < t.
        churn: e in [0, 1].

    Example:
        >>> a, b, c = bridge(rectified_flow(), 0.3, 0.7, 0.0)
        >>> [round(float(v), 4) for v in (a, b, c)]
        [0.4286, 0.5714, 0.0]
    """
    e2 = jnp.asarray(churn) ** 2
    alpha_s, sigma_s = process.alpha(s), process.sigma(s)
    r01 = sigma_s / process.sigma(t)
    r11 = process.alpha(t) / alpha_s * r01
    keep = e2 * r11 + (1 - e2)
    a = r01 * keep
    b = alpha_s * (1 - r11 * keep)
    # 1 − keep² factored: no cancellation to a small negative number at churn = 0.
    c = sigma_s * safe_sqrt(e2 * (1 - r11) * (1 + keep))
    return a, b, c
