"""A solver's step, replayed from what it was told, so that the network stands once in a program.

A step is a plain function that calls `denoise` where and as often as it needs. Traced as it is, a
step of four evaluations would hold four copies of the network, and take four times as long to
compile. The sampler's loop is over evaluations instead: `query` runs the step up to its j-th call,
with the earlier answers given, and says where that call is made; `finish` runs it with all of
them. What is computed again is the solver's own arithmetic, a few operations on x.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, batch_size, concretely, is_concrete, tree_map
from guidejax.processes.base import Process
from guidejax.solvers.base import Solver

Answer = tuple[Tree, Mapping[str, Tree]]


class _AskedTooMuch(Exception):
    """The step has made the call whose place is wanted."""


class Recorded:
    """A denoiser that gives the answers it was given, and notes where it was asked."""

    def __init__(self, answers: Sequence[Answer] | Callable[[Tree], Answer]):
        self.answers = answers
        self.asked: list[tuple[Tree, Array]] = []

    def __call__(self, x: Tree, t: Array) -> Tree:
        return self.with_branches(x, t)[0]

    def with_branches(self, x: Tree, t: Array) -> Answer:
        self.asked.append((x, t))
        if callable(self.answers):
            return self.answers(x)
        if len(self.asked) > len(self.answers):
            raise _AskedTooMuch
        return self.answers[len(self.asked) - 1]


def query(solver: Solver, process: Process, answers: Sequence[Answer], *where: Any) -> Any:
    """(x, t) of the step's next call after `answers`; `where` is x, t, s, key, memory."""
    denoise = Recorded(answers)
    try:
        solver.step(solver.numbers, denoise, process, *where)
    except _AskedTooMuch:
        return denoise.asked[-1]
    raise ValueError(
        "the solver's step called the denoiser less often than before: how often it calls may "
        "depend on at_data(s) alone."
    )


def finish(solver: Solver, process: Process, answers: Sequence[Answer], *where: Any) -> Any:
    """(x_s, memory) of the step, all its calls answered."""
    return solver.step(solver.numbers, Recorded(answers), process, *where)


def _itself(branches: tuple[str, ...]) -> Callable[[Tree], Answer]:
    return lambda x: (x, dict.fromkeys(branches, x))


def kinds(
    solver: Solver, process: Process, batched: bool, into_data: bool, like: Tree = None
) -> tuple[str, ...]:
    """For each call of a step, where it is made: "start" (t), "end" (s), or "between".

    Args:
        solver: The solver.
        process: The noising process.
        batched: Whether each sample has times of its own.
        into_data: Whether the step is known to end at s = 0.
        like: The state, whose shapes a step may look at; (1, 1) by default.
    """
    known = _Shapes.of((solver.numbers, process))
    state = _Shapes.of(_SMALL if like is None else like)
    return _kinds(solver.step, solver.init, solver.branches, known, state, batched, into_data)


class _Shapes(NamedTuple):
    """Arrays without their values, which can be hashed."""

    treedef: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @staticmethod
    def of(tree: Tree) -> _Shapes:
        leaves, treedef = jax.tree.flatten(tree)
        return _Shapes(treedef, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))

    def map(self, fn: Callable[..., Any]) -> Tree:
        """`fn(shape, dtype)` of each."""
        return jax.tree.unflatten(self.treedef, [fn(*leaf) for leaf in self.leaves])


_SMALL = jax.ShapeDtypeStruct((1, 1), jnp.float32)


@functools.lru_cache(maxsize=512)
def _kinds(step, init, branches, known, state, batched, into_data):
    found: list[str] = []

    def run(numbers_and_process, x, t, s, key):
        numbers, process = numbers_and_process
        denoise = Recorded(_itself(branches))
        end = np.zeros(t.shape, t.dtype) if into_data else s
        out = step(numbers, denoise, process, x, t, end, key, init(x, t))
        found.extend(
            "start" if u is t else "end" if u is s else "between" for _, u in denoise.asked
        )
        return out

    x = state.map(jax.ShapeDtypeStruct)
    time = jax.ShapeDtypeStruct((batch_size(x),) if batched else (), jnp.result_type(float))
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(run, known.map(jax.ShapeDtypeStruct), x, time, time, key)
    if not found:
        raise ValueError("the solver's step never calls the denoiser.")
    return tuple(found)


def evaluations(solver: Solver) -> int:
    """Calls of the denoiser in a step that doesn't end in data."""
    from guidejax.processes.continuous import rectified_flow

    return len(kinds(solver, rectified_flow(), batched=False, into_data=False))


def asked_times(
    solver: Solver, process: Process, times: Any, into_data: bool, like: Tree = None
) -> tuple[Any, ...]:
    """The time of each query at each step of a grid: (steps,) or (steps, batch) a query.

    With `into_data` those of a step that is known to end at s = 0 follow those of a usual step.
    NumPy where they are known now, under jit too, where JAX would trace them. `like` is the state,
    as for `kinds`.
    """
    small = jax.ShapeDtypeStruct((*(np.shape(times)[1:] or (1,)), 1), jnp.float32)
    state = _Shapes.of(small if like is None else like)
    if not is_concrete(solver, process, times):
        return _asked_times(solver, process, times, into_data, state)
    with concretely():
        return tuple(np.asarray(t) for t in _asked_times(solver, process, times, into_data, state))


@functools.partial(jax.jit, static_argnames=("into_data", "state"))
def _asked_times(
    solver: Solver, process: Process, times: Array, into_data: bool, state: _Shapes
) -> tuple[Array, ...]:

    def calls(t, s):
        x = state.map(jnp.zeros)
        denoise = Recorded(_itself(solver.branches))
        key, memory = jax.random.key(0), solver.init(x, t)
        solver.step(solver.numbers, denoise, process, x, t, s, key, memory)
        return tuple(jnp.asarray(u) for _, u in denoise.asked)

    def one(t, s):
        return calls(t, s) + (calls(t, np.zeros(t.shape, t.dtype)) if into_data else ())

    return jax.vmap(one)(times[:-1], times[1:])


def store(answers: tuple[Answer, ...], answer: Answer, number: Array) -> tuple[Answer, ...]:
    """`answers` with that of the call with this number."""
    put = lambda i: tree_map(  # noqa: E731
        lambda new, old: jnp.where(number == i, new, old), answer, answers[i]
    )
    return tuple(put(i) for i in range(len(answers)))
