"""What a learned ω minimises, one loss an example.

An objective is `objective(keys, guidance, denoise, process, batch) -> (batch,) losses`. Its
gradient reaches ω alone: the denoiser's parameters are held fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, batch_size, combine, is_concrete, tree_map
from guidejax._denoisers import Denoiser, as_denoiser
from guidejax._guidance import Guidance
from guidejax._sampling import sample, uniform_times
from guidejax.metrics.energy import pairwise_distance_power
from guidejax.processes import Process, bridge, noise_to
from guidejax.solvers.base import Solver, fold_in, normal_like
from guidejax.solvers.ddim import ddim


class Batch(NamedTuple):
    """True samples with their condition and the null condition, batch first."""

    x0: Tree
    cond: Any
    uncond: Any


def _flat(x: Tree) -> Array:
    """Every sample as one vector: (batch, d)."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(leaves, axis=-1)


def _groups(x: Tree, size: int) -> Array:
    """Every `size` samples on end as one set of vectors: (groups, size, d)."""
    flat = _flat(x)
    return flat.reshape(-1, size, flat.shape[-1])


def _cross(x: Array, y: Array, beta: float) -> Array:
    """mean_k ‖x_j − y_k‖^β for each j: (..., n, d), (..., m, d) -> (..., n)."""
    return jnp.mean(pairwise_distance_power(x, y, beta), axis=-1)


def _own(x: Array, beta: float) -> Array:
    """mean_{k≠j} ‖x_j − x_k‖^β for each j, 0 for a set of one: (..., n, d) -> (..., n)."""
    count = x.shape[-2]
    powers = pairwise_distance_power(x, x, beta)
    # Masked, though 0: a compiled x may differ from itself by a rounding (it is computed again
    # where it is used), at which the slope of the power is anything.
    powers = jnp.where(jnp.eye(count, dtype=bool), 0, powers)
    return jnp.sum(powers, axis=-1) / max(count - 1, 1)


def _repeat(tree: Tree, m: int) -> Tree:
    """Each row m times on end; scalars as they are. `jnp.repeat` raises on explicit shardings."""

    def one(a):
        if jnp.ndim(a) == 0:
            return a
        a = jnp.asarray(a)[:, None]
        return jnp.broadcast_to(a, (a.shape[0], m, *a.shape[2:])).reshape(-1, *a.shape[2:])

    return tree_map(one, tree)


