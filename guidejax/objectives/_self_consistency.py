"""Self-consistency: Galashov et al. 2510.00815, Algorithm 1."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Tree,
    batch_size,
    combine,
    expand,
    flat,
    is_concrete,
    square_norm,
    tree_map,
)
from guidejax._denoisers import Denoiser
from guidejax._guidance import Guidance
from guidejax._random import fold_in, normal_like
from guidejax.metrics.energy import pairwise_distance_power
from guidejax.objectives.base import (
    Batch,
    Evaluations,
    Networks,
    alike,
    as_pytree,
    check_branches,
    check_kind,
    check_numbers,
    check_start,
    cross,
    expected_power,
    groups,
    mean_of_others,
    particle_keys,
    repeat,
    rewards_of,
    ungrouped,
)
from guidejax.processes.base import ROUNDING, bridge, noise_to
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
    ends: int = dataclasses.field(metadata={"static": True})
    antithetic: bool = dataclasses.field(metadata={"static": True})
    noise: Literal["sampled", "expected"] = dataclasses.field(metadata={"static": True})
    t_density: Literal["nested", "uniform"] = dataclasses.field(metadata={"static": True})
    reference: tuple[Tree, Any] | None

    def times(self, keys: Array) -> tuple[Array, Array]:
        """(s, t) of each example: t − s ≥ min_gap, s_min ≤ s, t ≤ t_max (Algorithm 1, line 2)."""
        u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        if self.t_density == "uniform":
            least = self.s_min + self.min_gap
            t = least + u[:, 1] * (self.t_max - least)
            return self._ends(u[:, :1], t)[:, 0], t
        s = self.s_min + u[:, 0] * (self.t_max - self.min_gap - self.s_min)
        gap = self.min_gap + u[:, 1] * (self.t_max - s - self.min_gap)
        return s, jnp.minimum(s + gap, self.t_max)

    def ends_of(self, keys: Array, t: Array) -> Array:
        """Times s of each t, (batch, ends), as `times` has them given t; one in each stratum.

        There s has a density proportional to 1/(t_max − min_gap − s) for s_min ≤ s ≤ t − min_gap.
        """
        u = jax.vmap(lambda key: jax.random.uniform(key, (self.ends,)))(keys)
        return self._ends((u + jnp.arange(self.ends)) / self.ends, t)

    def _ends(self, u: Array, t: Array) -> Array:
        top = self.t_max - self.min_gap
        least = jnp.maximum(jnp.stack([self.t_max - t, jnp.full_like(t, top - self.s_min)]), 1e-6)
        near, far = jnp.log(least)[..., None]
        s = top - jnp.exp(far + u * (near - far))
        return jnp.clip(s, self.s_min, jnp.maximum(t - self.min_gap, self.s_min)[:, None])

    def weight(self, t: Array) -> Array:
        """What a loss at t counts: the density that the paper draws it with over the one here."""
        if self.t_density == "nested":
            return jnp.ones_like(t)
        span = self.t_max - self.min_gap - self.s_min
        return jnp.log(span / jnp.clip(self.t_max - t, 1e-6 * span, span))

    def check(self, denoise: Denoiser) -> None:
        """Raise `ValueError` where the denoiser says nothing of x0 at t_max."""
        check_start(self.t_max, denoise)

    def check_batch(self, batch: Batch, where: str) -> None:
        """Raise `ValueError` where a batch isn't of the kind of the reference, or its kept
        evaluations are at times that this objective never asks.
        """
        if self.reference is not None:
            check_kind(where, (batch.x0, batch.cond), self.reference)
        if batch.evaluations is None or not is_concrete(self.s_min, self.min_gap, self.t_max):
            return
        least, most = float(self.s_min) + float(self.min_gap), float(self.t_max)
        t = np.asarray(batch.evaluations.t)
        slack = max(ROUNDING, float(jnp.finfo(t.dtype).eps))
        wrong = t[(t < least - slack) | (t > most + slack)]
        if wrong.size:
            raise ValueError(
                f"{where}: its evaluations are at t = {wrong[0]:.3g}; this objective is of "
                f"{least:g} = s_min + min_gap ≤ t ≤ t_max = {most:g}. Evaluate with the objective "
                "that is learned by."
            )

    def evaluate(
        self,
        keys: Array,
        branches: tuple[str, ...],
        denoise: Denoiser,
        batch: Batch,
        networks: Networks = MappingProxyType({}),
    ) -> Evaluations:
        """All that the networks are asked for the losses of these keys (Algorithm 1, lines 2, 4).

        A loss given them draws its s anew, so that they serve more than one update.
        """
        return self._at(self.times(fold_in(keys, 0))[1], keys, branches, denoise, batch, networks)

    def _at(self, t, keys, branches, denoise, batch, networks):
        m = self.particles
        (x0, cond, conditions), times = repeat((batch[:3], t), m)
        draws = m // 2 if self.antithetic else m
        noise = normal_like(
            particle_keys(keys, 2, draws), tree_map(lambda a: _every(a, m, draws), x0)
        )
        if self.antithetic:
            noise = tree_map(lambda a: _mirrored(a, draws), noise)
        x = noise_to(denoise.process, x0, times, noise)  # 4
        # x_t doesn't depend on ω: the networks are evaluated, never differentiated.
        found = {"cond": denoise(x, times, cond)}
        for name in branches[1:]:
            found[name] = networks.get(name, denoise)(x, times, conditions[name])
        split = lambda a: a.reshape(-1, m, *a.shape[1:])  # noqa: E731
        return Evaluations(t, *tree_map(split, (x, jax.lax.stop_gradient(found))))

    def __call__(
        self,
        keys: Array,
        guidance: Guidance,
        denoise: Denoiser,
        batch: Batch,
        networks: Networks = MappingProxyType({}),
    ) -> Array:
        """Losses (batch,), from one key an example: Algorithm 1, by its lines."""
        check_branches(guidance.branches[1:], batch)
        m, k, process, kept = self.particles, self.ends, denoise.process, batch.evaluations
        x0 = repeat(batch.x0, k * m)
        if self.noise == "sampled":
            draw = normal_like(particle_keys(keys, 1, k * m), x0)
        if kept is None:
            s, t = self.times(fold_in(keys, 0))  # 2
            kept = self._at(t, keys, guidance.branches, denoise, batch, networks)  # 4
        if batch.evaluations is not None or k > 1:
            s = self.ends_of(fold_in(keys, 4), kept.t).reshape(-1)
        check_evaluations(kept, guidance.branches, m)
        cond, t = repeat((batch.cond, kept.t), k)
        row = guidance.row(Step(s, t, cond, process))  # ω once an end, not a particle
        cond, s, t = repeat((cond, s, t), m)
        # Of (1, 1, 1, channels) there is one for all.
        row = tree_map(lambda a: a if a.ndim > 1 and a.shape[0] == 1 else repeat(a, m), row)
        x, found = tree_map(lambda a: _for_each_end(a, k), (kept.x, kept.predictions))
        step = Step(s, t, cond, process, x=x)
        guided, _ = guidance.apply(guidance.init(x), found, step, row)  # 5
        steps = bridge(process, s, t, self.churn)
        if self.noise == "expected":
            if self.reference is not None:
                x0 = self._others(fold_in(keys, 5), batch, kept, process)
            terms = self._expected(x0, x, guided, s, process, steps)
        else:
            true = noise_to(process, x0, s, draw)  # 3
            noise = normal_like(particle_keys(keys, 3, k * m), x)
            moved = groups(combine(steps, x, guided, noise), m)  # 6
            self_terms = mean_of_others(
                pairwise_distance_power(moved, moved, self.beta), self.antithetic
            )
            terms = cross(moved, groups(true, m), self.beta) - self.lam / 2 * self_terms
        loss = jnp.mean(terms.reshape(-1, k * m), axis=-1)  # 7, Eq. (22)
        if self.reward is not None:
            rewards = rewards_of(self.reward, guided, cond).reshape(-1, k * m)
            loss = loss - self.reward_weight * jnp.mean(rewards, axis=-1)
        return loss if self.t_density == "nested" else self.weight(kept.t) * loss

    def _others(self, keys: Array, batch: Batch, kept: Evaluations, process: Any) -> Tree:
        """For each end and particle an x0 that x_t may be of, (batch · ends · particles, ...).

        Of true samples of one condition, whichever x_t was made of is as likely as its density
        at x_t has it: the pair is distributed as that of x_t and its own x0.
        """
        known, conditions = self.reference  # type: ignore[misc]
        m, k, size = self.particles, self.ends, batch_size(batch.x0)
        points, own = flat(known), flat(batch.x0)
        # An example that is one of the reference counts once.
        other = jnp.any(points[None] != own[:, None], axis=-1)
        usable = other & alike(batch.cond, conditions)
        x = flat(tree_map(ungrouped, kept.x)).reshape(size, m, -1)
        alpha, sigma = (f(kept.t)[:, None, None] for f in (process.alpha, process.sigma))

        def log_likelihood(inner, points):
            return (alpha * inner - alpha**2 * jnp.sum(points**2, axis=-1) / 2) / sigma**2

        dot = functools.partial(jnp.einsum, precision="highest")
        theirs = log_likelihood(dot("imd,nd->imn", x, points), points)
        mine = log_likelihood(dot("imd,id->im", x, own)[..., None], own[:, None, None])
        logits = jnp.concatenate([jnp.where(usable[:, None], theirs, -jnp.inf), mine], axis=-1)
        rising = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)
        u = jax.vmap(lambda key: jax.random.uniform(key, (k, m, 1)))(keys)
        chosen = jnp.sum(rising[:, None] < u * rising[:, None, :, -1:], axis=-1).reshape(-1)

        def pick(known, own):
            is_own = expand(chosen >= known.shape[0], own)
            return jnp.where(is_own, own, known[jnp.minimum(chosen, known.shape[0] - 1)])

        return tree_map(pick, known, repeat(batch.x0, k * m))

    def _expected(self, x0, x, guided, s, process, steps):
        """The terms of lines 3 and 6, averaged over their noise: given x_t both are Gaussian."""
        a, b, c = steps
        mean = combine((a, b), x, guided)
        dim = flat(mean).shape[-1]
        away = combine((1.0, -process.alpha(s)), mean, x0)
        apart = expected_power(
            square_norm(flat(away)), c**2 + process.sigma(s) ** 2, dim, self.beta
        )
        particles = groups(mean, self.particles)
        between = pairwise_distance_power(particles, particles, 2.0)
        spread = (2 * c**2).reshape(-1, self.particles, 1)
        self_terms = mean_of_others(
            expected_power(between, spread, dim, self.beta), self.antithetic
        )
        return apart.reshape(-1, self.particles) - self.lam / 2 * self_terms


def check_evaluations(kept: Evaluations, branches: tuple[str, ...], particles: int) -> None:
    """Raise `ValueError` where evaluations lack a branch or have another number of particles."""
    missing = [name for name in branches if name not in kept.predictions]
    if missing:
        raise ValueError(
            f"the evaluations have the branches {', '.join(kept.predictions)}; the guidance needs "
            f"{', '.join(missing)} too."
        )
    for leaf in jax.tree.leaves((kept.x, kept.predictions)):
        if leaf.ndim < 2 or leaf.shape[1] != particles:
            raise ValueError(
                f"the evaluations have shape {leaf.shape}; expected (batch, {particles}, ...), "
                f"for particles={particles}."
            )


def _every(a: Array, m: int, draws: int) -> Array:
    """`draws` of every m rows."""
    return a.reshape(-1, m, *a.shape[1:])[:, :draws].reshape(-1, *a.shape[1:])


def _mirrored(noise: Array, draws: int) -> Array:
    """Every `draws` rows and then their negatives."""
    half = noise.reshape(-1, draws, *noise.shape[1:])
    return jnp.concatenate([half, -half], axis=1).reshape(-1, *noise.shape[1:])


def _for_each_end(a: Array, k: int) -> Array:
    """(batch, m, ...), all of it k times for each example: (batch · k · m, ...)."""
    a = jnp.broadcast_to(a[:, None], (a.shape[0], k, *a.shape[1:]))
    return a.reshape(-1, *a.shape[3:])


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
    ends: int = 1,
    antithetic: bool = False,
    noise: Literal["sampled", "expected"] = "sampled",
    t_density: Literal["nested", "uniform"] = "nested",
    reference: tuple[Tree, Any] | None = None,
) -> SelfConsistency:
    """Self-consistency: x0 noised to t and guided to s should look like x0 noised to s.

    For each example (x0, c), with true particles x^k ~ p_{s|0}(·|x0) and guided ones x̃^j that
    were noised to t, denoised with ω_{c,(s,t)} and stepped to s along the bridge:
    1/m² Σ_jk ‖x̃^j − x^k‖^β − λ/(2m(m−1)) Σ_{j≠k} ‖x̃^j − x̃^k‖^β
    (Galashov et al. 2510.00815, Eqs. (18)–(22), Algorithm 1). The norm is over the whole sample,
    not divided by its dimension. With a reward the loss of an example is less
    `reward_weight` · mean_j R(x̂0(x^j_t, c; ω), c), on the one-step guided prediction.

    As it stands this is the paper's estimator, of 2 m evaluations of the network an example. The
    options from `ends` on estimate the same loss with less noise from the same evaluations, or from
    fewer; `docs/learning.md` has what each is worth.

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
        ends: Times s for each (x_t, t): the network sees x_t and t alone. They are drawn as the
            paper's s are, given t, one in each stratum.
        antithetic: Draw the noise of x_t in pairs ε, −ε, an even number of particles; the second
            term leaves out the pairs, which aren't independent. At least 4 where λ > 0.
        noise: "sampled", the particles x^k and the noise of the bridge, as the paper has it;
            "expected", both averaged over in closed form given x_t, since x̃ − x^k and x̃^j − x̃^k
            are Gaussian then.
        t_density: How t is drawn: "nested", as the paper does, which is mostly near t_max;
            "uniform", each loss weighted by the ratio of the densities, log((t_max − min_gap −
            s_min)/(t_max − t)), so that the times where ω is hard to tell have their share. Kept
            evaluations are of times that one of them drew: learn from them by the same.
        reference: True samples and their conditions, (n, ...) each, of the distribution that
            batches are of, some thousands at most. Each x_t is compared with whichever sample of
            its condition it may be of, drawn anew at each use by its likelihood, and not with its
            own x0 alone: evaluations that are kept tell more. With `noise="expected"`.

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
    if ends < 1:
        raise ValueError(f"expected ends ≥ 1, got {ends}.")
    if antithetic and (particles % 2 or (lam > 0 and particles < 4)):
        raise ValueError(
            f"antithetic particles come in pairs, two of them where lam > 0; got {particles}."
        )
    if noise not in ("sampled", "expected"):
        raise ValueError(f"expected noise 'sampled' or 'expected', got {noise!r}.")
    if t_density not in ("nested", "uniform"):
        raise ValueError(f"expected t_density 'nested' or 'uniform', got {t_density!r}.")
    if reference is not None:
        if noise != "expected":
            raise ValueError("expected noise='expected' with a reference.")
        if batch_size(reference[0]) != batch_size(reference[1]):
            raise ValueError("expected a condition for each sample of the reference.")
    # To a rounding: (0.1, 0.3) is pinned by s_min = 0.1, min_gap = 0.2, t_max = 0.3.
    if not (min_gap > 0 and s_min >= 0 and t_max <= 1 and s_min + min_gap <= t_max + 1e-9):
        raise ValueError(
            f"expected 0 ≤ s_min, 0 < min_gap, s_min + min_gap ≤ t_max ≤ 1; got s_min={s_min}, "
            f"min_gap={min_gap}, t_max={t_max}."
        )
    if t_density == "uniform" and not s_min + min_gap < t_max:
        raise ValueError("expected s_min + min_gap < t_max with t_density='uniform'.")
    return SelfConsistency(
        float(beta), lam, particles, churn, min_gap, s_min, t_max, as_pytree(reward), reward_weight,
        ends, bool(antithetic), noise, t_density, reference,
    )  # fmt: skip


def l2(particles: int = 1, **options: Any) -> SelfConsistency:
    """The l2 variant, Eq. (21): E‖x̃_s(ω) − x_s‖², self-consistency with β = 2 and λ = 0.

    It over-guides: even with an exact denoiser its minimum over one ω for all conditions is
    r₁₁/(1 − r₁₁) > 0 without churn, r₂₂/(1 − r₂₂) with full churn, and both grow without bound as
    s → t. Of each condition by itself it may be anything, below 0 too.

    Args:
        particles: Particles averaged over.
        **options: `churn`, `min_gap`, `s_min`, `t_max`, `reward`, `reward_weight`, `ends`,
            `antithetic`, `noise`, `t_density`, `reference`, as for `self_consistency`.

    Example:
        >>> l2().beta, l2().lam
        (2.0, 0.0)
    """
    return self_consistency(beta=2.0, particles=particles, lam=0.0, **options)
