"""What the sampler is given, checked before anything compiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Times,
    Tree,
    batch_size,
    check_not_nan,
    concretely,
    is_concrete,
    same_structure,
    shard_like,
    tree_map,
)
from guidejax._branches import Branches
from guidejax._denoisers import Denoiser, as_denoiser
from guidejax._guidance import Guidance
from guidejax.processes import Process
from guidejax.weights.base import Weight


def check(
    times: Times, noise: Tree, cond: Any, guided: Guidance, denoise: Denoiser, process: Process
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


def check_rows(rows: Tree, guided: Guidance, batch: int) -> None:
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


def find_branches(
    names: Iterable[str],
    process: Process,
    cond: Any,
    uncond: Any,
    given: Mapping[str, Any],
) -> Branches:
    """The condition of each named branch, and its network where that isn't the sampler's own."""
    found: dict[str, tuple[Denoiser | None, Any]] = {}
    known = {**({} if uncond is None else {"uncond": uncond}), **given}
    for name in names:
        if name not in known:
            how = "uncond=..." if name == "uncond" else f"conditions={{{name!r}: ...}}"
            raise ValueError(f"the guidance needs the branch {name!r}; give sample({how}).")
        value = known[name]
        network = None
        if isinstance(value, tuple) and len(value) == 2 and callable(value[0]):
            network, value = as_denoiser(value[0], process), value[1]
        found[name] = (network, _like(value, cond, name))
    return found


def _like(value: Any, cond: Any, name: str) -> Any:
    """A branch's condition in the shape of `cond`: a null label or embedding is broadcast."""
    if not same_structure(value, cond):
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
