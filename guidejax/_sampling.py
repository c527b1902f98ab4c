"""The sampler: one `lax.scan` over a run's evaluations, cut where guidance turns on and off."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Times,
    Tree,
    any_of_row,
    batch_size,
    expand,
    is_concrete,
    tree_map,
)
from guidejax._branches import BranchMode, check_mode, predict
from guidejax._denoisers import Denoiser, check_denoiser
from guidejax._guidance import Guidance
from guidejax._inputs import (
    as_guidance,
    as_solver,
    check,
    check_branches,
    check_conditions,
    find_branches,
)
from guidejax._keep import Keep, Trail, blank, check_keep, measure, put, slots
from guidejax._progress import Progress, report
from guidejax._random import as_keys, drawn_once, fold_in
from guidejax._scan import (
    Evaluations,
    Remat,
    Segment,
    evaluations,
    for_any,
    places,
    scan,
    segments,
    turns,
)
from guidejax.solvers._replay import Recorded, asked_times, finish, kinds, query, store
from guidejax.solvers.base import Solver
from guidejax.weights.base import Step


class _Static(tuple):
    """NumPy arrays that jit compares by value."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(tuple(a.tobytes() for a in self))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Static)
            and len(self) == len(other)
            and all(np.array_equal(a, b) for a, b in zip(self, other, strict=True))
        )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Static configuration of one compiled run."""

    where: _Static  # an `Evaluations`
    usual: int
    into_data: int | None
    segments: tuple[Segment, ...]
    mode: BranchMode
    skip: bool
    keep: Keep
    progress: Progress
    remat: Remat


def sample(
    key: Array,
    denoise: Denoiser,
    noise: Tree,
    *,
    times: Times,
    cond: Any = None,
    uncond: Any = None,
    conditions: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    solver: Solver | None = None,
    branches: BranchMode = "auto",
    skip: Literal["auto", "never"] = "auto",
    keep: Keep = "final",
    progress: Progress = False,
    remat: Remat = "none",
) -> Any:
    """Draw samples: integrate from `noise` at times[0] to times[-1] under guidance.

    Each step t → s evaluates the network for every branch that the guidance needs, combines them,
    and lets the solver take x_t to x_s. Where ω is known to be 0 (`interval`, omega = 0) the
    conditional pass is made alone; so it is, at run time, where a rule's state lets the others go
    (`adaptive`, `cached_difference`). ω and every other number is traced: a new value doesn't
    recompile.

    Args:
        key: One key, or (batch,) keys, one a sample.
        denoise: From `guidejax.denoiser`; it knows its process.
        noise: x at times[0], (batch, ...), or a pytree of such arrays: σ(t) ε on its process
            (`guidejax.processes.initial_noise`).
        times: Falling times in [0, 1], (steps + 1,), or (steps + 1, batch) one grid a sample.
            Solvers of the ODE also take rising ones: inversion.
        cond: The conditioning c, handed to the network: class ids, embeddings, any pytree.
        uncond: The null condition, the shape of `cond` or broadcast to it; needed under guidance.
        guidance: From `guidejax.guidance`; None is the conditional model.
        solver: From `guidejax.solvers`; DDIM without churn by default. An evaluation within or at
            the end of a step takes the ω of its own time (at the very end, where no step departs,
            that of the last), and leaves the guidance's state alone.

    Other Args:
        conditions: What every other branch by name ("negative", "weak", ...) is made of: a
            condition for the same network, a `Denoiser` for the same condition, or a pair of both.
        branches: How the passes of an evaluation are made, with the same samples from a network
            that treats each by itself: "sequential", one after another; "batched", one pass over a
            batch of all; "vmapped", `jax.vmap` over the conditions; "sharded", side by side on the
            axis "branch" of the mesh in scope, with one all-reduce an evaluation. "auto" is
            "batched" for up to 4 samples a device, where the network takes a wider batch, and
            "sequential" for more.
        skip: "never" makes every pass at every step, and costs it: the same samples to rounding.
        keep: "final"; "stats", what guidance did at each step; indices of steps, their x and x̂0;
            or "all". Memory grows with what is kept.
        progress: True for a line on stderr, or `progress(step, steps)`, called on the host as each
            step begins, under jit too.
        remat: What the gradient recomputes: "none"; "step", a step's activations, so that memory
            grows with the states alone, at one more forward pass; "recursive", the states too, so
            that it grows with log(steps), at about log₄(steps) forward passes.

    Returns:
        x at times[-1], the shape and dtype of `noise`; unless keep is "final", a pair of it and a
        `Trail`.

    Raises:
        ValueError: If the times don't fall, shapes or labels don't fit, a branch is missing, or
            given and no rule's, an option is unknown, or a number is NaN; before anything compiles.

    Example:
        >>> import guidejax as gj
        >>> process = gj.processes.rectified_flow()
        >>> denoise = gj.denoiser(lambda x, t, c: jnp.broadcast_to(c[:, None], x.shape), process)
        >>> x = sample(jax.random.key(0), denoise, jnp.zeros((2, 3)),
        ...            cond=jnp.array([1.0, 2.0]), times=gj.uniform_times(4))
        >>> x.tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    guide, solver = as_guidance(guidance), as_solver(solver)
    check_denoiser(denoise)
    # NumPy where it is known: under jit JAX would trace it, and no step could be left out.
    times = (np if is_concrete(times) else jnp).asarray(times, jnp.result_type(float))
    key = as_keys(key)
    batch = batch_size(noise)
    if key.shape not in ((), (batch,)):
        raise ValueError(f"expected one key or ({batch},) keys, one a sample; got {key.shape}.")
    for name, value, known in (
        ("skip", skip, ("auto", "never")),
        ("remat", remat, get_args(Remat)),
    ):
        if value not in known:
            raise ValueError(f"unknown {name}={value!r}; expected one of {', '.join(known)}.")
    check(times, noise, cond, guide, denoise, solver)
    steps = times.shape[0] - 1
    keep = check_keep(keep, steps)

    made = functools.partial(kinds, solver, denoise.process, times.ndim == 2, like=noise)
    usual = made(into_data=False)
    final: tuple[str, ...] = ()
    if is_concrete(times) and not np.any(times[-1]):
        final = made(into_data=True)
    where = evaluations(steps, len(usual), len(final) or None)
    asked: tuple[Any, ...] = ()
    if "between" in usual + final:
        asked = asked_times(solver, denoise.process, times, into_data=bool(final), like=noise)
    at = places(times, asked, usual + final, where)
    count = len(where.step)

    names = guide.branches[1:]
    each = {n: guide.needed_each((n,), *at, denoise.process, times) for n in names}
    anew = turns(each, where) if solver.multistep else None
    active = {name: any_of_row(on) for name, on in each.items()}
    if skip == "never":
        active = {name: np.ones(count, bool) for name in active}
    active |= {name: np.ones(count, bool) for name in solver.branches}
    parts = segments(active, count)
    used = {name for part in parts for name in (*part.needed.sure, *part.needed.maybe)}
    names = tuple(name for name in active if name in used)
    conditions = {} if conditions is None else conditions
    check_conditions(conditions, guide, solver.branches)
    others = find_branches(names, denoise, cond, uncond, conditions)
    check_branches(others, active, times, noise, denoise, solver)
    branches = check_mode(branches, others, noise)
    plan = _Plan(
        _Static(where), len(usual), len(final) or None, parts,
        branches, skip == "auto", keep, progress, remat,
    )  # fmt: skip
    x, trail = _run(
        key, denoise, noise, times, at, cond, others, guide, solver, active, anew, plan=plan
    )
    return x if keep == "final" else (x, trail)


