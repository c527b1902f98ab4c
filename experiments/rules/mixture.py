"""Every rule on one 2-D mixture whose denoisers are exact: paths, endpoints and norms."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.rules.config import MIXTURE_STEPS, POINTS, PROCESS, guide, setting
from guidejax.analytic import ClassMixture, Mixture, denoiser, mixture, with_unconditional

# Every branch is a label of one exact model. The data are three forked arms, one a class.
LABELS = {
    "cond": 0,  # the arm that points up
    "negative": 1,  # the right-hand tip of every arm
    "other": 2,  # the tips of all arms
    "partial": 3,  # this arm and the next
    "weak": 4,  # the same arm, blurred
    "perturbed": 5,  # the same arm, its structure gone: one Gaussian
    "uncond": 6,
}
TIMES = gj.uniform_times(MIXTURE_STEPS)


def _arm(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Means (7, 2) and widths of an arm: three on the trunk, two on either tip."""
    trunk = [(0.0, r) for r in (0.2, 0.34, 0.48)]
    tips = [(side * x, y) for side in (-1, 1) for x, y in ((0.13, 0.62), (0.27, 0.76))]
    means = np.array(trunk + tips)
    c, s = np.cos(angle), np.sin(angle)
    return means @ np.array([[c, s], [-s, c]]), np.array([0.06] * 3 + [0.045] * 4)


def _of(means: Any, stds: Any) -> Mixture:
    return mixture(np.concatenate(means), stds=np.concatenate(stds))


@functools.cache
def model() -> ClassMixture:
    """The exact model of every label of `LABELS`."""
    arms = [_arm(angle) for angle in (0.0, -2 * np.pi / 3, 2 * np.pi / 3)]
    means, stds = zip(*arms, strict=True)
    own = _of(means[:1], stds[:1])
    spread = np.sqrt(np.diag(np.asarray(own.covariance())))
    parts = [
        own,
        _of([m[[5, 6]] for m in means], [s[[5, 6]] for s in stds]),
        _of([m[3:] for m in means], [s[3:] for s in stds]),
        _of(means[:2], stds[:2]),
        mixture(means[0], stds=np.hypot(stds[0], 0.2)),
        mixture(np.asarray(own.mean())[None], stds=spread[None]),
    ]
    return with_unconditional(parts, _of(means, stds))


class Drawn(NamedTuple):
    """What one rule does at one ω: x_t of every step (steps + 1, points, 2)."""

    omega: float
    path: np.ndarray


@functools.cache
def noise() -> jax.Array:
    """The noise that every rule starts from."""
    return jax.random.normal(jax.random.key(0), (POINTS, 2))


@functools.cache
def _gradient() -> gj.Denoiser:
    return gj.rules.input_gradient(denoiser(model(), PROCESS))


def run(name: str, omegas: Any = None) -> list[Drawn]:
    """The rule from the same noise at each of its weights."""
    chosen = setting(name)
    numbers = dict(chosen.mixture_numbers)
    if name == "recfg":
        numbers["ratio"] = _ratio()
    exact = denoiser(model(), PROCESS)
    labels = {branch: jnp.full(POINTS, label) for branch, label in LABELS.items()}
    cond, uncond = labels.pop("cond"), labels.pop("uncond")
    conditions: dict[str, Any] = {name: (exact, label) for name, label in labels.items()}
    conditions["gradient"] = (_gradient(), cond)
    drawn = []
    for omega in chosen.mixture if omegas is None else omegas:
        guidance = guide(name, omega, numbers)
        _, trail = gj.sample(
            jax.random.key(0), exact, noise(), cond=cond, uncond=uncond,
            conditions={name: conditions[name] for name in guidance.branches if name in conditions},
            guidance=guidance, times=TIMES, keep="all",
        )  # fmt: skip
        drawn.append(Drawn(omega, np.concatenate([noise()[None], trail.x])))
    return drawn


@functools.cache
def _ratio() -> gj.Weight:
    """ρ of ReCFG, measured on noised samples of the class."""
    times = jnp.linspace(0.05, 0.95, 16)
    key, other = jax.random.split(jax.random.key(1))
    x0 = model().sample(key, jnp.zeros(512, int))
    eps = jax.random.normal(other, x0.shape)

    @jax.jit
    def both(t):
        x = gj.processes.noise_to(PROCESS, x0, t, eps)
        found = [denoiser(model(), PROCESS)(x, t, jnp.full(512, label)) for label in (0, 6)]
        return [gj.processes.convert(x0, x, t, PROCESS, "x0", "eps") for x0 in found]

    cond, uncond = (jnp.stack(each) for each in zip(*map(both, times), strict=True))
    return gj.rules.recfg_table(times, cond, uncond, estimator="code")


def truth() -> np.ndarray:
    """Samples of the class itself, as many as the rules make."""
    return np.asarray(model().sample(jax.random.key(2), jnp.zeros(POINTS, int)))


def true_norm() -> np.ndarray:
    """Mean ‖x_t‖ of noised data of the class at every time of the grid."""
    eps = np.random.default_rng(0).normal(size=(POINTS, 2))
    x0 = truth()
    return np.array([np.linalg.norm((1 - t) * x0 + t * eps, axis=1).mean() for t in TIMES])


def density(label: str, side: np.ndarray) -> np.ndarray:
    """p(x | label) over a square of the given side."""
    x, y = np.meshgrid(side, side)
    points = jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1), jnp.float32)
    log = model().log_prob(points, jnp.zeros(()), jnp.full(len(points), LABELS[label]), PROCESS)
    return np.exp(np.asarray(log)).reshape(x.shape)
