"""Gaussian mixtures, exact at every noise level."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, accumulator, expand, is_concrete
from guidejax.processes import Process


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Σ_k w_k N(μ_k, Q_k diag(s_k²) Q_kᵀ); made by `mixture`.

    A pytree of traced leaves. Noised to time t it is Σ_k w_k N(α μ_k, Q_k diag(v_k) Q_kᵀ) with
    v_k = α² s_k² + σ², so that the posterior mean, the score and the density are closed forms,
    finite in float32 from t = 0 (σ = 0) to t = 1 (α = 0).

    States may have any shape (batch, ...) with d numbers a sample; `t` is a scalar or (batch,).

    Attributes:
        means: μ, (K, d).
        log_weights: log w, (K,), up to a constant.
        stds: s, (K, d): standard deviations along the axes, or along the columns of `basis`.
        basis: Q, (K, d, d), or None for the axes themselves.
    """

    means: Array
    log_weights: Array
    stds: Array
    basis: Array | None

    def denoise(self, x: Array, t: Array, process: Process) -> Array:
        """E[x0 | x_t = x] = Σ_k r_k Q_k (σ² Q_kᵀμ_k + α s_k² Q_kᵀx) / v_k.

        r are the `responsibilities`. A weighted mean of μ_k and x, so that nothing
        cancels at either end: it is x at t = 0 and the mixture's mean where α = 0.

        Args:
            x: x_t, (batch, ...).
            t: Time, scalar or (batch,).
            process: The noising process.

        Returns:
            x̂0, the shape and dtype of `x`.
        """
        return posterior(self, self.log_weights, x, t, process)[1]

    def score(self, x: Array, t: Array, process: Process) -> Array:
        """∇ log p_t(x) = −Σ_k r_k Q_k diag(1/v_k) Q_kᵀ (x − α μ_k); finite at σ = 0."""
        return posterior(self, self.log_weights, x, t, process)[2]

    def log_prob(self, x: Array, t: Array, process: Process) -> Array:
        """log p_t(x), (batch,); at t = 0 the density of the data."""
        return posterior(self, self.log_weights, x, t, process)[3]

    def responsibilities(self, x: Array, t: Array, process: Process) -> Array:
        """r_k = p(component k | x_t = x), (batch, K), by a softmax of log-densities."""
        return posterior(self, self.log_weights, x, t, process)[0]

    def sample(self, key: Array, n: int) -> Array:
        """`n` samples of the data, (n, d)."""
        return draw(self, key, jnp.broadcast_to(self.log_weights, (n, *self.log_weights.shape)))

    def mean(self) -> Array:
        """Σ_k w_k μ_k, (d,)."""
        return jnp.sum(jax.nn.softmax(self.log_weights)[:, None] * self.means, axis=0)

    def covariance(self) -> Array:
        """Σ_k w_k (Σ_k + (μ_k − μ̄)(μ_k − μ̄)ᵀ), (d, d)."""
        weights = jax.nn.softmax(self.log_weights)
        basis = jnp.eye(self.means.shape[1]) if self.basis is None else self.basis
        rows = basis * self.stds[:, None, :]
        centred = self.means - self.mean()
        within = jnp.einsum("k,kij,klj->il", weights, rows, rows, precision="highest")
        between = jnp.einsum("k,ki,kl->il", weights, centred, centred, precision="highest")
        return within + between


def mixture(
    means: Any, *, stds: Any = None, covariances: Any = None, weights: Any = None
) -> Mixture:
    """A Gaussian mixture of K components in d dimensions.

    Args:
        means: (K, d).
        stds: Positive: a number, (K,) or (K, d). 1 if neither this nor `covariances` is given.
        covariances: Symmetric, positive definite, (d, d) or (K, d, d), instead of `stds`.
        weights: Positive, (K,), up to a factor; equal by default.

    Raises:
        ValueError: If shapes don't fit, or a number that must be positive is not.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> two = mixture([[-1.0], [1.0]], stds=0.1)
        >>> x = jnp.array([[0.45]])
        >>> [round(float(two.denoise(x, t, rectified_flow())[0, 0]), 3) for t in (0.0, 0.5, 1.0)]
        [0.45, 0.714, 0.0]
    """
    means = _floating(means)
    if means.ndim != 2:
        raise ValueError(f"means must be (components, d), got shape {means.shape}.")
    k, d = means.shape
    if stds is not None and covariances is not None:
        raise ValueError("give `stds` or `covariances`, not both.")
    basis = None
    if covariances is not None:
        covariances = _floating(covariances)
        if covariances.shape not in ((d, d), (k, d, d)):
            raise ValueError(
                f"covariances must be {(d, d)} or {(k, d, d)}, got {covariances.shape}."
            )
        if is_concrete(covariances):
            gap = np.abs(np.asarray(covariances) - np.asarray(covariances).swapaxes(-1, -2)).max()
            if gap > 1e-3 * np.abs(np.asarray(covariances)).max():
                raise ValueError(f"covariances must be symmetric; they are {gap:g} off.")
        variances, basis = jnp.linalg.eigh(jnp.broadcast_to(covariances, (k, d, d)))
        _positive("the eigenvalues of the covariances", variances)
        spread = jnp.sqrt(variances)
    else:
        spread = _floating(1.0 if stds is None else stds)
        if spread.shape not in ((), (k,), (k, d)):
            raise ValueError(f"stds must be a number, {(k,)} or {(k, d)}, got {spread.shape}.")
        spread = jnp.broadcast_to(spread[:, None] if spread.ndim == 1 else spread, (k, d))
        _positive("stds", spread)
    weights = jnp.ones(k) if weights is None else _floating(weights)
    if weights.shape != (k,):
        raise ValueError(f"weights must be {(k,)}, got {weights.shape}.")
    _positive("weights", weights)
    return Mixture(means, jnp.log(weights), spread, basis)


