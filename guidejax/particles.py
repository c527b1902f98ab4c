"""Feynman-Kac particles: weights and resampling by which guided samples are those of a product."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, square_norm
from guidejax.processes import Process


def fkc_log_weight(
    cond: Array, uncond: Array, omega: Array, process: Process, s: Array, t: Array
) -> Array:
    """Feynman-Kac increment of each particle's log-weight for a guided stochastic step t → s.

    ½ ω (ω + 1) (ς_t² − ς_s²) ‖c − u‖²/ς_t⁴, ς = σ/α (Skreta et al. 2503.02819, Proposition 3.1, in
    EDM's x/α). Particles that follow the reverse SDE under CFG, weighted so, sample the product
    p(x|c)^(ω+1) p(x)^(−ω), which CFG alone does not.

    Args:
        cond: Conditional clean prediction c at (x_t, t), (particles, ...).
        uncond: Unconditional clean prediction u, the same shape.
        omega: ω, scalar or (particles,).
        process: The noising process.
        s: Target time.
        t: Current time, s < t.

    Returns:
        (particles,) what to add to the log-weights: 0 at ω = 0 and at ω = −1.

    Example:
        >>> from guidejax.processes import edm
        >>> c, u = jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2))
        >>> process = edm(sigma_max=1.0, rho=1.0)
        >>> round(float(fkc_log_weight(c, u, 1.0, process, 0.6, 1.0)[0]), 4)
        16.0
    """
    omega = jnp.asarray(omega)
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    left = (process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))) ** 2
    return omega * (omega + 1) / 2 * snr * (1 - left) * square_norm(cond - uncond)


def effective_sample_size(log_weights: Array) -> Array:
    """(Σ w)²/Σ w² over the last axis: from 1, one particle has it all, to their number.

    Example:
        >>> round(float(effective_sample_size(jnp.log(jnp.array([0.5, 0.25, 0.25])))), 4)
        2.6667
    """
    total, squares = (jax.nn.logsumexp(k * log_weights, axis=-1) for k in (1, 2))
    return jnp.exp(2 * total - squares)


def systematic_resample(key: Array, log_weights: Array) -> Array:
    """Ancestors of a resampled population: particle i has ⌊N w_i⌋ or ⌈N w_i⌉ children.

    One uniform number u, and the ancestors are the quantiles of w at (u + 0 … N − 1)/N. After it
    the weights are equal again. Usually done where `effective_sample_size` falls under N/2.

    Args:
        key: A random key.
        log_weights: (particles,), finite or −∞; `jax.vmap` over groups.

    Returns:
        (particles,) indices: `x = x[systematic_resample(key, log_weights)]`.

    Raises:
        ValueError: If there is more than one axis.

    Example:
        >>> weights = jnp.array([0.5, 0.0, 0.25, 0.25])
        >>> systematic_resample(jax.random.key(0), jnp.log(weights)).tolist()
        [0, 0, 2, 3]
    """
    if log_weights.ndim != 1:
        raise ValueError(
            f"systematic_resample expects log_weights (particles,), got {log_weights.shape}; of "
            "groups, jax.vmap(systematic_resample)(keys, log_weights)."
        )
    n = log_weights.shape[-1]
    edges = jnp.cumsum(jax.nn.softmax(log_weights))
    points = (jnp.arange(n) + jax.random.uniform(key, dtype=edges.dtype)) / n
    # The last edge is the sum itself, so that no point lies beyond a rounded 0.9999999.
    return jnp.searchsorted(edges / edges[-1], points, side="right").clip(0, n - 1)