def _particle_keys(keys: Array, n: int, m: int) -> Array:
    """The n-th stream of m keys an example: (batch · m,)."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, n), m))(keys).reshape(-1)


def _rewards(reward: Callable[[Tree, Any], Array], x0: Tree, cond: Any) -> Array:
    values, size = reward(x0, cond), batch_size(x0)
    if jnp.shape(values) != (size,):
        raise ValueError(
            f"the reward returned shape {jnp.shape(values)}; expected ({size},), one a sample."
        )
    return values


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

    def check(self, denoise: Denoiser, process: Process) -> None:
        """Raise `ValueError` where the denoiser says nothing of x0 at t_max."""
        _check_start(self.t_max, denoise, process)

    def __call__(
        self, keys: Array, guidance: Guidance, denoise: Any, process: Process, batch: Batch
    ) -> Array:
        """Losses (batch,), from one key an example: Algorithm 1, by its lines."""
        if set(guidance.branches) - {"cond", "uncond"}:
            raise ValueError(
                f"self-consistency predicts 'cond' and 'uncond'; the rule takes "
                f"{', '.join(guidance.branches)}. `rollout` samples with any denoiser you give it."
            )
        m = self.particles
        s, t = self.times(fold_in(keys, 0))  # 2
        row = guidance.evaluate(s, t, batch.cond, process)  # ω once an example, not a particle
        (x0, cond, uncond), s, t, row = _repeat((batch, s, t, row), m)
        true = noise_to(process, x0, s, normal_like(_particle_keys(keys, 1, m), x0))  # 3
        x = noise_to(process, x0, t, normal_like(_particle_keys(keys, 2, m), x0))  # 4
        # x_t doesn't depend on ω: the denoiser is evaluated, never differentiated.
        branches = {"cond": denoise(x, t, cond), "uncond": denoise(x, t, uncond)}
        branches = jax.lax.stop_gradient(branches)
        guided, _ = guidance.apply(guidance.init(x), branches, row, x, t, s, process)  # 5
        noise = normal_like(_particle_keys(keys, 3, m), x)
        moved = combine(bridge(process, s, t, self.churn), x, guided, noise)  # 6
        moved, true = _groups(moved, m), _groups(true, m)
        terms = _cross(moved, true, self.beta) - self.lam / 2 * _own(moved, self.beta)
        loss = jnp.mean(terms, axis=-1)  # 7, Eq. (22)
        if self.reward is not None:
            rewards = _rewards(self.reward, guided, cond).reshape(-1, m)
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
    _check_numbers(beta, lam, reward, reward_weight)
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


def as_pytree(fn: Any) -> Any:
    """`fn` where it is a pytree (or None); a plain function as one that has no leaves."""
    return jax.tree_util.Partial(fn) if jax.tree_util.all_leaves([fn]) else fn


def _check_numbers(beta: float, lam: float, reward: Any, reward_weight: float) -> None:
    if not 0 < beta <= 2 or not 0 <= lam <= 1:
        raise ValueError(f"expected 0 < beta ≤ 2 and 0 ≤ lam ≤ 1, got {beta} and {lam}.")
    if not reward_weight >= 0 or (reward_weight > 0) != (reward is not None):
        raise ValueError("give `reward` and a positive `reward_weight`, or neither.")


def _check_start(t: Any, denoise: Denoiser, process: Process) -> None:
    """`sample` checks so too, but not under the jit of training."""
    blind = denoise.prediction in ("eps", "score") and is_concrete(t, process)
    if blind and float(process.alpha(t)) <= 0:
        raise ValueError(
            f"at t = {float(t)} α is 0, where {denoise.prediction!r} says nothing of x0; "
            "start lower: t_max=0.99, or times=uniform_times(steps, start=0.999)."
        )


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
    return jax.tree_util.Partial(_scaled, as_pytree(feature), spread)


def _scaled(feature: Any, spread: Array, x0: Array) -> Array:
    return _flat(feature(x0)) / spread


def frechet_moments(feature: Callable[[Array], Array], x0: Array, rank: int = 16) -> Any:
    """First and second moments of `feature`, in which β = 2 makes `rollout` a Fréchet distance.

    With z the leading principal components of the feature over the true samples `x0`, of variances
    λ_i and total variance Λ, the result is (z_i, z_i z_j / √(2(λ_i + λ_j))) / √Λ. The energy
    distance at β = 2 is the squared distance of means, which here is
    (‖Δμ‖² + Σ_ij ΔC_ij² / (2(λ_i + λ_j))) / Λ: the Fréchet distance of two Gaussians to second
    order about the true one (the Bures metric of Dowson & Landau 1982), without the bias that the
    distance of sample moments has. Feature spaces of different units weigh alike.

    Args:
        feature: `feature(x0) -> (batch, ...)`.
        x0: True samples to measure on, more than `rank` of them.
        rank: Principal components kept.

    Raises:
        ValueError: If the feature varies in no `rank` directions over `x0`.

    Example:
        >>> x0 = jnp.array([[-1.0], [1.0]])
        >>> jnp.abs(frechet_moments(pixels, x0, rank=1)(jnp.array([[2.0]]))).round(5).tolist()
        [[2.0, 2.0]]
    """
    values = _flat(feature(x0))
    mean = jnp.mean(values, axis=0)
    _, scales, directions = jnp.linalg.svd(values - mean, full_matrices=False)
    variances = scales**2 / values.shape[0]
    total = jnp.sum(variances)
    if rank < 1 or rank > variances.size or not float(variances[rank - 1]) > 1e-6 * float(total):
        raise ValueError(
            f"the feature varies in fewer than {rank} directions over {values.shape[0]} samples; "
            "expected rank ≥ 1 and at most that many."
        )
    row, column = np.triu_indices(rank)
    # Off the diagonal one product stands for two equal entries of C.
    double = jnp.where(row == column, 1.0, 2.0)
    weight = jnp.sqrt(double / (2 * (variances[row] + variances[column])))
    project = directions[:rank].T
    return jax.tree_util.Partial(
        _moments, as_pytree(feature), mean, project, weight, jnp.sqrt(total)
    )


def _moments(feature, mean, project, weight, scale, x0):
    z = (_flat(feature(x0)) - mean) @ project
    row, column = np.triu_indices(project.shape[1])
    return jnp.concatenate([z, weight * z[:, row] * z[:, column]], axis=-1) / scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """See `rollout`."""

    features: tuple[Any, ...]
    particles: int = dataclasses.field(metadata={"static": True})
    pooled: float = dataclasses.field(metadata={"static": True})
    times: Array
    beta: float = dataclasses.field(metadata={"static": True})
    lam: Any
    solver: Solver
    remat: Literal["none", "step"] = dataclasses.field(metadata={"static": True})
    reward: Callable[[Tree, Any], Array] | None
    reward_weight: Any

    def check(self, denoise: Denoiser, process: Process) -> None:
        """Raise `ValueError` where the denoiser says nothing of x0 at the first time."""
        _check_start(self.times[0], denoise, process)

    def __call__(
        self, keys: Array, guidance: Guidance, denoise: Any, process: Process, batch: Batch
    ) -> Array:
        """Losses (batch,), from one key an example; a group's mean is its distance."""
        size = keys.shape[0]
        if size % self.particles:
            raise ValueError(
                f"rollout compares groups of {self.particles} samples of one condition; got a "
                f"batch of {size}, which is no multiple of it."
            )
        denoise = jax.lax.stop_gradient(as_denoiser(denoise, process))
        noise = normal_like(fold_in(keys, 0), batch.x0)
        x0 = sample(
            fold_in(keys, 1), denoise, process, noise, cond=batch.cond, uncond=batch.uncond,
            guidance=guidance, solver=self.solver, times=self.times, remat=self.remat,
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
            loss = loss - self.reward_weight * _rewards(self.reward, x0, batch.cond)
        return loss

    def _distance(self, ours: Array, real: Array, size: int) -> Array:
        """Each sample's share of the energy distance within every `size` samples: (batch,)."""
        ours, real = _groups(ours, size), _groups(real, size)
        # The real samples' own term doesn't depend on ω: with it the loss is a distance.
        own = _own(ours, self.beta) + jnp.mean(_own(real, self.beta), axis=-1, keepdims=True)
        return (_cross(ours, real, self.beta) - self.lam / 2 * own).reshape(-1)


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
        >>> rollout(particles=8).times.shape
        (17,)
    """
    if not features:
        raise ValueError("rollout expects at least one feature space.")
    if particles < 2:
        raise ValueError(f"rollout expects particles ≥ 2, got {particles}.")
    if not 0 <= pooled <= 1:
        raise ValueError(f"rollout expects pooled in [0, 1], got {pooled}.")
    if remat not in ("none", "step"):
        raise ValueError(f"rollout expects remat 'none' or 'step', got {remat!r}.")
    _check_numbers(beta, lam, reward, reward_weight)
    grid = np.asarray(uniform_times(steps) if times is None else times, float)
    falls = grid.ndim == 1 and grid.size > 1 and bool(np.all(np.diff(grid) < 0))
    if not (falls and grid[0] <= 1 and grid[-1] >= 0):
        raise ValueError(f"rollout expects times that fall within [0, 1], got {times}.")
    return Rollout(
        tuple(as_pytree(feature) for feature in features),
        particles,
        float(pooled),
        jnp.asarray(grid, jnp.result_type(float)),
        float(beta),
        lam,
        ddim() if solver is None else solver,
        remat,
        as_pytree(reward),
        reward_weight,
    )
