"""Rollout consistency: whole guided samples beside real ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, batch_size, combine, flat, tree_map, upcast
from guidejax._denoisers import Denoiser
from guidejax._guidance import Guidance
from guidejax._random import fold_in, normal_like
from guidejax._sampling import sample
from guidejax._times import uniform_times
from guidejax.metrics._checks import gathered, real_array
from guidejax.metrics._pairs import power
from guidejax.metrics.energy import pairwise_distance_power
from guidejax.objectives.base import (
    Batch,
    Networks,
    alike,
    as_pytree,
    check_kind,
    check_numbers,
    check_start,
    cross,
    groups,
    mean_of_others,
    own,
    repeat,
    rewards_of,
    ungrouped,
)
from guidejax.objectives.features import evaluated, pixels
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
    differentiate: int = dataclasses.field(metadata={"static": True})
    reference: tuple[tuple[tuple[Array, Array], ...], Any] | None
    axis_name: Any = dataclasses.field(default=None, metadata={"static": True})

    def across(self, axis_name: Any) -> Rollout:
        """The same of a batch that is split over the devices of a mapped axis, or of several.

        Features, not images, are gathered where samples that are compared lie on several devices;
        at β = 2 none are, but their moments are summed. Beside a reference conditions are gathered
        too. The losses of a device's own examples are those that one device would find.
        """
        return dataclasses.replace(self, axis_name=axis_name)

    def check(self, denoise: Denoiser) -> None:
        """Raise `ValueError` where the denoiser says nothing of x0 at the first time."""
        check_start(self.times[0], denoise)

    def check_batch(self, batch: Batch, where: str) -> None:
        """Raise `ValueError` where a group of a batch on the host is of several conditions, or
        conditions are of another kind than the reference's.
        """
        if self.reference is not None and self.reference[1] is not None:
            check_kind(where, batch.cond, self.reference[1])
        size, m = batch_size(batch.x0), self.particles
        if not self._grouped or size % m:  # A process may hold a part of a group.
            return
        for leaf in map(np.asarray, jax.tree.leaves(batch.cond)):
            first = np.repeat(leaf[::m], m, axis=0)
            mixed = np.flatnonzero((leaf != first).reshape(size, -1).any(axis=1))
            if mixed.size:
                start = int(mixed[0]) // m * m
                raise ValueError(
                    f"{where}: rows {start} to {start + m - 1} are of several conditions; rollout "
                    f"compares groups of particles={m} examples of one, as gj.data.grouped gives. "
                    "pooled=1 takes batches of any conditions, without differentiate and with a "
                    "reference whose conditions are None."
                )

    def __call__(
        self,
        keys: Array,
        guidance: Guidance,
        denoise: Denoiser,
        batch: Batch,
        networks: Networks = MappingProxyType({}),
    ) -> Array:
        """Losses (batch,), from one key an example; a group's mean is its distance."""
        # Groups may lie on several devices, but for those of which a few are differentiated.
        here = self.axis_name is None or self.differentiate < self.particles
        size = keys.shape[0] * (1 if here else jax.lax.psum(1, self.axis_name))
        if size % self.particles:
            raise ValueError(
                f"rollout compares groups of {self.particles} samples of one condition; got a "
                f"batch of {size}, which is no multiple of it."
            )
        denoise, networks = jax.lax.stop_gradient((denoise, dict(networks)))
        noise = normal_like(fold_in(keys, 0), batch.x0)
        noise = combine((denoise.process.sigma(jnp.asarray(self.times[0])),), noise)
        x0 = self._samples(fold_in(keys, 1), guidance, denoise, noise, batch, networks)
        return self.compare(x0, batch)

    def compare(self, x0: Tree, batch: Batch) -> Array:
        """Losses (batch,) of guided samples x0 beside the batch's true ones."""
        size, pooled = batch_size(x0), self.pooled
        whole = size if self.axis_name is None else size * jax.lax.psum(1, self.axis_name)
        apart = self.axis_name is not None and (pooled > 0 or size % self.particles > 0)
        gathered = apart and self.beta < 2
        mine: Any = slice(None)  # the rows of this device, of all there are
        if apart:
            mine = jax.lax.axis_index(self.axis_name) * size + jnp.arange(size)
        share: Any = self._share(batch.cond, whole) if pooled and self._grouped else 0.0
        if not gathered and jnp.ndim(share):
            share = share[mine]
        loss = jnp.zeros(whole if gathered else size)
        for index, feature in enumerate(self.features):
            ours, real = flat(feature(x0)), flat(feature(batch.x0))
            if gathered:
                both = jnp.concatenate([ours, real], axis=-1)
                both = jax.lax.all_gather(both, self.axis_name, tiled=True)
                ours, real = jnp.split(both, 2, axis=-1)
            within = tuple(self._among(x, self.particles) for x in (ours, real) if self._grouped)
            found = jnp.zeros_like(loss)
            if pooled < 1:
                apart_from_own = self._apart(ours, real, self.particles)
                found += (1 - pooled) * (apart_from_own - self.lam / 2 * sum(within))
            if pooled:
                known = None if self.reference is None else self.reference[0][index]
                found += pooled * self._together(ours, real, whole, within, share, known)
            loss += found / len(self.features)
        if gathered:
            loss = loss[mine]
        if self.reward is not None:
            loss = loss - self.reward_weight * rewards_of(self.reward, x0, batch.cond)
        return loss

    def _together(
        self, ours: Array, real: Array, n: int, within: tuple[Array, ...], share: Any, known: Any
    ) -> Array:
        """Each sample's share of the distance of all samples, (batch,).

        A sample and an independent one are of one condition with a probability p. Pairs of the
        batch come in another proportion: each has m − 1 others of its own condition, itself left
        out. So what is within groups and what is between them are weighed anew, alike in all three
        terms: else the loss is not 0, nor its slope, where the distributions agree.

        Args:
            ours: Features of guided samples.
            real: Of the batch's true ones.
            n: Samples of the whole batch.
            within: Mean powers of their distances within groups, of each; () where there are none.
            share: For each sample, what its own group counts among all; 0 where there are none.
            known: Features of the reference, and the mean power of their distances.
        """
        m = self.particles

        def among(x: Array, own: Array) -> Array:
            if n == m:
                return own
            # The mean over other groups is ((n − 1) every − (m − 1) own) / (n − m).
            rest = (1 - share) / (n - m)
            return rest * (n - 1) * self._among(x, n) + (share - rest * (m - 1)) * own

        if self._grouped:
            own, theirs = within
            own = among(ours, own)
        else:
            own = self._among(ours, n)
        if known is not None:
            values, self_term = known
            return self._apart(ours, values, 0) - self.lam / 2 * (own + self_term)
        beside = self._apart(ours, real, n)
        if self._grouped:
            return beside - self.lam / 2 * (own + among(real, theirs))
        # Sample and true sample j are of one condition, as no others are.
        pair = power(_square(upcast(ours) - upcast(real)), self.beta)
        beside = (n * beside - pair) / (n - 1)
        return beside - self.lam / 2 * (own + self._among(real, n))

    @property
    def _grouped(self) -> bool:
        """Whether every `particles` samples are of one condition."""
        told = self.reference is not None and self.reference[1] is not None
        return self.pooled < 1 or self.differentiate < self.particles or told

    def _share(self, cond: Any, n: int) -> Any:
        """What a sample's own group counts in `_together`, a number or (n,).

        Beside the batch's own true samples it is 1/G of G groups. A reference knows how often a
        sample of it is of the same condition, p. Of the other groups f are of that condition too,
        so that the own one is to count a with a + (1 − a) f = p.
        """
        count = n // self.particles
        if self.reference is None or count == 1:
            return 1 / count
        if self.axis_name is not None:
            cond = jax.lax.all_gather(cond, self.axis_name, tiled=True)
        heads = tree_map(lambda a: gathered(jnp.asarray(a))[:: self.particles], cond)
        p = jnp.mean(alike(heads, self.reference[1]), axis=1)
        f = (jnp.sum(alike(heads, heads), axis=1) - 1) / (count - 1)
        a = jnp.where(f < 1, (p - f) / jnp.where(f < 1, 1 - f, 1), 1)
        return repeat(a, self.particles)

    def _apart(self, x: Array, y: Array, size: int) -> Array:
        """mean_k ‖x_j − y_k‖^β over the y of every `size` samples, or over all of another set: 0.

        At β = 2 it is ‖x_j − ȳ‖² + V_y, with V_y = mean_k ‖y_k − ȳ‖²: means are all that samples
        need of each other.
        """
        if self.beta < 2:
            x = groups(x, size or x.shape[0])
            return cross(x, groups(y, size or y.shape[0]), self.beta).reshape(-1)
        x, y = (real_array("features", a) for a in (x, y))
        if not size:
            center, spread = _moments(y[None], y.shape[0])
            return (_square(x[None] - center) + spread).reshape(-1)
        # (groups, size, d); where a group lies on several devices, what is here: (1, batch, d).
        here = x.shape[0] if x.shape[0] % size else size
        center, spread = _moments(groups(y, here), size, self.axis_name)
        return (_square(groups(x, here) - center) + spread).reshape(-1)

    def _among(self, x: Array, size: int) -> Array:
        """mean_{k≠j} ‖x_j − x_k‖^β over the others of every `size` samples, (batch,)."""
        if self.beta < 2:
            return own(groups(x, size), self.beta).reshape(-1)
        return size / (size - 1) * self._apart(x, x, size)

    def _samples(self, keys, guidance, denoise, noise, batch, networks):
        """Guided samples (batch, ...), those that are differentiated first in their group."""

        def draw(guidance, part):
            keys, noise, cond, conditions = part
            conditions = {
                name: (networks[name], value) if name in networks else value
                for name, value in conditions.items()
            }
            return sample(
                keys, denoise, noise, cond=cond, conditions=conditions, guidance=guidance,
                solver=self.solver, times=np.asarray(self.times), remat=self.remat,
            )  # fmt: skip

        m, d = self.particles, self.differentiate
        everything = keys, noise, batch.cond, batch.conditions
        if d == m:
            return draw(guidance, everything)
        some = tree_map(lambda a: ungrouped(_grouped(a, m)[:, :d]), everything)
        rest = tree_map(lambda a: ungrouped(_grouped(a, m)[:, d:]), everything)
        # Particles of a group are alike: the slope of a few stands for that of all.
        some = tree_map(lambda a: _steeper(a, m / d), draw(guidance, some))
        rest = jax.lax.stop_gradient(draw(jax.lax.stop_gradient(guidance), rest))
        sides = lambda a, b: (_grouped(a, d), _grouped(b, m - d))  # noqa: E731
        return tree_map(lambda a, b: ungrouped(jnp.concatenate(sides(a, b), axis=1)), some, rest)


