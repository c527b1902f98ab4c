"""Closed forms for CFG on mixtures of unit Gaussians, in float64 and without a simulation.

p(x0) = Σ_i π_i N(μ_i, I) with equal π, the class y is one component, and rectified flow has
x_t = (1 − t) x0 + t ε. Write c_t = (1 − t)² + t² and m(x) = Σ_i r_i(x, t) μ_i for the mean of the
component that x belongs to. Jin et al. 2506.11039 state Theorems 3.2 and 3.3 for such mixtures; the
formulas here are derived from them, not copied.
"""

from __future__ import annotations

import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats


def mean_of(x: np.ndarray, t: np.ndarray | float, means: np.ndarray) -> np.ndarray:
    """m(x) = Σ_i r_i μ_i, r = softmax(((1 − t) x·μ_i − (1 − t)² ‖μ_i‖²/2) / c_t).

    Args:
        x: x_t, (..., d).
        t: Times, broadcast against (...).
        means: μ, (K, d).

    Returns:
        (..., d).
    """
    t = np.asarray(t, np.float64)[..., None]
    logits = (1 - t) * (x @ means.T) - (1 - t) ** 2 * np.sum(means**2, axis=1) / 2
    logits = logits / ((1 - t) ** 2 + t**2)
    return scipy.special.softmax(logits, axis=-1) @ means


def gain_along(
    path: np.ndarray, times: np.ndarray, means: np.ndarray, y: int, normal: np.ndarray, omega: float
) -> np.ndarray:
    """n·(x0 of CFG − x0 of the conditional model) from the same noise, by the guided path alone.

    ω ∫₀¹ t c_t^(−3/2) n·(μ_y − m(x_t)) dt, because x_t/√c_t has no other term of its own: positive
    for every path where n·(μ_y − μ_i) ≥ 0 for all i. That is Theorem 3.2, pathwise. The integral is
    Simpson's on the grid.

    Args:
        path: x_t of CFG, (steps + 1, batch, d).
        times: (steps + 1,), falling from 1 to 0.
        means: μ, (K, d).
        y: Index of the class.
        normal: n, (d,).
        omega: ω.

    Returns:
        (batch,).
    """
    times = np.asarray(times, np.float64)
    inside = (means[y] - mean_of(np.asarray(path, np.float64), times[:, None], means)) @ normal
    weight = times * ((1 - times) ** 2 + times**2) ** -1.5
    return -omega * scipy.integrate.simpson(weight[:, None] * inside, x=times, axis=0)


def pair(radius: float, dimension: int) -> np.ndarray:
    """Means ±radius along the first axis, (2, d); the class is the first."""
    means = np.zeros((2, dimension))
    means[:, 0] = radius, -radius
    return means


def pair_end(start: np.ndarray, omega: float, radius: float) -> np.ndarray:
    """n·x0 of CFG on `pair` from n·x_1 = `start`, both (batch,).

    Along n the ODE is one of a single variable, y = n·x_t/√c_t:
    dy/dt = −t c_t^(−3/2) (R + ω (R − m)), m = R tanh((1 − t) R y/√c_t). Solved to 10⁻¹⁰.
    """

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        c = (1 - t) ** 2 + t**2
        m = radius * np.tanh((1 - t) * radius * y / np.sqrt(c))
        return -t * c**-1.5 * (radius + omega * (radius - m))

    start = np.asarray(start, np.float64)
    return scipy.integrate.solve_ivp(slope, (1.0, 0.0), start, rtol=1e-10, atol=1e-10).y[:, -1]


def pair_moments(omega: float, radius: float, nodes: int = 80) -> tuple[float, float]:
    """(E n·x0, E (n·x0)²) of CFG on `pair`: `pair_end` at the nodes of Gauss and Hermite.

    Across n the samples stay N(0, I), so that E‖x0‖² = E (n·x0)² + d − 1.
    """
    start, weights = np.polynomial.hermite_e.hermegauss(nodes)
    end, weights = pair_end(start, omega, radius), weights / weights.sum()
    return float(weights @ end), float(weights @ end**2)


def width(omega: float, t: float, means: np.ndarray, y: int, normal: np.ndarray) -> float:
    """The largest δ at which the guided score opposes the conditional one, on the line along n.

    At x = (1 − t) μ_y + δ n, ⟨guided score, conditional score⟩ ≤ 0 exactly where
    0 ≤ δ ≤ ω (1 − t) n·(μ_y − m(x)), for μ_y − m along n. The right side falls with δ, so that
    there is one root: Theorem 3.3 with the region's width.
    """
    limit = omega * (1 - t)

    def excess(delta: float) -> float:
        x = (1 - t) * means[y] + delta * normal
        return limit * float((means[y] - mean_of(x, t, means)) @ normal) - delta

    return float(scipy.optimize.brentq(excess, 0, excess(0.0), xtol=1e-13))


def region_share(omega: float, t: float, radius: float, dimension: int) -> float:
    """P(⟨guided score, conditional score⟩ ≤ 0) for x_t of the class itself, on `pair`.

    With z = x − (1 − t) μ_y the region is ‖z‖² ≤ ω (1 − t) z·(μ_y − m): a ball where m is constant,
    that touches (1 − t) μ_y and lies outwards of it. z ~ N(0, c_t I) and m depends on z₁ alone:
    ∫ N(z₁; 0, c_t) F((ω (1 − t) z₁ (R − m) − z₁²) / c_t) dz₁, F that of χ² with d − 1 degrees.
    """
    c, means = (1 - t) ** 2 + t**2, pair(radius, 1)
    edge = width(omega, t, means, 0, np.ones(1))

    def density(z: float) -> float:
        gap = radius - float(mean_of(np.array([(1 - t) * radius + z]), t, means)[0])
        room = (omega * (1 - t) * z * gap - z**2) / c
        return scipy.stats.norm.pdf(z, 0, c**0.5) * scipy.stats.chi2.cdf(room, dimension - 1)

    return float(scipy.integrate.quad(density, 0, edge, epsabs=1e-10)[0])


def official(
    cond: np.ndarray, uncond: np.ndarray, omega: float
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The clean prediction as the authors' program computes it, line by line, and θ.

    It turns by (ω·1[ω > 0] + 10⁻³) θ, at most 3.14/3, takes θ by an arccos whose argument isn't
    clamped, and divides by sin θ before it masks the quotient (`ADG_SD3` of the authors'
    repository; one sample a call there, rows here).

    Args:
        cond: c, (batch, d).
        uncond: u, (batch, d).
        omega: ω, their `guidance_scale` less 1.

    Returns:
        The guided prediction (batch, d), NaN where the program's is, and θ (batch,).
    """
    k = omega * (omega > 0) + 1e-3
    length = lambda v: np.linalg.norm(v, axis=1)  # noqa: E731
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.sum((cond / length(cond)[:, None]) * (uncond / length(uncond)[:, None]), axis=1)
        theta = np.arccos(cosine)
        turn = np.clip(k * theta, -3.14 / 3, 3.14 / 3)
        difference = cond - uncond
        share = np.sum(difference * uncond, axis=1) / (np.sum(uncond**2, axis=1) + 1e-8)
        e = difference - share[:, None] * uncond
        wide = np.sin(theta) > 1e-3
        ratio = wide * (np.sin(turn) / np.sin(theta)) + ~wide * k
        return np.cos(turn)[:, None] * cond + ratio[:, None] * e, theta
