"""What a guidance does over a run: direction shift, mode separation, concentration.

The three stages of Jin, Shi, Gu, arXiv 2509.22007, measured on anybody's denoiser. Their theorems
are of mixtures with N(0, I) as the unconditional model; what is measured here assumes neither.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Times,
    Tree,
    accumulator,
    batch_size,
    check_finite,
    combine,
    dot,
    expand,
    flat,
    is_concrete,
    norm,
    same_structure,
    square_norm,
    tree_map,
    unit,
    upcast,
)
from guidejax._branches import BranchMode
from guidejax._denoisers import Denoiser, check_denoiser, check_floating
from guidejax._guidance import Guidance
from guidejax._inputs import as_guidance, as_solver
from guidejax._keep import asked, kept_steps
from guidejax._random import as_keys, fold_in, normal_like
from guidejax._sampling import sample
from guidejax.metrics._checks import gathered, positive_int
from guidejax.metrics._pairs import square_distances
from guidejax.metrics.diversity import _mean_pairwise
from guidejax.processes.base import Process
from guidejax.solvers.base import Solver

# What a kick's key is folded with, so that no solver draws its noise from the same.
_KICK = 0x5A6E


class StageDiagnostics(NamedTuple):
    """What `stage_diagnostics` found: T kept steps, C conditions, P perturbed steps, k modes.

    Means E are over the samples of a condition. "Guided" and "cond" are runs from the same noise.

    Attributes:
        t: The time that each kept step denoises from, (T,); x̂0 is of this time.
        s: The time that it goes to, (T,); x is of this time.
        mean: μ̄, what was given or estimated, (C, ...), or a pytree of such arrays.
        omega: ω of the target (1 + ω) μ̄, the mean over a condition's samples, (C,).
        guided_distance: E‖x_s − (1 + ω) μ̄‖² of guided samples, (T, C), in units of ‖x‖².
        cond_distance: The same of conditional ones.
        norm_growth: E‖x_s‖ of guided samples over that of conditional ones, (T, C).
        cosine: E of the cosine between μ̄ and guided minus conditional x_s, (T, C); 0 where either
            is 0.
        guided_spread: Mean distance of two guided x̂0 of a condition, (T, C), in units of ‖x‖; NaN
            for one sample a condition.
        cond_spread: The same of conditional ones.
        spread_ratio: guided_spread / cond_spread.
        guided_shares: The share of each mode among a condition's guided x̂0, (T, C, k); None
            without modes.
        cond_shares: The same of conditional ones.
        perturbed_t: The times at which x_t was perturbed, (P,).
        guided_growth: E‖x − z‖ at the end over E‖x_t − z_t‖, of guided runs, (P, C).
        cond_growth: The same of conditional ones.
        growth_ratio: guided_growth / cond_growth, below 1 where guidance concentrates.
    """

    t: Array
    s: Array
    mean: Tree
    omega: Array
    guided_distance: Array
    cond_distance: Array
    norm_growth: Array
    cosine: Array
    guided_spread: Array
    cond_spread: Array
    spread_ratio: Array
    guided_shares: Array | None
    cond_shares: Array | None
    perturbed_t: Array
    guided_growth: Array
    cond_growth: Array
    growth_ratio: Array


def stage_diagnostics(
    key: Any,
    denoise: Denoiser,
    noise: Tree,
    *,
    times: Times,
    guidance: Guidance,
    cond: Any = None,
    uncond: Any = None,
    conditions: Mapping[str, Any] | None = None,
    samples: int = 1,
    mean: Tree = None,
    omega: Any = None,
    modes: Tree = None,
    assign: Callable[[Tree], Array] | None = None,
    perturb: Sequence[int] | None = None,
    delta: Any = 0.01,
    solver: Solver | None = None,
    keep: Literal["all"] | Sequence[int] = "all",
    branches: BranchMode = "auto",
) -> StageDiagnostics:
    """How far each of the three stages of guidance goes, over the time of a run.

    Guided and conditional runs from the same noise, by `guidejax.sample`, beside each other:

    1. Direction shift: E‖x_s − (1 + ω) μ̄‖², μ̄ = E[x0 | c], which near t = 1 is less for guided
       samples (Theorem 3.2), their norms, and the cosine of what guidance moved to μ̄.
    2. Mode separation: the mean distance ‖x̂0 − x̂0'‖ of two samples of a condition, and the share
       of each mode among them (Theorem 3.3, Proposition 3.4).
    3. Concentration: with z_t = x_t + δ σ(t) ε, ε ~ N(0, I), run to the end by the same means, the
       growth E‖x_0 − z_0‖ / E‖x_t − z_t‖, which late in a run is less under guidance (Theorem 3.5,
       and the paper's perturbation test). δ is finite, as there: exact where the flow is linear,
       and possible with networks that have no forward derivative. Each run is perturbed on its
       own path.

    In 1, x stands for x/(α + σ), in which every process is the rectified flow of the theorems; on
    rectified flow it is x itself. Runs share keys, so that a solver that draws noise draws the same
    in all of them, and what differs is of guidance alone. The unguided run of a solver that itself
    takes other branches (`cfgpp`) is its run on the conditional model.

    What is measured is the run as it is made, its solver's errors on its grid among the rest. It
    costs 2 + 2P runs, half of them without guidance, and memory for x and x̂0 of the kept steps
    of two. Each is compiled by itself: nothing is gained by `jit`, though it works there.

    Args:
        key: One key, or (batch,) keys, one a sample.
        denoise: From `guidejax.denoiser`.
        noise: x at times[0], (batch, ...), or a pytree of such arrays; batch = C · `samples`.
        times: Falling times, (steps + 1,), one grid for all samples.
        guidance: From `guidejax.guidance`: any rule, schedule or learned weight.
        cond: The conditioning c, (batch, ...): each condition `samples` times, one after another,
            `jnp.repeat(conditions, samples, axis=0)`.
        uncond: The null condition, as in `sample`.
        conditions: The other branches, as in `sample`.
        samples: Samples a condition; without at least 2 there is no spread.
        mean: μ̄, (C, ...) or, one for all, (...). By default the mean over a condition's samples of
            the conditional x̂0 at times[0], which at pure noise is E[x0 | c]. Give it where a
            network says little of x0 there, as one of ε does near α = 0.
        omega: ω of the target, a number or (batch,). By default the mean over time, in σ/(α + σ),
            of the ω that the guidance asks for.
        modes: Means of modes, (k, ...) or, for each condition, (C, k, ...): x̂0 is of the nearest.
        assign: In place of modes, a function of x̂0 (batch, ...) to (batch, k): one-hot, or
            probabilities of a classifier. Define it once: each new function compiles anew.
        perturb: Indices of the steps before which x_t is perturbed; by default three, at quarters
            of the run; () for none.
        delta: δ, positive. 0.1 or more for states in bfloat16, which round smaller ones away.
        solver: From `guidejax.solvers`; DDIM by default.
        keep: Which steps are measured in 1 and 2: "all", or rising indices, for less memory.
        branches: How passes are made, as in `sample`.

    Returns:
        `StageDiagnostics`, a pytree of float32 at least. Ratios are 1 where both sides are 0: at
        ω = 0 each is 1, to rounding where ω is traced. Of an exact denoiser at t = 1, where x̂0 is
        the same for every noise, the spreads are 0 or rounding, and so is their ratio; so is the
        cosine where guidance has moved x by no more than that.

    Raises:
        ValueError: What `sample` raises; a batch that isn't `samples` of each condition, times
            that rise or differ by sample, both modes and assign, indices that are none, shapes that
            don't fit, NaN or infinite input.

    Example:
        >>> import guidejax as gj
        >>> model = gj.analytic.stagewise()  # a weak and a strong mode, and N(0, I)
        >>> denoise = gj.analytic.denoiser(model, gj.processes.rectified_flow())
        >>> found = stage_diagnostics(
        ...     jax.random.key(0), denoise, jax.random.normal(jax.random.key(1), (64, 2)),
        ...     cond=jnp.zeros(64, int), uncond=model.null, samples=64,
        ...     guidance=gj.guidance(gj.cfg, omega=4.0), times=gj.uniform_times(16),
        ...     modes=model.components.means[:2], perturb=[12])
        >>> bool(found.guided_distance[0, 0] < found.cond_distance[0, 0])  # towards 5 μ̄
        True
        >>> bool(found.guided_shares[-1, 0, 0] < found.cond_shares[-1, 0, 0])  # the weak mode's
        True
        >>> bool(found.growth_ratio[0, 0] < 0.5)
        True

    References:
        Jin, Shi, Gu, Stage-wise Dynamics of Classifier-Free Guidance in Diffusion Models, arXiv
        2509.22007, Theorems 3.2, 3.3, 3.5, Proposition 3.4, and the perturbation test of its
        experiments. The paper's ω is 1 + ω here.
    """
    check_denoiser(denoise)
    guide, solver, key = as_guidance(guidance), as_solver(solver), as_keys(key)
    batch = _check_noise(noise, samples)
    groups = batch // samples
    _check_repeated(cond, batch, samples)
    times = _grid(times)
    steps = times.shape[0] - 1
    kicks, chosen = _kicked_steps(perturb, steps), _kept_steps(keep, steps)
    check_finite("delta", delta)
    if jnp.ndim(delta) or (is_concrete(delta) and not float(delta) > 0):
        raise ValueError(f"delta must be a positive number, got {delta!r}.")
    if modes is not None and assign is not None:
        raise ValueError("give modes, or assign, which says of what mode each x̂0 is; not both.")
    if assign is not None:
        _check_assigned(jax.eval_shape(assign, noise), batch)
    if modes is not None:
        modes = _as_modes(modes, noise, groups)
    # Without μ̄ the first step is kept too, whose x̂0 says what it is.
    wanted = chosen
    if mean is None:
        wanted = tuple(sorted({0, *chosen}))
    else:
        mean = _as_mean(mean, noise, groups)

    run = partial(
        sample, key, denoise, noise, times=times, cond=cond, uncond=uncond,
        conditions=conditions, branches=branches,
    )  # fmt: skip
    every = len(wanted) == steps
    how: Any = "all" if every else wanted
    weight = _omegas(omega, guide, every, times, cond, denoise.process, noise)
    end, trail = run(guidance=guide, solver=solver, keep=how)
    plain_end, plain_trail = run(solver=solver, keep=how)
    weight = trail.stats.omega if weight is None else weight
    seen = [_whole((kept.x, kept.x0)) for kept in (trail, plain_trail)]
    measured = _measure(
        *seen, times, denoise.process, mean, gathered(weight), modes,
        chosen=chosen, samples=samples, assign=assign,
    )  # fmt: skip

    growths = []
    for index in kicks:
        at = times[index]
        numbers = {"solver": solver.numbers, "at": at, "delta": delta}
        kicked = dataclasses.replace(solver, numbers=numbers, step=_Kicked(solver.step))
        ends = run(guidance=guide, solver=kicked), run(solver=kicked)
        apart = _whole((ends[0], end)), _whole((ends[1], plain_end))
        growths.append(
            _growths(*apart, key, index, denoise.process, noise, at, delta, samples=samples)
        )
    growth = (jnp.zeros((0, groups), weight.dtype),) * 3
    if kicks:
        growth = jax.tree.map(lambda *each: jnp.stack(each), *growths)
    found: Any = *measured, jnp.asarray(times[np.asarray(kicks, int)]), *growth
    return StageDiagnostics(*found)


# What is measured


@partial(jax.jit, static_argnames=("chosen", "samples", "assign"))
def _measure(guided, plain, times, process, mean, omega, modes, *, chosen, samples, assign):
    """What is of kept steps, from (x, x̂0) of both runs."""
    average = partial(_over_samples, samples=samples)
    if mean is None:
        mean = tree_map(lambda x0: average(upcast(x0[0])), plain[1])
    if omega.ndim == 2:  # of each step: its mean over time
        clock = process.sigma(times) / _size(process, times)
        length = -jnp.diff(clock).astype(omega.dtype)[:, None]
        omega = jnp.sum(omega * length, axis=0) / jnp.sum(length)
    centre = jnp.repeat(flat(mean), samples, axis=0)
    target = expand(1 + omega, centre) * centre

    def shares(x0):
        if assign is None and modes is None:
            return None
        return average(_memberships(x0, modes, assign, samples))

    def step(at):
        (x, x0), (plain_x, plain_x0), size = at
        x, plain_x = (flat(a) / size.astype(target.dtype) for a in (x, plain_x))
        spread, plain_spread = _spread(x0, samples), _spread(plain_x0, samples)
        return (
            average(square_norm(x - target)),
            average(square_norm(plain_x - target)),
            _ratio(average(norm(x)), average(norm(plain_x))),
            average(dot(unit(x - plain_x), unit(centre))),
            spread,
            plain_spread,
            _ratio(spread, plain_spread),
            shares(x0),
            shares(plain_x0),
        )

    # All that isn't of a kept step is the first's, from which μ̄ was taken.
    kept = tree_map(lambda a: a[a.shape[0] - len(chosen) :], (guided, plain))
    t, s = (times[np.asarray(chosen) + side] for side in (0, 1))
    return t, s, mean, average(omega), *jax.lax.map(step, (*kept, _size(process, s)))


def _size(process: Process, s: Array) -> Array:
    return process.alpha(s) + process.sigma(s)


def _over_samples(value: Array, samples: int) -> Array:
    """The mean over each condition's samples: (batch, ...) -> (C, ...)."""
    return jnp.mean(value.reshape(-1, samples, *value.shape[1:]), axis=1)


def _ratio(a: Array, b: Array) -> Array:
    """a / b of what isn't negative; 1 where both are 0."""
    neither = (a == 0) & (b == 0)
    return jnp.where(neither, 1, a / jnp.where(neither, 1, b))


def _spread(x0: Tree, samples: int) -> Array:
    """The mean distance of two samples of each condition, (C,); NaN where there is but one."""
    rows = flat(x0)
    rows = rows.reshape(-1, samples, rows.shape[1])
    if samples < 2:
        return jnp.full(rows.shape[0], jnp.nan, rows.dtype)
    return jax.vmap(lambda group: _mean_pairwise(group, 1.0, "direct", None))(rows)


def _memberships(x0: Tree, modes: Array | None, assign: Any, samples: int) -> Array:
    """(batch, k): 1 for the mode that x̂0 is of, or what `assign` says; NaN where x̂0 is."""
    rows = flat(x0)
    if modes is None:
        given = upcast(assign(x0))
    else:
        away = square_distances(rows.reshape(-1, samples, rows.shape[1]), modes.astype(rows.dtype))
        nearest = jnp.argmin(away, axis=-1).reshape(-1)
        given = jax.nn.one_hot(nearest, modes.shape[1], dtype=rows.dtype)
    broken = jnp.any(jnp.isnan(rows), axis=1, keepdims=True)
    return jnp.where(broken, jnp.nan, given)


# What is perturbed


@dataclasses.dataclass(frozen=True)
class _Kicked:
    """A solver's step, from x_t + δ σ(t) ε where t is `at`: on the run's own grid and state."""

    step: Callable[..., Any]

    def __call__(self, numbers, denoise, process, x, t, s, key, memory):
        delta = jnp.where(t == numbers["at"], numbers["delta"], 0)
        x = combine((1, 1), x, _kick(key, process, x, t, delta))
        return self.step(numbers["solver"], denoise, process, x, t, s, key, memory)


def _kick(key: Array, process: Process, x: Tree, t: Any, delta: Any) -> Tree:
    """δ σ(t) ε, the same for a step's key whatever the run."""
    return combine((process.sigma(jnp.asarray(t)) * delta,), normal_like(fold_in(key, _KICK), x))


def _whole(tree: Tree) -> Tree:
    return tree_map(gathered, tree)


@partial(jax.jit, static_argnames="samples")
def _growths(guided, plain, key, index, process, noise, at, delta, *, samples):
    """How far a kick took both ends, (perturbed, not) each, over its length, and their ratio."""
    kick = _whole(_kick(fold_in(key, index), process, noise, at, delta))
    length = _over_samples(norm(flat(kick)), samples)
    far = [_over_samples(norm(flat(a) - flat(b)), samples) for a, b in (guided, plain)]
    return _ratio(far[0], length), _ratio(far[1], length), _ratio(*far)


# What is given


def _check_noise(noise: Tree, samples: int) -> int:
    """The batch, a number of whole conditions of finite noise."""
    check_floating("noise", noise)
    batch = batch_size(noise)
    if any(leaf.size == 0 for leaf in jax.tree.leaves(noise)):
        raise ValueError("noise is empty; expected at least one sample.")
    check_finite("noise", noise)
    positive_int("samples", samples)
    if batch % samples:
        raise ValueError(
            f"noise has a batch of {batch}, which is no multiple of samples={samples}: give that "
            "many samples of each condition, one condition after another."
        )
    return batch


def _check_repeated(cond: Any, batch: int, samples: int) -> None:
    """Raise where samples that should be of one condition are known not to be."""
    for leaf in jax.tree.leaves(cond):
        known = is_concrete(leaf) and getattr(leaf, "is_fully_addressable", True)
        if not known or np.shape(leaf)[:1] != (batch,):
            continue
        rows = np.asarray(leaf).reshape(batch // samples, samples, -1)
        if np.any((rows != rows[:, :1]) & (rows == rows)):
            raise ValueError(
                f"cond differs among the {samples} samples of a condition; give each condition "
                "that many times, one after another: jnp.repeat(conditions, samples, axis=0)."
            )


def _check_assigned(found: Any, batch: int) -> None:
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != batch:
        raise ValueError(
            f"assign returns {'shape ' + str(shape) if shape is not None else type(found)} for a "
            f"batch of {batch}; expected ({batch}, k): one-hot, such as jax.nn.one_hot(labels, k), "
            "or probabilities."
        )


def _grid(times: Any) -> Times:
    # NumPy where it is known: under jit JAX would trace it.
    times = (np if is_concrete(times) else jnp).asarray(times, jnp.result_type(float))
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(
            f"times has shape {times.shape}; expected (steps + 1,), one grid for all samples."
        )
    if is_concrete(times) and times[0] < times[-1]:
        raise ValueError(f"times must fall from noise to data; got {times}.")
    return times


def _kept_steps(keep: Any, steps: int) -> tuple[int, ...]:
    if isinstance(keep, str):
        if keep != "all":
            raise ValueError(f"keep={keep!r}; expected 'all', or indices of steps.")
        return tuple(range(steps))
    return kept_steps(keep, steps)


def _kicked_steps(perturb: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    if perturb is None:
        return tuple(sorted({steps * quarter // 4 for quarter in (1, 2, 3)}))
    try:
        chosen = tuple(operator.index(i) for i in perturb)
    except TypeError:
        raise ValueError(
            f"perturb={perturb!r} must be indices of steps; the step from a time t is "
            "int(np.argmin(abs(times[:-1] - t)))."
        ) from None
    chosen = tuple(i + (steps if i < 0 else 0) for i in chosen)
    rising = all(a < b for a, b in itertools.pairwise(chosen))
    if chosen and (not rising or chosen[0] < 0 or chosen[-1] >= steps):
        raise ValueError(
            f"perturb={perturb!r} must be rising indices of the {steps} steps, 0 the noisiest."
        )
    return chosen


def _broadcast(what: str, value: Tree, noise: Tree, lead: str, fit: Callable[..., Any]) -> Tree:
    """Each leaf of `value` as `fit(leaf, shape of a sample)` makes it."""
    if not same_structure(value, noise):
        raise ValueError(
            f"{what} has the structure {jax.tree.structure(value)}; expected that of noise, "
            f"{jax.tree.structure(noise)}."
        )
    check_finite(what, value)

    def one(leaf: Any, like: Array) -> Array:
        leaf = upcast(leaf)
        try:
            return fit(leaf, like.shape[1:])
        except ValueError:
            shape = str(like.shape[1:]).strip("(),")
            raise ValueError(
                f"{what} has shape {leaf.shape}; expected ({lead}, {shape}), after the shape of a "
                "sample."
            ) from None

    return tree_map(one, value, noise)


def _as_mean(mean: Tree, noise: Tree, groups: int) -> Tree:
    """μ̄ as (C, ...) a leaf."""
    fit = lambda leaf, shape: jnp.broadcast_to(leaf, (groups, *shape))  # noqa: E731
    return _broadcast("mean", mean, noise, f"{groups}", fit)


def _as_modes(modes: Tree, noise: Tree, groups: int) -> Array:
    """Means of modes as (C, k, d)."""

    def fit(leaf: Array, shape: tuple[int, ...]) -> Array:
        if leaf.ndim not in (len(shape) + 1, len(shape) + 2):
            raise ValueError
        count = leaf.shape[leaf.ndim - len(shape) - 1]
        return jnp.broadcast_to(leaf, (groups, count, *shape)).reshape(groups, count, -1)

    leaves = jax.tree.leaves(_broadcast("modes", modes, noise, "k", fit))
    return jnp.concatenate(leaves, axis=-1)


def _omegas(
    omega: Any, guide: Guidance, every: bool, times: Times, cond: Any, process: Process, x: Tree
) -> Array | None:
    """ω of the target: (batch,) where it is given, else of the steps, (steps, batch).

    None where a run that keeps `every` step will say it, of weights that see the state too.
    """
    dtype = jnp.result_type(*map(accumulator, map(jnp.result_type, jax.tree.leaves(x))))
    like = jnp.zeros(batch_size(x), dtype)
    if omega is not None:
        check_finite("omega", omega)
        if jnp.shape(omega) not in ((), like.shape):
            raise ValueError(
                f"omega has shape {jnp.shape(omega)}; expected a number or {like.shape}, one a "
                "sample."
            )
        return jnp.broadcast_to(jnp.asarray(omega, dtype), like.shape)
    if every:
        return None
    if any(w.sees_state for name, w in guide.weights if name.split(".")[0] == "omega"):
        raise ValueError(
            "this ω depends on the state, so that it is known of all steps only where all are "
            "kept: give keep='all', or omega=..., the ω of the target (1 + ω) μ̄."
        )
    return jax.vmap(lambda value: asked(value, like))(guide.rows(times, cond, process)[0])