def _moments(x: Array, size: int, axis_name: Any = None) -> tuple[Array, Array]:
    """x̄ and mean ‖x − x̄‖² of groups of `size` samples, as `_total` gives sums."""
    # One after the other: a sum of squares about 0 loses the digits of samples close together.
    mean = _total(x, size, axis_name) / size
    return mean, _total(_square(x - mean), size, axis_name) / size


def _total(a: Array, size: int, axis_name: Any) -> Array:
    """Sums over groups, to broadcast against them: (groups, size, ...) -> (groups, 1, ...).

    Of (1, batch, ...), the part of groups on several devices that lies on this one, it is
    (1, batch, ...): at each sample the sum over its group.
    """
    here = a.shape[1]
    if here == size:
        return jnp.sum(a, axis=1, keepdims=True)
    count = here * jax.lax.psum(1, axis_name) // size
    place = jax.lax.axis_index(axis_name) * here + jnp.arange(here)
    member = (place[:, None] // size == jnp.arange(count)).astype(a.dtype)
    product = functools.partial(jnp.einsum, precision="highest")  # a TPU's isn't float32
    sums = jax.lax.psum(product("bg,ib...->ig...", member, a), axis_name)
    return product("bg,ig...->ib...", member, sums)


def _square(a: Array) -> Array:
    """‖a‖² of vectors (..., d)."""
    return jnp.sum(jnp.square(a), axis=-1)


def _grouped(a: Array, size: int) -> Array:
    """(batch, ...) as (groups, size, ...)."""
    return a.reshape(-1, size, *a.shape[1:])


def _steeper(a: Array, factor: float) -> Array:
    """`a`, whose slope counts `factor` times."""
    still = jax.lax.stop_gradient(a)
    return still + factor * (a - still)


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
    differentiate: int | None = None,
    reference: tuple[Tree, Any] | None = None,
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
            distributions, 1 the marginal one. At 1 a batch is of any conditions, shuffled.
        beta: β in (0, 2]; at 2 the distance is that of the means, and takes no pairs.
        lam: λ in [0, 1]; 1 is the distance.
        times: Another grid, in place of `steps`, down to 0.
        solver: DDIM without churn by default.
        remat: "step" recomputes activations in the backward pass; "none" keeps them.
        reward: `reward(x0, cond) -> (batch,)` of the final samples, differentiable in x0.
        reward_weight: γ_R ≥ 0.
        differentiate: Samples of each group that the gradient runs back through, by default all
            `particles`. The others are sampled only, and the slope of the few counts for all: the
            same gradient in expectation, as a group's samples are alike, for a part of its price.
        reference: True samples and their conditions, (n, ...) each, n ≥ 2, that the pooled term
            compares with in place of the batch's, which are so much fewer; more of them cost no
            evaluation. Conditions should come in them as often as in batches. With pooled=1 the
            conditions may be None; a batch is then of any conditions, shuffled, not in blocks.
            None: the batch's.

    Raises:
        ValueError: If a number is out of its range, or there is a reference that nothing is
            compared with; in `fit`, if a batch is no multiple of `particles`, or a group is of
            several conditions.

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
    if not (falls and grid[0] <= 1 and grid[-1] == 0):
        raise ValueError(
            "rollout expects times in [0, 1] that fall to 0, where the true samples are; got "
            f"{times}."
        )
    differentiate = particles if differentiate is None else differentiate
    if not 1 <= differentiate <= particles:
        raise ValueError(
            f"rollout expects differentiate from 1 to particles = {particles}, got {differentiate}."
        )
    known = None
    spaces = tuple(as_pytree(feature) for feature in features)
    if reference is not None:
        x0, cond = _checked(reference, pooled, grouped=pooled < 1 or differentiate < particles)
        found = (_known(evaluated(space, x0), cond, float(beta)) for space in spaces)
        known = tuple(found), cond
    return Rollout(
        spaces,
        particles,
        float(pooled),
        tuple(grid.tolist()),
        float(beta),
        lam,
        ddim() if solver is None else solver,
        remat,
        as_pytree(reward),
        reward_weight,
        differentiate,
        known,
    )


def _checked(reference: Any, pooled: float, grouped: bool) -> tuple[Tree, Any]:
    """The reference as (x0, cond), or an error where it is none."""
    if not (isinstance(reference, tuple) and len(reference) == 2):
        raise ValueError("rollout expects reference=(x0, cond), true samples and their conditions.")
    x0, cond = reference
    if batch_size(x0) < 2:
        raise ValueError("rollout expects at least 2 samples of reference.")
    if not pooled:
        raise ValueError(
            "rollout expects pooled > 0 with a reference, which the pooled term compares with; "
            "1 is that term alone."
        )
    given = bool(jax.tree.leaves(cond))
    if grouped > given or (given and batch_size(cond) != batch_size(x0)):
        raise ValueError("rollout expects a condition for each sample of the reference.")
    return x0, tree_map(jnp.asarray, cond) if given else None


def _known(values: Array, cond: Any, beta: float) -> tuple[Array, Array]:
    """Features of the reference, and the mean power of their distances, weighed as in `_together`.

    Where conditions are given, pairs of one condition count as often as among independent samples.
    """
    pairs = pairwise_distance_power(values, values, beta)
    if cond is None:
        return values, jnp.mean(mean_of_others(pairs))
    n = values.shape[0]
    same = alike(cond, cond) & ~np.eye(n, dtype=bool)
    count = jnp.sum(same, axis=1)
    within = jnp.sum(jnp.where(same, pairs, 0), axis=1) / jnp.maximum(count, 1)
    between = jnp.sum(jnp.where(same, 0, pairs), axis=1) / jnp.maximum(n - 1 - count, 1)
    share = jnp.where(count > 0, (count + 1) / n, 0)
    return values, jnp.mean(share * within + (1 - share) * between)