def gaussian(mean: Any, std: Any = None, covariance: Any = None) -> Mixture:
    """One Gaussian: a mixture of one component.

    Args:
        mean: (d,).
        std: A number or (d,).
        covariance: (d, d), instead of `std`.

    Example:
        >>> gaussian(jnp.zeros(2), 0.5).covariance().tolist()
        [[0.25, 0.0], [0.0, 0.25]]
    """
    if std is not None and jnp.ndim(std):
        std = jnp.asarray(std)[None]
    return mixture(jnp.asarray(mean)[None], stds=std, covariances=covariance)


@jax.jit
def posterior(
    components: Mixture, log_weights: Array, x: Array, t: Array, process: Process
) -> tuple[Array, Array, Array, Array]:
    """(responsibilities, x̂0, score, log p_t), with log-weights (K,) or a row a sample, (batch, K).

    Jitted, so that by hand it is one program; under another jit what isn't used is dropped.
    """
    d = components.means.shape[1]
    if int(np.prod(x.shape[1:])) != d:
        raise ValueError(f"x has shape {x.shape}; expected (batch, ...) with {d} numbers a sample.")
    wide = accumulator(x.dtype)
    rows = x.reshape(x.shape[0], d).astype(wide)[:, None, :]
    alpha, sigma = (expand(c, rows).astype(wide) for c in (process.alpha(t), process.sigma(t)))
    means, stds = components.means.astype(wide), components.stds.astype(wide)
    rows, means = _turn(components.basis, rows), _turn_each(components.basis, means)
    variances = alpha**2 * stds**2 + sigma**2
    away = rows - alpha * means
    logits = jax.nn.log_softmax(log_weights.astype(wide), axis=-1) - 0.5 * jnp.sum(
        away**2 / variances + jnp.log(2 * jnp.pi * variances), axis=-1
    )
    shares = jax.nn.softmax(logits, axis=-1)
    clean = (sigma**2 * means + alpha * stds**2 * rows) / variances
    x0, score = (
        jnp.sum(shares[..., None] * _turn_back(components.basis, each), axis=1)
        for each in (clean, -away / variances)
    )
    log_prob = jax.nn.logsumexp(logits, axis=-1)
    x0, score = (a.reshape(x.shape).astype(x.dtype) for a in (x0, score))
    return shares, x0, score, log_prob


def draw(components: Mixture, key: Array, log_weights: Array) -> Array:
    """One sample of the data for each row of `log_weights` (n, K): (n, d)."""
    pick, spread = jax.random.split(key)
    index = jax.random.categorical(pick, log_weights)
    eps = jax.random.normal(spread, (index.shape[0], components.means.shape[1]))
    step = components.stds[index] * eps
    if components.basis is not None:
        step = jnp.einsum("nij,nj->ni", components.basis[index], step, precision="highest")
    return components.means[index] + step


def _turn(basis: Array | None, rows: Array) -> Array:
    """Q_kᵀ x for every component: (batch, 1, d) -> (batch, K, d)."""
    if basis is None:
        return rows
    return jnp.einsum("kij,bi->bkj", basis.astype(rows.dtype), rows[:, 0], precision="highest")


def _turn_each(basis: Array | None, means: Array) -> Array:
    """Q_kᵀ μ_k, (K, d)."""
    if basis is None:
        return means
    return jnp.einsum("kij,ki->kj", basis.astype(means.dtype), means, precision="highest")


def _turn_back(basis: Array | None, values: Array) -> Array:
    """Q_k y_k, (batch, K, d)."""
    if basis is None:
        return values
    return jnp.einsum("kij,bkj->bki", basis.astype(values.dtype), values, precision="highest")


def _floating(value: Any) -> Array:
    value = jnp.asarray(value)
    return value.astype(jnp.promote_types(value.dtype, jnp.result_type(float)))


def _positive(what: str, value: Array) -> None:
    if is_concrete(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{what} must be positive, got {np.asarray(value)}.")
