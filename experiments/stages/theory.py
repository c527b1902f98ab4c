"""The setting's closed forms that the library doesn't hold, in NumPy: means, norms, ODE limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.integrate
import scipy.special

from experiments.stages.config import STD, Setting


def mean_factor(std: float, omega: float) -> float:
    """Mean of the guided samples of a single mode N(μ, std² I), over μ.

    With a = (1 − t)² + t² and b = (1 − t)² std² + t² the mean m of the probability flow follows
    dm/dt = m · d log(b^{w/2} a^{(1 − w)/2})/dt − w t μ/b, w = 1 + ω, from m = 0 at t = 1, so that

        m_0 / μ = w std^w ∫₀¹ s a^{(w − 1)/2} b^{−w/2 − 1} ds.

    Example:
        >>> round(mean_factor(0.5, 0.0), 6), round(mean_factor(0.5, 1.0), 3)
        (1.0, 1.38)
    """
    w = 1 + omega

    def rate(s: float) -> float:
        a, b = (1 - s) ** 2 + s**2, (1 - s) ** 2 * std**2 + s**2
        return s * a ** ((w - 1) / 2) * b ** (-w / 2 - 1)

    near = min(5 * std, 0.9)  # where the integrand has its peak
    total = sum(scipy.integrate.quad(rate, *ends)[0] for ends in ((0, near), (near, 1)))
    return w * std**w * total


def mean_norm(mean: float, std: float) -> float:
    """E‖x‖ of a 2-D Gaussian whose mean has the length `mean`: Rice's distribution.

    std √(π/2) e^(−y/2) ((1 + y) I₀(y/2) + y I₁(y/2)), y = mean²/(2 std²).

    Example:
        >>> round(mean_norm(3.0, 1e-3), 4)
        3.0
    """
    y = mean**2 / (2 * std**2)
    scaled = (1 + y) * scipy.special.ive(0, y / 2) + y * scipy.special.ive(1, y / 2)
    return float(std * np.sqrt(np.pi / 2) * scaled)


def velocity(setting: Setting, omega: float, t: float, x: np.ndarray) -> np.ndarray:
    """The guided velocity v = v_c + ω (v_c − v_u) of the setting, without singularities.

        v_u = −x (1 − 2t)/a,   v_c = −(x ((1 − t) std² − t) + t m)/b,

    m the mean of μ_k under the posterior of the mode: (batch, d) -> (batch, d).
    """
    a, b = (1 - t) ** 2 + t**2, (1 - t) ** 2 * STD**2 + t**2
    away = ((x[:, None] - (1 - t) * setting.means) ** 2).sum(-1)
    r = np.asarray(setting.weights) * np.exp(-(away - away.min(1, keepdims=True)) / (2 * b))
    m = (r / r.sum(1, keepdims=True)) @ setting.means
    uncond = -x * (1 - 2 * t) / a
    cond = -(x * ((1 - t) * STD**2 - t) + t * m) / b
    return cond + omega * (cond - uncond)


def limit(setting: Setting, omega: float, noise: Any) -> np.ndarray:
    """Where the probability flow under a constant ω takes noise, in float64: (batch, d)."""
    start = np.asarray(noise, np.float64)

    def flow(t: float, x: np.ndarray) -> np.ndarray:
        return velocity(setting, omega, t, x.reshape(start.shape)).ravel()

    found = scipy.integrate.solve_ivp(
        flow, (1.0, 0.0), start.ravel(), method="DOP853", rtol=1e-7, atol=1e-9
    )
    return found.y[:, -1].reshape(start.shape)
