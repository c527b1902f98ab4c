"""What a learned ω minimises, one loss an example.

An objective is `objective(keys, guidance, denoise, process, batch) -> (batch,) losses`. Its
gradient reaches ω alone: the denoiser's parameters are held fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, Tree, tree_map
from guidejax.guidance import Guidance
from guidejax.metrics.energy import pairwise_distance_power
from guidejax.processes import Process, bridge, noise_to
from guidejax.sampling import sample, uniform_times
from guidejax.solvers.base import Solver, combine, fold_in, normal_like
from guidejax.solvers.ddim import ddim


class Batch(NamedTuple):
    """True samples with their condition and the null condition, batch first."""

    x0: Tree
    cond: Any
    uncond: Any


def _flat(x: Tree) -> Array:
    """Every sample as one vector: (batch, d), or (batch, particles, d) with `particles` axes."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(leaves, axis=-1)


def _energy_terms(x: Array, y: Array, beta: Any, lam: Any) -> Array:
    """mean_k ‖x_j − y_k‖^β − λ/2 mean_{k≠j} ‖x_j − x_k‖^β for each j: (..., n)."""
    cross = jnp.mean(pairwise_distance_power(x, y, beta), axis=-1)
    count = x.shape[-2]
    if count == 1:
        return cross
    # The distance of a particle to itself is 0 and counts nothing.
    own = jnp.sum(pairwise_distance_power(x, x, beta), axis=-1) / (count - 1)
    return cross - lam / 2 * own


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
        """(s, t) of each example, Algorithm 1 line 2: t − s ≥ min_gap, t ≤ t_max."""
        u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        s = self.s_min + u[:, 0] * (self.t_max - self.min_gap - self.s_min)
        gap = self.min_gap + u[:, 1] * (self.t_max - s - self.min_gap)
        return s, s + gap

    def __call__(
        self, keys: Array, guidance: Guidance, denoise: Any, process: Process, batch: Batch
    ) -> Array:
        """Losses (batch,), from one key an example."""
        m = self.particles
        fold = lambda n: fold_in(keys, n)  # noqa: E731
        s, t = self.times(fold(0))
        # ω once an example; its m particles share it.
        omega, numbers = guidance.evaluate(s, t, batch.cond, process)
        many = lambda tree: tree_map(lambda a: jnp.repeat(a, m, axis=0), tree)  # noqa: E731
        spread = lambda a: jnp.repeat(a, m) if jnp.ndim(a) else a  # noqa: E731
        row = jax.tree.map(spread, (omega, numbers))
        particle_keys = lambda n: jax.vmap(lambda key: jax.random.split(key, m))(fold(n)).reshape(-1)  # noqa: E731
        x0, cond, uncond, s, t = many(batch.x0), many(batch.cond), many(batch.uncond), many(s), many(t)

        true = noise_to(process, x0, s, normal_like(particle_keys(1), x0))
        x = noise_to(process, x0, t, normal_like(particle_keys(2), x0))
        # x_t doesn't depend on ω: the denoiser is evaluated, never differentiated.
        branches = jax.lax.stop_gradient(
            {"cond": denoise(x, t, cond), "uncond": denoise(x, t, uncond)}
        )
        guided, _ = guidance.apply(guidance.init(x), branches, row, x, t, s, process)
        moved = combine(
            bridge(process, s, t, self.churn), x, guided, normal_like(particle_keys(3), x)
        )
        groups = lambda tree: _flat(tree).reshape(-1, m, _flat(tree).shape[-1])  # noqa: E731
        loss = jnp.mean(_energy_terms(groups(moved), groups(true), self.beta, self.lam), axis=-1)
        if self.reward is not None:
            reward = self.reward(guided, cond).reshape(-1, m)
            loss = loss - self.reward_weight * jnp.mean(reward, axis=-1)
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
    if not 0 < beta <= 2 or not 0 <= lam <= 1:
        raise ValueError(f"expected 0 < beta ≤ 2 and 0 ≤ lam ≤ 1, got {beta} and {lam}.")
    if particles < 1 or (lam > 0 and particles < 2):
        raise ValueError(f"expected particles ≥ 2 where lam > 0, else ≥ 1; got {particles}.")
    if not 0 <= churn <= 1:
        raise ValueError(f"expected churn in [0, 1], got {churn}.")
    if not (min_gap > 0 and s_min >= 0 and t_max <= 1 and s_min + min_gap <= t_max):
        raise ValueError(
            f"expected 0 ≤ s_min, 0 < min_gap, s_min + min_gap ≤ t_max ≤ 1; got s_min={s_min}, "
            f"min_gap={min_gap}, t_max={t_max}."
        )
    if reward_weight < 0 or (reward_weight > 0) != (reward is not None):
        raise ValueError("give `reward` and a positive `reward_weight`, or neither.")
    partial = None if reward is None else as_feature(reward)
    return SelfConsistency(
        float(beta), lam, particles, churn, min_gap, s_min, t_max, partial, reward_weight
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


def as_feature(fn: Callable[..., Any]) -> Any:
    """`fn` as a pytree: a plain function has no leaves; `jax.tree_util.Partial` keeps its own."""
    if isinstance(fn, jax.tree_util.Partial):
        return fn
    return jax.tree_util.Partial(fn)


def pixels(x0: Array) -> Array:
    """The identity feature: (batch, d).

    Example:
        >>> pixels(jnp.zeros((2, 4, 4, 1))).shape
        (2, 16)
    """
    return _flat(x0)


def unit_spread(feature: Callable[[Array], Array], x0: Array) -> Any:
    """`feature` divided by its mean pairwise distance over the samples `x0`.

    Makes feature spaces of different units weigh alike in `rollout`. The result is a pytree.

    Args:
        feature: `feature(x0) -> (batch, ...)`.
        x0: True samples to measure on, at least 2.

    Raises:
        ValueError: If the feature is the same for every sample.

    Example:
        >>> scaled = unit_spread(pixels, jnp.array([[0.0], [4.0]]))
        >>> scaled(jnp.array([[2.0]])).tolist()
        [[0.5]]
    """
    values = _flat(feature(x0))
    count = values.shape[0]
    spread = jnp.sum(pairwise_distance_power(values, values, 1.0)) / (count * (count - 1))
    if not float(spread) > 0:
        raise ValueError(f"the feature is constant over {count} samples; expected some spread.")
    return jax.tree_util.Partial(_scaled, as_feature(feature), spread)


def _scaled(feature: Any, spread: Array, x0: Array) -> Array:
    return _flat(feature(x0)) / spread


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """See `rollout`."""

    features: tuple[Any, ...]
    particles: int = dataclasses.field(metadata={"static": True})
    times: Array
    beta: float = dataclasses.field(metadata={"static": True})
    lam: Any
    solver: Solver
    remat: str = dataclasses.field(metadata={"static": True})
    reward: Callable[[Tree, Any], Array] | None
    reward_weight: Any

    def __call__(
        self, keys: Array, guidance: Guidance, denoise: Any, process: Process, batch: Batch
    ) -> Array:
        """Losses (batch,), from one key an example."""
        size = keys.shape[0]
        if size % self.particles:
            raise ValueError(
                f"rollout compares groups of {self.particles} samples of one condition; got a "
                f"batch of {size}, which is no multiple of it."
            )
        denoise = jax.lax.stop_gradient(denoise)
        noise = normal_like(fold_in(keys, 0), batch.x0)
        x0 = sample(
            fold_in(keys, 1), denoise, process, noise, cond=batch.cond, uncond=batch.uncond,
            guidance=guidance, solver=self.solver, times=self.times, remat=self.remat,
        )  # fmt: skip
        group = lambda f: f.reshape(-1, self.particles, f.shape[-1])  # noqa: E731
        loss = jnp.zeros(size)
        for feature in self.features:
            ours, real = (group(_flat(feature(x))) for x in (x0, batch.x0))
            terms = _energy_terms(ours, real, self.beta, self.lam)
            # Constant in ω: makes the loss the distance itself, 0 where the two agree.
            level = self.lam / 2 * jnp.mean(_spread(real, self.beta), axis=-1, keepdims=True)
            loss = loss + (terms - level).reshape(-1) / len(self.features)
        if self.reward is not None:
            loss = loss - self.reward_weight * self.reward(x0, batch.cond)
        return loss


def _spread(y: Array, beta: Any) -> Array:
    """mean_{k≠j} ‖y_j − y_k‖^β for each j."""
    return jnp.sum(pairwise_distance_power(y, y, beta), axis=-1) / (y.shape[-2] - 1)


def rollout(
    features: Sequence[Callable[[Array], Array]] = (pixels,),
    particles: int = 24,
    steps: int = 16,
    *,
    beta: float = 1.0,
    lam: float = 1.0,
    times: Array | None = None,
    solver: Solver | None = None,
    remat: str = "step",
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

    Args:
        features: Functions of images, `feature(x0) -> (batch, ...)`, each best scaled by
            `unit_spread`; networks as `jax.tree_util.Partial(fn, params)`.
        particles: Samples a condition. A batch is blocks of that many examples of one condition.
        steps: Steps of the sampler, uniform in t.
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
        >>> rollout(particles=8).times.shape
        (17,)
    """
    if not features:
        raise ValueError("rollout expects at least one feature space.")
    if particles < 2:
        raise ValueError(f"rollout expects particles ≥ 2, got {particles}.")
    if not 0 < beta <= 2 or not 0 <= lam <= 1:
        raise ValueError(f"expected 0 < beta ≤ 2 and 0 ≤ lam ≤ 1, got {beta} and {lam}.")
    if reward_weight < 0 or (reward_weight > 0) != (reward is not None):
        raise ValueError("give `reward` and a positive `reward_weight`, or neither.")
    return Rollout(
        tuple(as_feature(feature) for feature in features),
        particles,
        uniform_times(steps) if times is None else jnp.asarray(times),
        float(beta),
        lam,
        ddim() if solver is None else solver,
        remat,
        None if reward is None else as_feature(reward),
        reward_weight,
    )
