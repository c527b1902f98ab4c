"""Self-consistency: Galashov et al. 2510.00815, Algorithm 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, Tree, combine
from guidejax._denoisers import Denoiser
from guidejax._guidance import Guidance
from guidejax._random import fold_in, normal_like
from guidejax.objectives.base import (
    Batch,
    Networks,
    as_pytree,
    check_numbers,
    check_start,
    cross,
    groups,
    own,
    particle_keys,
    repeat,
    rewards_of,
)
from guidejax.processes.base import bridge, noise_to
from guidejax.weights.base import Step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelfConsistency:
    """See `self_consistency`."""

    beta: float = dataclasses.field(metadata={"static": True})
    lam: Any
    particles: int = dataclasses.field(metadata={"static": True})
    churn: Any
    min_gap: Any
    s_min: Any
    t_max: Any
    reward: Callable[[Tree, Any], Array] | None
    reward_weight: Any

    def times(self, keys: Array) -> tuple[Array, Array]:
        """(s, t) of each example: t − s ≥ min_gap, s_min ≤ s, t ≤ t_max (Algorithm 1, line 2)."""
        u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        s = self.s_min + u[:, 0] * (self.t_max - self.min_gap - self.s_min)
        gap = self.min_gap + u[:, 1] * (self.t_max - s - self.min_gap)
        return s, jnp.minimum(s + gap, self.t_max)

    def check(self, denoise: Denoiser) -> None:
        """Raise `ValueError` where the denoiser says nothing of x0 at t_max."""
        check_start(self.t_max, denoise)

    def __call__(
        self,
        keys: Array,
        guidance: Guidance,
        denoise: Denoiser,
        batch: Batch,
        networks: Networks = MappingProxyType({}),
    ) -> Array:
        """Losses (batch,), from one key an example: Algorithm 1, by its lines."""
        m, process = self.particles, denoise.process
        s, t = self.times(fold_in(keys, 0))  # 2
        row = guidance.row(Step(s, t, batch.cond, process))  # ω once an example, not a particle
        (x0, cond, conditions), s, t, row = repeat((batch, s, t, row), m)
        true = noise_to(process, x0, s, normal_like(particle_keys(keys, 1, m), x0))  # 3
        x = noise_to(process, x0, t, normal_like(particle_keys(keys, 2, m), x0))  # 4
        # x_t doesn't depend on ω: the networks are evaluated, never differentiated.
        found = {"cond": denoise(x, t, cond)}
        for name in guidance.branches[1:]:
            found[name] = networks.get(name, denoise)(x, t, conditions[name])
        found = jax.lax.stop_gradient(found)
        step = Step(s, t, cond, process, x=x)
        guided, _ = guidance.apply(guidance.init(x), found, step, row)  # 5
        noise = normal_like(particle_keys(keys, 3, m), x)
        moved = combine(bridge(process, s, t, self.churn), x, guided, noise)  # 6
        moved, true = groups(moved, m), groups(true, m)
        terms = cross(moved, true, self.beta) - self.lam / 2 * own(moved, self.beta)
        loss = jnp.mean(terms, axis=-1)  # 7, Eq. (22)
        if self.reward is not None:
            rewards = rewards_of(self.reward, guided, cond).reshape(-1, m)
            loss = loss - self.reward_weight * jnp.mean(rewards, axis=-1)
        return loss


def self_consistency(
    beta: float = 1.75,
    particles: int = 4,
    lam: float = 1.0,
    *,
    churn: float = 1.0,
    min_gap: float = 0.1,
    s_min: float = 0.0,
    t_max: float = 0.99,
    reward: Callable[[Tree, Any], Array] | None = None,
    reward_weight: float = 0.0,
) -> SelfConsistency:
    """Self-consistency: a guided step from t to s should look like true noise at s.

    For each example (x0, c), with true particles x^k ~ p_{s|0}(·|x0) and guided ones x̃^j that
    were noised to t, denoised with ω_{c,(s,t)} and stepped to s along the bridge:
    1/m² Σ_jk ‖x̃^j − x^k‖^β − λ/(2m(m−1)) Σ_{j≠k} ‖x̃^j − x̃^k‖^β
    (Galashov et al. 2510.00815, Eqs. (18)–(22), Algorithm 1). The norm is over the whole sample,
    not divided by its dimension. With a reward the loss of an example is less
    `reward_weight` · mean_j R(x̂0(x^j_t, c; ω), c), on the one-step guided prediction.

    Args:
        beta: β in (0, 2].
        particles: m; at least 2 where λ > 0.
        lam: λ in [0, 1]; a proper distance at λ = 1, β < 2 alone.
        churn: e of the bridge in training; the paper trains with 1 and samples with 0.
        min_gap: δ, the least t − s; the paper finds 0.1 better than the sampler's own step.
        s_min: S_min, the least s.
        t_max: 1 − ζ, the greatest t.
        reward: `reward(x0, cond) -> (batch,)`, differentiable in x0.
        reward_weight: γ_R ≥ 0.

    Raises:
        ValueError: If a number is out of its range or no s < t is left.

    Example:
        >>> self_consistency(beta=1.75, particles=4).particles
        4
    """
    check_numbers(beta, lam, reward, reward_weight)
    if particles < 1 or (lam > 0 and particles < 2):
        raise ValueError(f"expected particles ≥ 2 where lam > 0, else ≥ 1; got {particles}.")
    if not 0 <= churn <= 1:
        raise ValueError(f"expected churn in [0, 1], got {churn}.")
    # To a rounding: (0.1, 0.3) is pinned by s_min = 0.1, min_gap = 0.2, t_max = 0.3.
    if not (min_gap > 0 and s_min >= 0 and t_max <= 1 and s_min + min_gap <= t_max + 1e-9):
        raise ValueError(
            f"expected 0 ≤ s_min, 0 < min_gap, s_min + min_gap ≤ t_max ≤ 1; got s_min={s_min}, "
            f"min_gap={min_gap}, t_max={t_max}."
        )
    return SelfConsistency(
        float(beta), lam, particles, churn, min_gap, s_min, t_max, as_pytree(reward), reward_weight
    )


def l2(particles: int = 1, **options: Any) -> SelfConsistency:
    """The l2 variant, Eq. (21): E‖x̃_s(ω) − x_s‖², self-consistency with β = 2 and λ = 0.

    It over-guides: even with an exact denoiser its minimum is ω = r₁₁/(1 − r₁₁) > 0 without
    churn, r₂₂/(1 − r₂₂) with full churn, and both grow without bound as s → t.

    Args:
        particles: Particles averaged over.
        **options: `churn`, `min_gap`, `s_min`, `t_max`, `reward`, `reward_weight`, as for
            `self_consistency`.

    Example:
        >>> l2().beta, l2().lam
        (2.0, 0.0)
    """
    return self_consistency(beta=2.0, particles=particles, lam=0.0, **options)
