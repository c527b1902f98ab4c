"""The mixtures whose denoisers are exact: unit Gaussians for the theory, latents for the rules."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.angle import theory
from guidejax.analytic import ClassMixture, by_class, denoiser, mixture

PROCESS = gj.processes.rectified_flow()
RADIUS = 1.5


class Setting(NamedTuple):
    """Unit Gaussians at `means` (K, d); the class is component 0, and n the unit `normal` (d,)."""

    means: np.ndarray
    normal: np.ndarray
    about: str

    @property
    def model(self) -> ClassMixture:
        """Every component a class."""
        return by_class(mixture(self.means, stds=1.0), np.arange(len(self.means)))


def _ring(count: int, radius: float) -> np.ndarray:
    angle = np.pi / 2 + 2 * np.pi * np.arange(count) / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


SETTINGS = {
    "pair": Setting(
        theory.pair(RADIUS, 16), np.eye(16)[0], "two classes in 16 dimensions, 3 apart"
    ),
    "triangle": Setting(
        _ring(3, 2.0), np.array([0.0, 1.0]), "three classes in the plane, 2 from the origin"
    ),
    "inner": Setting(
        np.concatenate([np.zeros((1, 2)), _ring(4, 2.0)]), np.array([0.0, 1.0]),
        "a class at the origin among four at 2: not on the surface",
    ),
}  # fmt: skip

# Latents of 4 × 4 with 4 channels, of variance 1 over all classes, as a VAE's are scaled.
SHAPE, CLASSES, SPREAD, LEAK = (4, 4, 4), 8, 0.8, 0.4


@functools.cache
def latent_means() -> np.ndarray:
    """μ of every class, (8, 64), of length √(64 (1 − 0.8²)) in directions drawn once."""
    found = np.random.default_rng(0).normal(size=(CLASSES, int(np.prod(SHAPE))))
    length = np.sqrt(found.shape[1] * (1 - SPREAD**2))
    return length * found / np.linalg.norm(found, axis=1, keepdims=True)


@functools.cache
def latents(leak: float = LEAK) -> ClassMixture:
    """Eight classes of latents; the conditional model gives other classes `leak` of its mass.

    That is what an under-trained model does, and what guidance is for: with 0 it is exact and ω = 0
    is best.
    """
    own = np.eye(CLASSES, dtype=bool)
    table = np.where(own, 1 - leak, leak / (CLASSES - 1))
    table = np.concatenate([table, np.full((1, CLASSES), 1 / CLASSES)])
    with np.errstate(divide="ignore"):
        return ClassMixture(mixture(latent_means(), stds=SPREAD), jnp.log(jnp.asarray(table)))


def run(
    model: ClassMixture, noise: jax.Array, cond: Any, guidance: gj.Guidance, steps: int,
    solver: gj.solvers.Solver | None = None, keep: Any = "final",
) -> Any:  # fmt: skip
    """`gj.sample` with the exact denoiser on the uniform grid."""
    return gj.sample(
        jax.random.key(0), denoiser(model, PROCESS), noise, cond=cond, uncond=model.null,
        guidance=guidance, times=gj.uniform_times(steps), solver=solver, keep=keep,
    )  # fmt: skip
