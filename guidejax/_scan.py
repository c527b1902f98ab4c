"""The loop: where it is cut, what is evaluated where, and what its gradient remembers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Times, Tree, is_concrete, tree_map

Remat = Literal["none", "step", "recursive"]

# More segments than this and the program is one scan with run-time choices: each segment compiles
# a scan of its own.
MAX_SEGMENTS = 8


class Needed(NamedTuple):
    """The branches of one evaluation: evaluated for sure, or where a flag says so at run time."""

    sure: tuple[str, ...]
    maybe: tuple[str, ...]


class Segment(NamedTuple):
    """Evaluations that need the same branches: start ≤ i < stop."""

    start: int
    stop: int
    needed: Needed


class Evaluations(NamedTuple):
    """For each evaluation of a run, in order; static, in NumPy.

    Attributes:
        step: Its step.
        number: Its number within the step.
        query: Which of the step's queries places it: those of a usual step first, then those of a
            last step into data.
        finish: 0; 1 where a usual step ends with it, 2 where a last step into data does.
    """

    step: np.ndarray
    number: np.ndarray
    query: np.ndarray
    finish: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Whether it is the first of its step."""
        return self.number == 0

    @property
    def last(self) -> np.ndarray:
        """Whether it is the last of its step."""
        return self.finish > 0


def evaluations(steps: int, usual: int, into_data: int | None) -> Evaluations:
    """The evaluations of a run.

    Args:
        steps: Steps of the run.
        usual: Evaluations a step.
        into_data: Evaluations of a last step that is known to end at s = 0, if that is the case.
    """
    counts = np.full(steps, usual)
    if into_data is not None:
        counts[-1] = into_data
    step = np.repeat(np.arange(steps), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    final = (step == steps - 1) & (into_data is not None)
    last = number == counts[step] - 1
    return Evaluations(step, number, number + usual * final, np.where(last, 1 + final, 0))


def places(
    times: Times, asked: tuple[Any, ...], kinds: tuple[str, ...], where: Evaluations
) -> tuple[Any, Any]:
    """(s, t) at which each evaluation takes its weights: (n,) or (n, batch) each.

    t is the time it is made at, s the end of its step; one that is made at the end of its step is
    of the next step, as its first evaluation is.

    Args:
        times: The grid.
        asked: For each query, its time at every step, where any is "between".
        kinds: For each query, where it is: "start", "end" or "between".
        where: The run.
    """
    lib = np if is_concrete(times, asked) else jnp
    step, last = where.step, times.shape[0] - 2
    kind = np.asarray(kinds)[where.query]
    row = np.minimum(step + (kind == "end"), last)
    grid = lib.asarray(times)
    s, t = grid[row + 1], grid[row]
    if "between" in kinds:

        def wide(a: Any) -> Any:
            padded = a.reshape(a.shape[:1] + (1,) * (len(shape) + 1 - a.ndim) + a.shape[1:])
            return lib.broadcast_to(padded, (a.shape[0], *shape))

        columns = [lib.asarray(column) for column in asked]
        shape = np.broadcast_shapes(grid.shape[1:], *(c.shape[1:] for c in columns))
        made = lib.stack([wide(c) for c in columns])[where.query, step]
        keep = (kind == "between").reshape((-1,) + (1,) * len(shape))
        s, t = wide(s), lib.where(keep, made, wide(t))
    return s, t


def segments(active: Mapping[str, Any], count: int) -> tuple[Segment, ...]:
    """Cut the run where branches turn on and off.

    Args:
        active: For each branch, the evaluations it is needed at, (count,): NumPy, or traced.
        count: Evaluations of the run.
    """
    known = {name: on for name, on in active.items() if isinstance(on, np.ndarray)}

    def needed(i: int) -> Needed:
        sure = [name for name, on in known.items() if on[i]]
        return Needed(tuple(sure), tuple(name for name in active if name not in known))

    def runs() -> tuple[Segment, ...]:
        found, start = [], 0
        for which, run in itertools.groupby(needed(i) for i in range(count)):
            stop = start + len(list(run))
            found.append(Segment(start, stop, which))
            start = stop
        return tuple(found)

    found = runs()
    if len(found) > MAX_SEGMENTS:
        known = {name: on for name, on in known.items() if on.all() or not on.any()}
        found = runs()
    return found


def turns(active: Mapping[str, Any], where: Evaluations) -> Any:
    """At which evaluations a step begins whose guidance is on or off as that before isn't.

    (count,), or (count, batch) where samples differ; None where there is known to be no such step.

    Args:
        active: For each branch, the evaluations it is needed at, (count,), or (count, batch) for
            each sample: NumPy, or traced.
        where: The run.
    """
    lib = np if is_concrete(dict(active)) else jnp
    first = np.flatnonzero(where.first)
    found: Any = None
    for on in active.values():
        of_step = lib.asarray(on)[first]
        turned = of_step != lib.concatenate([of_step[:1], of_step[:-1]])
        if found is not None and turned.ndim != found.ndim:
            turned, found = (a if a.ndim > 1 else a[:, None] for a in (turned, found))
        found = turned if found is None else found | turned
    if found is None or (lib is np and not np.any(found)):
        return None
    return found[where.step] & where.first.reshape((-1,) + (1,) * (found.ndim - 1))


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
