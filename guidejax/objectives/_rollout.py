"""Rollout consistency: whole guided samples beside real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, combine
from guidejax._denoisers import Denoiser
from guidejax._guidance import Guidance
from guidejax._random import fold_in, normal_like
from guidejax._sampling import sample
from guidejax._times import uniform_times
from guidejax.objectives.base import (
    Batch,
    Networks,
    as_pytree,
    check_numbers,
    check_start,
    cross,
    groups,
    own,
    rewards_of,
)
from guidejax.objectives.features import pixels
from guidejax.solvers._ddim import ddim
from guidejax.solvers.base import Solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """See `rollout`."""

    features: tuple[Any, ...]
    particles: int = dataclasses.field(metadata={"static": True})
    pooled: float = dataclasses.field(metadata={"static": True})
    times: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    beta: float = dataclasses.field(metadata={"static": True})
    lam: Any
    solver: Solver
    remat: Literal["none", "step"] = dataclasses.field(metadata={"static": True})
    reward: Callable[[Tree, Any], Array] | None
    reward_weight: Any

    def check(self, denoise: Denoiser) -> None:
        """Raise `ValueError` where the denoiser says nothing of x0 at the first time."""
        check_start(self.times[0], denoise)

    def __call__(
        self,
        keys: Array,
        guidance: Guidance,
        denoise: Denoiser,
        batch: Batch,
        networks: Networks = MappingProxyType({}),
    ) -> Array:
        """Losses (batch,), from one key an example; a group's mean is its distance."""
        size = keys.shape[0]
        if size % self.particles:
            raise ValueError(
                f"rollout compares groups of {self.particles} samples of one condition; got a "
                f"batch of {size}, which is no multiple of it."
            )
        denoise, networks = jax.lax.stop_gradient((denoise, dict(networks)))
        noise = normal_like(fold_in(keys, 0), batch.x0)
        noise = combine((denoise.process.sigma(jnp.asarray(self.times[0])),), noise)
        conditions = {
            name: (networks[name], cond) if name in networks else cond
            for name, cond in batch.conditions.items()
        }
        x0 = sample(
            fold_in(keys, 1), denoise, noise, cond=batch.cond, conditions=conditions,
            guidance=guidance, solver=self.solver, times=np.asarray(self.times), remat=self.remat,
        )  # fmt: skip
        # (samples compared, share of the loss): each condition alone, the batch as a whole.
        levels = ((self.particles, 1 - self.pooled), (size, self.pooled))
        loss = jnp.zeros(size)
        for feature in self.features:
            ours, real = feature(x0), feature(batch.x0)
            for count, share in levels:
                if share:
                    loss += share / len(self.features) * self._distance(ours, real, count)
        if self.reward is not None:
            loss = loss - self.reward_weight * rewards_of(self.reward, x0, batch.cond)
        return loss

    def _distance(self, ours: Array, real: Array, size: int) -> Array:
        """Each sample's share of the energy distance within every `size` samples: (batch,)."""
        ours, real = groups(ours, size), groups(real, size)
        # The real samples' own term doesn't depend on ω: with it the loss is a distance.
        self_terms = own(ours, self.beta) + jnp.mean(own(real, self.beta), axis=-1, keepdims=True)
        return (cross(ours, real, self.beta) - self.lam / 2 * self_terms).reshape(-1)


def rollout(
    features: Sequence[Callable[[Array], Array]] = (pixels,),
    particles: int = 24,
    steps: int = 16,
    *,
    pooled: float = 0.0,
    beta: float = 1.0,
    lam: float = 1.0,
    times: Array | None = None,
    solver: Solver | None = None,
    remat: Literal["none", "step"] = "step",
    reward: Callable[[Tree, Any], Array] | None = None,
    reward_weight: float = 0.0,
) -> Rollout:
    """Rollout consistency: whole guided samples should look like real ones of their condition.

    Runs the sampler from noise with ω_φ and takes, for each condition and feature space f, the
    energy distance of the generated samples x and the real ones y,
    E‖f(x) − f(y)‖^β − λ/2 (E‖f(x) − f(x')‖^β + E‖f(y) − f(y')‖^β), unbiased, averaged over the
    feature spaces. The gradient runs back through the scan, so that it is pathwise; the variance
    for which Galashov et al. 2510.00815 set marginal consistency aside (their Eq. (15)) is that of
    matching marginals at random (s, t). One feature space alone can be fooled; give several.
    With β = 2 and features from `frechet_moments` the distance is a Fréchet distance.

    Args:
        features: Functions of images, `feature(x0) -> (batch, ...)`, each best scaled by
            `unit_spread`; networks as `jax.tree_util.Partial(fn, params)`.
        particles: Samples a condition. A batch is blocks of that many examples of one condition,
            as `guidejax.data.grouped` gives.
        steps: Steps of the sampler, uniform in t.
        pooled: Share in [0, 1] of the loss that compares the batch as a whole, over its
            conditions, in place of each condition alone: 0 matches the conditional
            distributions, 1 the marginal one. Under a mesh "the batch" is a device's part of it.
        beta: β in (0, 2).
        lam: λ in [0, 1]; 1 is the distance.
        times: Another grid, in place of `steps`.
        solver: DDIM without churn by default.
        remat: "step" recomputes activations in the backward pass; "none" keeps them.
        reward: `reward(x0, cond) -> (batch,)` of the final samples, differentiable in x0.
        reward_weight: γ_R ≥ 0.

    Raises:
        ValueError: If a number is out of its range; at the first call, if the batch is no multiple
            of `particles`.

    Example:
        >>> len(rollout(particles=8).times)
        17
    """
    if not features:
        raise ValueError("rollout expects at least one feature space.")
    if particles < 2:
        raise ValueError(f"rollout expects particles ≥ 2, got {particles}.")
    if not 0 <= pooled <= 1:
        raise ValueError(f"rollout expects pooled in [0, 1], got {pooled}.")
    if remat not in ("none", "step"):
        raise ValueError(f"rollout expects remat 'none' or 'step', got {remat!r}.")
    check_numbers(beta, lam, reward, reward_weight)
    grid = np.asarray(uniform_times(steps) if times is None else times, float)
    falls = grid.ndim == 1 and grid.size > 1 and bool(np.all(np.diff(grid) < 0))
    if not (falls and grid[0] <= 1 and grid[-1] >= 0):
        raise ValueError(f"rollout expects times that fall within [0, 1], got {times}.")
    return Rollout(
        tuple(as_pytree(feature) for feature in features),
        particles,
        float(pooled),
        tuple(grid.tolist()),
        float(beta),
        lam,
        ddim() if solver is None else solver,
        remat,
        as_pytree(reward),
        reward_weight,
    )