@functools.partial(jax.jit, static_argnames=("plan",))
def _run(key, denoise, noise, times, at, cond, others, guide, solver, active, anew, *, plan):
    process, steps = denoise.process, times.shape[0] - 1
    where = Evaluations(*plan.where)
    ends, begins = at
    rows = jax.vmap(lambda s, t: guide.row(Step(s, t, cond, process, times)))(ends, begins)
    at_one = tree_map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows)
    guide.check_row(at_one, noise)

    def evaluate(names, x, t, at, state):
        """Evaluate these branches and "cond" at (x, t), and guide."""
        chosen = {name: others[name] for name in names}
        found = predict(plan.mode, denoise, cond, chosen, x, t)
        step = Step(at["s"], t, cond, process, times, x)
        x0, state = guide.apply(state, found, step, at["row"])
        stats = measure(x0, found, guide, step, at["row"]) if plan.keep in ("stats", "all") else ()
        return (x0, {name: found[name] for name in solver.branches}), state, stats

    def guided(needed, x, t, at, state):
        """The branches that are needed for sure, and the others where the flags say so."""
        wanted = guide.wants(state) if plan.skip else {}
        maybe = [n for n in needed.sure if n in wanted and n not in solver.branches]
        sure = [n for n in needed.sure if n not in maybe]
        maybe += needed.maybe
        if not maybe:
            return evaluate(sure, x, t, at, state)
        flags = [at["active"][name] & wanted.get(name, True) for name in maybe]
        on, off = (functools.partial(evaluate, names) for names in ([*sure, *maybe], sure))
        return jax.lax.cond(
            for_any(functools.reduce(jnp.logical_or, flags)), on, off, x, t, at, state
        )

    def directly(needed, x, state, memory, answers, at):
        """A step of one evaluation: the solver calls the network itself."""
        seen = []

        def answer(x, t):
            seen.append(guided(needed, x, t, at, state))
            return seen[0][0]

        denoised = _Calling(answer)
        x, memory = solver.step(
            solver.numbers, denoised, process, x, at["from"], at["to"], at["key"], memory
        )
        (x0, _), state, stats = seen[0]
        return x, state, memory, answers, x0, stats

    def replayed(needed, x, *carried):
        """One of a step's several evaluations; with the last of them x moves."""
        with drawn_once(carried[-1]["key"], x):
            return replay(needed, x, *carried)

    def replay(needed, x, state, memory, answers, at):
        here = (x, at["from"], at["to"], at["key"], memory)
        data = (x, at["from"], np.zeros(at["from"].shape, at["from"].dtype), at["key"], memory)

        def ask(number, where):
            def run(answers):
                x_asked, t = query(solver, process, answers[:number], *where)
                return tree_map(lambda a, b: a.astype(b.dtype), x_asked, x), jnp.broadcast_to(
                    t, at["t"].shape
                )

            return run

        asks = [ask(j, here) for j in range(plan.usual)]
        asks += [ask(j, data) for j in range(plan.into_data or 0)]
        x_asked, t = jax.lax.switch(at["query"], asks, answers)
        answer, after, stats = guided(needed, x_asked, t, at, state)
        answers = store(answers, answer, at["number"])
        ends = [
            lambda answers: (x, memory),
            lambda answers: finish(solver, process, answers, *here),
        ]
        if plan.into_data:
            ends.append(lambda answers: finish(solver, process, answers, *data))
        moved, memory = jax.lax.switch(at["finish"], ends, answers)
        first = at["number"] == 0
        state = tree_map(lambda a, b: jnp.where(first, a, b), after, state)
        return moved, state, memory, answers, answer[0], stats

    one = plan.usual == 1
    advance = directly if one else replayed

    def body(needed):
        def run(carry, at):
            x, state, memory, answers, room = carry
            report(plan.progress, at["step"], steps, at["number"] == 0)
            if anew is not None:
                pick = lambda a, b: jnp.where(expand(at["anew"], a), a, b)  # noqa: E731
                memory = tree_map(pick, solver.init(x, at["from"]), memory)
            x, state, memory, answers, x0, stats = advance(needed, x, state, memory, answers, at)
            if room:
                room = put(room[0], x, at["slot"]), put(room[1], x0, at["slot_x0"])
            seen = (x, x0) if plan.keep == "all" else ()
            return (x, state, memory, answers, room), (seen, stats)

        return run

    step, grid = where.step, times
    if anew is not None and anew.ndim > grid.ndim:  # What a sample remembers is its own.
        grid = jnp.broadcast_to(grid[:, None], (steps + 1, batch_size(noise)))
    xs = {
        "from": grid[step],
        "to": grid[step + 1],
        "t": begins,
        "s": ends,
        "step": jnp.asarray(step),
        "number": jnp.asarray(where.number),
        "query": jnp.asarray(where.query),
        "finish": jnp.asarray(where.finish),
        # Ahead of the loop: hashing a key takes XLA a loop of its own.
        "key": jax.vmap(lambda i: fold_in(key, i))(jnp.asarray(step)),
        "row": rows,
        "active": tree_map(jnp.asarray, active),
        "anew": () if anew is None else jnp.asarray(anew),
        "slot": jnp.asarray(slots(plan.keep, step)),
        "slot_x0": jnp.asarray(slots(plan.keep, step, where.first)),
    }
    blanks = () if one else ((noise, dict.fromkeys(solver.branches, noise)),) * plan.usual
    memory = solver.init(noise, grid[0])
    carry = (noise, guide.init(noise), memory, blanks, blank(plan.keep, noise))
    kept = []
    for start, stop, needed in plan.segments:
        part = tree_map(lambda leaf, a=start, b=stop: leaf[a:b], xs)
        carry, ys = scan(body(needed), carry, part, plan.remat)
        kept.append(ys)
    seen, stats = tree_map(lambda *parts: jnp.concatenate(parts), *kept)
    if not one:  # x after a step's last evaluation, all else of its first
        pick = lambda which, tree: tree_map(lambda leaf: leaf[which], tree)  # noqa: E731
        seen = seen and (pick(where.last, seen[0]), pick(where.first, seen[1]))
        stats = pick(where.first, stats)
    if carry[4]:
        seen = tree_map(lambda leaf: leaf[:-1], carry[4])
    x, x0 = seen or (None, None)
    return carry[0], Trail(x, x0, stats or None)


class _Calling(Recorded):
    """A denoiser whose answers are made as it is asked."""

    def __init__(self, answer: Any):
        super().__init__(())
        self.answer = answer

    def with_branches(self, x, t):
        if self.asked:
            raise ValueError("the solver's step called the denoiser more often than before.")
        self.asked.append((x, t))
        return self.answer(x, t)
