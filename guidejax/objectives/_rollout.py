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

from guidejax._arrays import Array, Tree, batch_size, combine, tree_map, upcast
from guidejax._denoisers import Denoiser
from guidejax._guidance import Guidance
from guidejax._random import fold_in, normal_like
from guidejax._sampling import sample
from guidejax._times import uniform_times
from guidejax.metrics._checks import real_array
from guidejax.objectives.base import (
    Batch,
    Networks,
    as_pytree,
    check_numbers,
    check_start,
    cross,
    flat,
    groups,
    own,
    rewards_of,
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
    reference: tuple[tuple[Array, Array], ...] | None
    axis_name: Any = dataclasses.field(default=None, metadata={"static": True})

    def across(self, axis_name: Any) -> Rollout:
        """The same of a batch that is split over the devices of a mapped axis, or of several.

        Features, not images, are gathered where samples that are compared lie on several devices;
        at β = 2 none are, but their moments are summed. The losses of a device's own examples are
        those that one device would find.
        """
        return dataclasses.replace(self, axis_name=axis_name)

    def check(self, denoise: Denoiser) -> None:
        """Raise `ValueError` where the denoiser says nothing of x0 at the first time."""
        check_start(self.times[0], denoise)

    def check_batch(self, batch: Batch, where: str) -> None:
        """Raise `ValueError` where a group of a batch on the host is of several conditions."""
        size, m = batch_size(batch.x0), self.particles
        if self.pooled == 1 or size % m:  # A process may hold a part of a group.
            return
        for leaf in map(np.asarray, jax.tree.leaves(batch.cond)):
            first = np.repeat(leaf[::m], m, axis=0)
            mixed = np.flatnonzero((leaf != first).reshape(size, -1).any(axis=1))
            if mixed.size:
                start = int(mixed[0]) // m * m
                raise ValueError(
                    f"{where}: rows {start} to {start + m - 1} are of several conditions; rollout "
                    f"compares groups of particles={m} examples of one, as gj.data.grouped gives. "
                    "pooled=1 compares the batch as a whole, whatever its conditions."
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
        size = batch_size(x0)
        whole = size if self.axis_name is None else size * jax.lax.psum(1, self.axis_name)
        # (samples compared, share of the loss): each condition alone, the batch as a whole.
        levels = ((self.particles, 1 - self.pooled), (whole, self.pooled))
        apart = self.axis_name is not None and (self.pooled > 0 or size % self.particles > 0)
        gathered = apart and self.beta < 2
        loss = jnp.zeros(whole if gathered else size)
        for index, feature in enumerate(self.features):
            ours, real = flat(feature(x0)), flat(feature(batch.x0))
            if gathered:
                both = jnp.concatenate([ours, real], axis=-1)
                both = jax.lax.all_gather(both, self.axis_name, tiled=True)
                ours, real = jnp.split(both, 2, axis=-1)
            for level, (count, share) in enumerate(levels):
                if not share:
                    continue
                known = self.reference[index] if level and self.reference is not None else None
                if self.beta == 2:
                    found = self._by_moments(ours, real, count, known)
                elif known is not None:
                    found = self._far(ours, *known)
                else:
                    found = self._distance(ours, real, count)
                loss += share / len(self.features) * found
        if gathered:  # the rows of this device
            start = jax.lax.axis_index(self.axis_name) * size
            loss = jax.lax.dynamic_slice_in_dim(loss, start, size)
        if self.reward is not None:
            loss = loss - self.reward_weight * rewards_of(self.reward, x0, batch.cond)
        return loss

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
        some = tree_map(lambda a: _rows(_grouped(a, m)[:, :d]), everything)
        rest = tree_map(lambda a: _rows(_grouped(a, m)[:, d:]), everything)
        # Particles of a group are alike: the slope of a few stands for that of all.
        some = tree_map(lambda a: _steeper(a, m / d), draw(guidance, some))
        rest = jax.lax.stop_gradient(draw(jax.lax.stop_gradient(guidance), rest))
        sides = lambda a, b: (_grouped(a, d), _grouped(b, m - d))  # noqa: E731
        return tree_map(lambda a, b: _rows(jnp.concatenate(sides(a, b), axis=1)), some, rest)

    def _far(self, ours: Array, real: Array, spread: Array) -> Array:
        """Each sample's share of the distance of all from the reference: (batch,)."""
        ours = groups(ours, ours.shape[0])
        self_terms = own(ours, self.beta) + spread
        return (cross(ours, real[None], self.beta) - self.lam / 2 * self_terms).reshape(-1)

    def _distance(self, ours: Array, real: Array, size: int) -> Array:
        """Each sample's share of the energy distance within every `size` samples: (batch,)."""
        ours, real = groups(ours, size), groups(real, size)
        # The real samples' own term doesn't depend on ω: with it the loss is a distance.
        self_terms = own(ours, self.beta) + jnp.mean(own(real, self.beta), axis=-1, keepdims=True)
        return (cross(ours, real, self.beta) - self.lam / 2 * self_terms).reshape(-1)

    def _by_moments(self, ours: Array, real: Array, size: int, known: Any) -> Array:
        """What `_distance`, or `_far` of a known reference, is at β = 2: (batch,).

        mean_k ‖x_j − y_k‖² = ‖x_j − ȳ‖² + V_y, with V_y = mean_k ‖y_k − ȳ‖². Over k ≠ j, of
        the n samples x themselves, it is n/(n − 1) (‖x_j − x̄‖² + V_x), and 2n/(n − 1) V_y over all
        pairs of the y. Means are all that samples need of each other.
        """
        # (groups, size, d); where a group lies on several devices, what is here: (1, batch, d).
        here = ours.shape[0] if ours.shape[0] % size else size
        ours = groups(real_array("features of x0", ours), here)
        real = groups(real_array("features of true samples", real), here)
        unbiased = size / (size - 1)
        mean, variance = _moments(ours, size, self.axis_name)
        if known is None:
            center, spread = _moments(real, size, self.axis_name)
            self_term = 2 * unbiased * spread
        else:
            values, self_term = known
            center, spread = _moments(upcast(values)[None], values.shape[0])
        self_terms = unbiased * (_square(ours - mean) + variance) + self_term
        return (_square(ours - center) + spread - self.lam / 2 * self_terms).reshape(-1)


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


def _rows(a: Array) -> Array:
    """(groups, size, ...) as (batch, ...)."""
    return a.reshape(-1, *a.shape[2:])


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
    reference: Tree = None,
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
            distributions, 1 the marginal one.
        beta: β in (0, 2]; at 2 the distance is that of the means, and takes no pairs.
        lam: λ in [0, 1]; 1 is the distance.
        times: Another grid, in place of `steps`.
        solver: DDIM without churn by default.
        remat: "step" recomputes activations in the backward pass; "none" keeps them.
        reward: `reward(x0, cond) -> (batch,)` of the final samples, differentiable in x0.
        reward_weight: γ_R ≥ 0.
        differentiate: Samples of each group that the gradient runs back through, by default all
            `particles`. The others are sampled only, and the slope of the few counts for all: the
            same gradient in expectation, as a group's samples are alike, for a part of its price.
        reference: True samples (n, ...), n ≥ 2, that the pooled term compares with in place of the
            batch's, which are so much fewer; more of them cost no evaluation. None: the batch's.

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
    if not (falls and grid[0] <= 1 and grid[-1] >= 0):
        raise ValueError(f"rollout expects times that fall within [0, 1], got {times}.")
    differentiate = particles if differentiate is None else differentiate
    if not 1 <= differentiate <= particles:
        raise ValueError(
            f"rollout expects differentiate from 1 to particles = {particles}, got {differentiate}."
        )
    if reference is not None and batch_size(reference) < 2:
        raise ValueError("rollout expects at least 2 samples of reference.")
    if reference is not None and not pooled:
        raise ValueError(
            "rollout expects pooled > 0 with a reference, which the pooled term compares with; "
            "1 is that term alone."
        )
    spaces = tuple(as_pytree(feature) for feature in features)
    known = None
    if reference is not None:
        known = tuple(_known(evaluated(space, reference), float(beta)) for space in spaces)
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


def _known(values: Array, beta: float) -> tuple[Array, Array]:
    """Features of the reference, and the mean power of their distances."""
    return values, jnp.mean(own(values, beta))
