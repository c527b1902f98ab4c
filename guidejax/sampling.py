"""The sampler: one `lax.scan` over the time grid, cut where guidance turns on and off."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Tree,
    batch_size,
    check_not_nan,
    concretely,
    is_concrete,
    shard_like,
    tree_map,
)
from guidejax.denoisers import Denoiser, as_denoiser
from guidejax.guidance import Guidance
from guidejax.guidance import guidance as make_guidance
from guidejax.processes import Process
from guidejax.solvers.base import Denoised, Solver, as_keys, fold_in
from guidejax.solvers.ddim import ddim
from guidejax.weights.base import Weight

# More alternations than this and the program is one scan with a run-time gate: each segment
# compiles a scan of its own.
MAX_SEGMENTS = 8

Segments = tuple[tuple[int, int, bool], ...]


def uniform_times(steps: int, start: float = 1.0, stop: float = 0.0) -> np.ndarray:
    """`steps` equal steps from `start` down to `stop`: an array (steps + 1,).

    A NumPy array, so that the grid is known under jit too, where JAX would trace it.

    Raises:
        ValueError: If steps < 1 or not 1 ≥ start > stop ≥ 0.

    Example:
        >>> uniform_times(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if steps < 1 or not 1 >= start > stop >= 0:
        raise ValueError(
            f"expected steps ≥ 1 and 1 ≥ start > stop ≥ 0, got {steps}, {start}, {stop}."
        )
    return np.linspace(start, stop, steps + 1, dtype=jnp.result_type(float))


def sample(
    key: Array,
    denoise: Any,
    process: Process,
    noise: Tree,
    *,
    times: Array,
    cond: Any = None,
    uncond: Any = None,
    guidance: Guidance | None = None,
    solver: Solver | None = None,
    branches: Mapping[str, Any] | None = None,
    remat: Literal["none", "step"] = "none",
) -> Tree:
    """Draw samples: integrate from `noise` at times[0] down to times[-1] under guidance.

    Each step t → s predicts x̂0 for every branch that the guidance needs, combines them, and lets
    the solver take x_t to x_s. Steps whose ω is known to be 0 (`interval`, omega = 0) make the
    conditional pass alone. ω and every other number is traced: a new value doesn't recompile.

    Args:
        key: One key, or (batch,) keys, one a sample.
        denoise: A `Denoiser`, or any `denoise(x, t, cond) -> x0`.
        process: The noising process.
        noise: x at times[0], (batch, ...), or a pytree of such arrays.
        times: Falling times in [0, 1], (steps + 1,), or (steps + 1, batch) one grid a sample.
        cond: The conditioning c, handed to the network: class ids, embeddings, any pytree.
        uncond: The null condition, the shape of `cond` or broadcast to it; needed under guidance.
        guidance: From `guidejax.guidance`; None is the conditional model.
        solver: From `guidejax.solvers`; DDIM without churn by default.
        branches: The condition of every other branch by name ("negative", ...), or a pair
            (denoise, condition) for a branch with a network of its own ("weak", ...).
        remat: "step" recomputes each step's activations in the backward pass: memory for the
            gradient grows with the states alone.

    Returns:
        x at times[-1], the shape and dtype of `noise`.

    Raises:
        ValueError: If the times don't fall, shapes or labels don't fit, a branch is missing, or a
            number is NaN; before anything compiles.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> denoise = lambda x, t, cond: jnp.broadcast_to(cond[:, None], x.shape)
        >>> x = sample(jax.random.key(0), denoise, rectified_flow(), jnp.zeros((2, 3)),
        ...            cond=jnp.array([1.0, 2.0]), times=uniform_times(4))
        >>> x.tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    guided = make_guidance() if guidance is None else guidance
    solver = ddim() if solver is None else solver
    denoise = as_denoiser(denoise, process)
    # NumPy where it is known: under jit JAX would trace it, and no step could be left out.
    times = (np if is_concrete(times) else jnp).asarray(times, jnp.result_type(float))
    key = as_keys(key)
    if key.shape not in ((), (batch_size(noise),)):
        raise ValueError(
            f"expected one key or ({batch_size(noise)},) keys, one a sample; got {key.shape}."
        )
    _check(times, noise, cond, guided, denoise, process)
    active = guided.active(times, process)
    segments = _segments(active) if isinstance(active, np.ndarray) else None
    others: dict[str, tuple[Denoiser, Any]] = {}
    if segments is None or any(on for _, _, on in segments):
        others = _branches(guided, denoise, process, cond, uncond, branches or {})
    return _run(
        key, denoise, process, noise, times, cond, others, guided, solver, active,
        segments=segments, remat=remat,
    )  # fmt: skip


def _check(
    times: Array, noise: Tree, cond: Any, guided: Guidance, denoise: Denoiser, process: Process
) -> None:
    batch = batch_size(noise)
    if times.ndim not in (1, 2) or times.shape[0] < 2:
        raise ValueError(f"times must be (steps + 1,) with steps ≥ 1, got shape {times.shape}.")
    if times.ndim == 2 and times.shape[1] != batch:
        raise ValueError(f"times of shape {times.shape} don't fit a batch of {batch}.")
    if is_concrete(times):
        grid = np.asarray(times)
        if not np.all(np.isfinite(grid)) or grid.max() > 1 or grid.min() < 0:
            raise ValueError(f"times must lie in [0, 1], 1 being noise; got {grid}.")
        if not np.all(np.diff(grid, axis=0) < 0):
            raise ValueError(
                f"times must fall from noise to data, each below the last; got {grid}."
            )
        blind = denoise.prediction in ("eps", "score") and is_concrete(process)
        with concretely():
            blind = blind and bool(np.any(np.asarray(process.alpha(grid[0])) <= 0))
        if blind:
            raise ValueError(
                f"at t = {grid[0]} α is 0, where {denoise.prediction!r} says nothing of x0; "
                "start lower: uniform_times(steps, start=0.999)."
            )
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != batch:
            raise ValueError(
                f"cond has shape {jnp.shape(leaf)}; expected a leading axis of {batch}, the batch "
                "of `noise`."
            )
    check_not_nan("omega", guided.omega)
    for link, numbers in zip(guided.links, guided.numbers, strict=True):
        for name, number in numbers.items():
            check_not_nan(f"{link.rule.name}'s {name}", number)
    _check_mask(guided.mask, noise)
    for weight in _weights(guided):
        if hasattr(weight.fn, "check"):
            weight.fn.check(cond)


def _check_mask(mask: Any, noise: Tree) -> None:
    """Masks broadcast against the state: one for every leaf, or one a leaf."""
    masks, leaves = jax.tree.leaves(mask), jax.tree.leaves(noise)
    if len(masks) not in (0, 1, len(leaves)):
        raise ValueError(f"the mask has {len(masks)} arrays; the state has {len(leaves)}.")
    for one, leaf in zip(masks * len(leaves) if len(masks) == 1 else masks, leaves, strict=False):
        try:
            fits = np.broadcast_shapes(np.shape(one), leaf.shape) == leaf.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"the mask has shape {np.shape(one)}, which doesn't broadcast to the state's "
                f"{leaf.shape}."
            )


def _check_rows(rows: Tree, guided: Guidance, batch: int) -> None:
    """A number of the guidance is one for the batch or one a sample."""
    omegas, numbers = rows
    named = {"omega": omegas}
    for link, row in zip(guided.links, numbers, strict=True):
        named |= {f"{link.rule.name}'s {name}": value for name, value in row.items()}
    for name, value in named.items():
        shape = value.shape[1:]
        # A table over the elements of a sample (`recfg`) leads with the batch, or with 1.
        table = name != "omega" and len(shape) > 1 and shape[0] in (1, batch)
        if shape not in ((), (batch,)) and not table:
            raise ValueError(
                f"{name} has shape {shape} at a step; expected a scalar or ({batch},), "
                "the batch of `noise`."
            )


def _weights(guided: Guidance) -> list[Weight]:
    """Every weight of the guidance, those inside products and sums too."""
    found: list[Weight] = []

    def visit(node: Any) -> None:
        if isinstance(node, Weight):
            found.append(node)
            visit(node.params)
        elif isinstance(node, (tuple, list)):
            for child in node:
                visit(child)
        elif isinstance(node, dict):
            visit(list(node.values()))

    visit([guided.omega, *guided.numbers])
    return found


def _segments(active: np.ndarray) -> Segments | None:
    """Runs of steps alike: ((start, stop, guided), ...); None if there are too many."""
    edges = [0, *(np.flatnonzero(np.diff(active)) + 1).tolist(), len(active)]
    runs = tuple((a, b, bool(active[a])) for a, b in itertools.pairwise(edges))
    return runs if len(runs) <= MAX_SEGMENTS else None


def _branches(
    guided: Guidance,
    denoise: Denoiser,
    process: Process,
    cond: Any,
    uncond: Any,
    given: Mapping[str, Any],
) -> dict[str, tuple[Denoiser, Any]]:
    """The network and condition of each branch but "cond"."""
    found: dict[str, tuple[Denoiser, Any]] = {}
    known = {**({} if uncond is None else {"uncond": uncond}), **given}
    for name in guided.branches[1:]:
        if name not in known:
            how = "uncond=..." if name == "uncond" else f"branches={{{name!r}: ...}}"
            raise ValueError(f"the guidance needs the branch {name!r}; give sample({how}).")
        value = known[name]
        network = denoise
        if isinstance(value, tuple) and len(value) == 2 and callable(value[0]):
            network, value = as_denoiser(value[0], process), value[1]
        found[name] = (network, like(value, cond, name))
    return found


def like(value: Any, cond: Any, name: str) -> Any:
    """A branch's condition in the shape of `cond`: a null label or embedding is broadcast."""
    if jax.tree.structure(value) != jax.tree.structure(cond):  # type: ignore[operator]
        return value

    def one(value, cond):
        value = jnp.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(cond.dtype, jnp.floating):
            value = value.astype(cond.dtype)
        try:
            return shard_like(jnp.broadcast_to(value, cond.shape), cond)
        except ValueError:
            raise ValueError(
                f"{name} has shape {value.shape}, which doesn't broadcast to cond's {cond.shape}."
            ) from None

    return tree_map(one, value, tree_map(jnp.asarray, cond))


@jax.custom_batching.custom_vmap
def _for_any(flag: Array) -> Array:
    """`flag`; under vmap whether any is set, one flag for all.

    A batched predicate would turn `lax.cond` into a select that makes both passes always and
    copies the network's parameters for each sample. Where ω is 0 the guided pass is the
    conditional one, so that one flag is enough.
    """
    return flag


@_for_any.def_vmap
def _for_any_vmap(axis_size, in_batched, flag):
    return _for_any(jnp.any(flag, axis=0) if in_batched[0] else flag), False


@functools.partial(jax.jit, static_argnames=("segments", "remat"))
def _run(
    key, denoise, process, noise, times, cond, others, guided, solver, active, *, segments, remat
):
    steps = times.shape[0] - 1
    rows = guided.rows(times, cond, process)
    _check_rows(rows, guided, batch_size(noise))
    xs = {
        "t": times[:-1],
        "s": times[1:],
        "index": jnp.arange(steps),
        "row": rows,
        "active": jnp.asarray(active),
    }

    def predictions(x, t, on):
        found = {"cond": denoise(x, t, cond)}
        if on:
            found |= {name: net(x, t, c) for name, (net, c) in others.items()}
        return found

    def denoised(state, x, t, s, row, on):
        branches = predictions(x, t, on)
        x0, state = guided.apply(state, branches, row, x, t, s, process)
        return x0, state, branches

    def step(on, carry, step_xs):
        x, state, memory = carry
        t, s, row = step_xs["t"], step_xs["s"], step_xs["row"]
        x0, state, branches = denoised(state, x, t, s, row, on)
        x, memory = solver.step(
            solver.numbers, Denoised(x0, branches), None, process, x, t, s,
            fold_in(key, step_xs["index"]), memory,
        )  # fmt: skip
        return x, state, memory

    def gated(carry, step_xs):
        if not others:
            return step(False, carry, step_xs), None
        on, off = functools.partial(step, True), functools.partial(step, False)
        return jax.lax.cond(_for_any(step_xs["active"]), on, off, carry, step_xs), None

    def body(on):
        one = gated if on is None else lambda carry, xs: (step(on, carry, xs), None)
        return jax.checkpoint(one) if remat == "step" else one

    carry = (noise, guided.init(noise), solver.init(noise))
    for start, stop, on in segments or ((0, steps, None),):
        part = tree_map(lambda leaf, a=start, b=stop: leaf[a:b], xs)
        carry, _ = jax.lax.scan(body(on), carry, part)
    return carry[0]
