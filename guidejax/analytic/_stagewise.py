"""The setting of the stage-wise analysis of guidance, and what is known of it in closed form.

Jin, Shi, Gu, arXiv 2509.22007, Assumption 3.1: the unconditional model is N(0, I), not the sum of
the classes, and the conditional one a mixture of equally wide Gaussians. The paper's ω is 1 + ω
here.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from guidejax._arrays import Array
from guidejax.analytic._mixture import gaussian, mixture
from guidejax.analytic.classes import ClassMixture, with_unconditional
from guidejax.processes import Process, rectified_flow
from guidejax.weights.base import as_weight


def stagewise(
    means: Any = ((-1.5, 1.5), (1.5, 1.5)), weights: Any = (0.3, 0.7), std: Any = 0.3
) -> ClassMixture:
    """The paper's setting: label 0 is Σ_k π_k N(μ_k, std² I), the null label 1 is N(0, I).

    The paper prints no numbers for it; the defaults are a weak and a strong mode.

    Args:
        means: μ, (K, d).
        weights: π, (K,).
        std: Width of every mode, below 1 in the paper.

    Example:
        >>> import jax
        >>> stagewise().sample(jax.random.key(0), jnp.zeros(3, int)).shape
        (3, 2)
    """
    means = jnp.asarray(means, jnp.result_type(float))
    modes = mixture(means, stds=std, weights=weights)
    return with_unconditional([modes], gaussian(jnp.zeros(means.shape[1]), 1.0))


def contraction(std: Any, omega: Any, times: Any, process: Process | None = None) -> Array:
    """‖x_s − z_s‖ / ‖x_t − z_t‖ of two guided paths in one mode, from times[0] to times[-1].

    With a = α² + σ² and b = α² std² + σ², the variances of the noised N(0, I) and of the mode, the
    probability-flow ODE under guidance is d log δ = (1 + ω) d log √b − ω d log √a, so that a step
    with a constant ω has, exactly,

        δ_s / δ_t = √(b_s / b_t) · ((b_s / a_s) / (b_t / a_t))^(ω/2).

    The concentration stage, Theorem 3.5 of Jin et al. 2509.22007, with its rate. ω below 0
    spreads, 0 is the conditional model.

    Args:
        std: Width of the mode, a number.
        omega: ω: a number or a `Weight`, constant over each step of the grid.
        times: Falling times, (steps + 1,); a fine grid makes a smooth schedule of it.
        process: Rectified flow by default, as in the paper.

    Returns:
        The factor, a scalar, or (batch,) for (batch,) ω.

    Example:
        >>> round(float(contraction(0.5, 1.0, jnp.array([1.0, 0.0]))), 6)
        0.25
    """
    if jnp.ndim(std):
        raise ValueError(f"expected one width, got shape {jnp.shape(std)}: one mode at a time.")
    process = rectified_flow() if process is None else process
    times = jnp.asarray(times, jnp.result_type(float))
    row = as_weight(omega).table(times, process=process)
    signal, noise = process.alpha(times) ** 2, process.sigma(times) ** 2
    log_b = jnp.log(signal * jnp.asarray(std) ** 2 + noise)
    log_ratio = log_b - jnp.log(signal + noise)
    fall = jnp.diff(log_ratio).reshape((-1,) + (1,) * (row.ndim - 1))
    return jnp.exp((log_b[-1] - log_b[0] + jnp.sum(row * fall, axis=0)) / 2)


def within_mode_std(std: Any, omega: Any, times: Any = (1.0, 0.0)) -> Array:
    """Width of the samples of a single mode after a full run of rectified flow from N(0, I).

    std · exp(−∫₀¹ ω(t) K(t) dt), K(t) = t (1 − t) (1 − std²) / (a b), ∫K = log(1/std): for a
    constant ω it is std^(1 + ω) (from Theorem 3.5 of Jin et al. 2509.22007; `contraction` with the
    width 1 of the noise). K peaks at a time of its own: guidance there narrows modes most.

    Args:
        std: Width of the mode, a number.
        omega: ω: a number, (batch,) numbers or a `Weight`.
        times: The grid on whose steps ω is constant.

    Example:
        >>> round(float(within_mode_std(0.5, 2.0)), 6)
        0.125
    """
    return contraction(std, omega, times)


def nearest_mode(x: Array, means: Any) -> Array:
    """Index of the mean nearest to each sample: (batch, d), (K, d) -> (batch,); −1 of NaN.

    Example:
        >>> nearest_mode(jnp.array([[0.9], [-3.0]]), jnp.array([[-1.0], [1.0]])).tolist()
        [1, 0]
    """
    away = x[:, None, :] - jnp.asarray(means)[None]
    square = jnp.sum(away**2, axis=-1)
    return jnp.where(jnp.isnan(square).any(axis=-1), -1, jnp.argmin(square, axis=-1))
