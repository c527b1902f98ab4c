"""The loop: where it is cut, what a gate costs, and what its gradient remembers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, tree_map

Remat = Literal["none", "step", "recursive"]

# More runs of predictions than this and the program is one scan with a run-time gate: each segment
# compiles a scan of its own.
MAX_SEGMENTS = 8


class Gate(NamedTuple):
    """The branches of one prediction: evaluated for sure, or as a flag says at run time."""

    sure: tuple[str, ...]
    maybe: tuple[str, ...]


class Segment(NamedTuple):
    """Predictions with one gate: start ≤ i < stop."""

    start: int
    stop: int
    gate: Gate


def predictions(steps: int, stages: int, into_data: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of each prediction of a run, its step and the step whose guidance it takes.

    Args:
        steps: Steps of the run.
        stages: Predictions a step; the second, at its end, takes the guidance of the next step.
        into_data: Whether the last step is known to end at s = 0, where a second prediction has
            nothing to predict.
    """
    step, stage = np.divmod(np.arange(stages * steps), stages)
    count = len(step) - (1 if into_data and stages == 2 else 0)
    return step[:count], np.minimum(step + stage, steps - 1)[:count]


def segments(active: Mapping[str, Any], rows: np.ndarray) -> tuple[Segment, ...]:
    """Cut the run where branches turn on and off.

    Args:
        active: For each branch, the steps it is needed on: NumPy, or traced.
        rows: For each prediction of the run, the step whose guidance it takes.
    """
    known = {name: on for name, on in active.items() if isinstance(on, np.ndarray)}

    def gate(row: int) -> Gate:
        sure = [name for name, on in known.items() if on[row]]
        return Gate(tuple(sure), tuple(name for name in active if name not in known))

    def runs() -> tuple[Segment, ...]:
        found, start = [], 0
        for which, run in itertools.groupby(gate(row) for row in rows):
            stop = start + len(list(run))
            found.append(Segment(start, stop, which))
            start = stop
        return tuple(found)

    found = runs()
    if len(found) > MAX_SEGMENTS:
        known = {name: on for name, on in known.items() if on.all() or not on.any()}
        found = runs()
    return found


@jax.custom_batching.custom_vmap
def for_any(flag: Array) -> Array:
    """`flag`; under vmap whether any is set, one flag for all.

    A batched predicate would turn `lax.cond` into a select that makes both passes always and
    copies the network's parameters for each sample. Where ω is 0 the guided pass is the
    conditional one, so that one flag is enough.
    """
    return flag


@for_any.def_vmap
def _for_any_vmap(axis_size, in_batched, flag):
    return for_any(jnp.any(flag, axis=0) if in_batched[0] else flag), False


def scan(body: Callable[..., Any], carry: Tree, xs: Tree, remat: Remat) -> tuple[Tree, Tree]:
    """`jax.lax.scan`, with what its gradient keeps of each step as a choice."""
    if remat == "none":
        return jax.lax.scan(body, carry, xs)
    body = jax.checkpoint(body, prevent_cse=False)
    if remat == "step":
        return jax.lax.scan(body, carry, xs)
    whole = jax.checkpoint(lambda carry, xs: _recursive(body, carry, xs), prevent_cse=False)
    return whole(carry, xs)


def _recursive(body, carry, xs):
    """A few chunks of chunks: states kept grow with log(steps), as do the forward passes redone."""
    steps = len(jax.tree.leaves(xs)[0])
    chunks = next((n for n in (4, 5, 6, 3, 7, 8) if steps % n == 0), 4)
    size = steps // chunks
    if size < 2:
        return jax.lax.scan(body, carry, xs)
    cut = chunks * size
    inner = jax.checkpoint(lambda carry, xs: _recursive(body, carry, xs), prevent_cse=False)
    head = tree_map(lambda leaf: leaf[:cut].reshape(chunks, size, *leaf.shape[1:]), xs)
    carry, ys = jax.lax.scan(inner, carry, head)
    ys = tree_map(lambda leaf: leaf.reshape(cut, *leaf.shape[2:]), ys)
    if cut == steps:
        return carry, ys
    carry, rest = jax.lax.scan(body, carry, tree_map(lambda leaf: leaf[cut:], xs))
    return carry, tree_map(lambda *parts: jnp.concatenate(parts), ys, rest)
