"""The sampler: one `lax.scan` over the time grid, cut where guidance turns on and off."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Times, Tree, batch_size, is_concrete, tree_map
from guidejax._branches import Evaluation, check_evaluation, predict
from guidejax._denoisers import as_denoiser
from guidejax._guidance import Guidance
from guidejax._guidance import guidance as make_guidance
from guidejax._inputs import check, check_rows, find_branches
from guidejax._keep import Keep, Trail, blank, check_keep, measure, put, slots
from guidejax._progress import Progress, report
from guidejax._scan import Remat, Segment, for_any, predictions, scan, segments
from guidejax._times import uniform_times as uniform_times
from guidejax.processes import Process
from guidejax.solvers.base import Denoised, Solver, as_keys, fold_in
from guidejax.solvers.ddim import ddim


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is structure of a run."""

    segments: tuple[Segment, ...]
    into_data: bool
    evaluation: Evaluation
    skip: bool
    keep: Keep
    progress: Progress
    remat: Remat


def sample(
    key: Array,
    denoise: Any,
    process: Process,
    noise: Tree,
    *,
    times: Times,
    cond: Any = None,
    uncond: Any = None,
    conditions: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    solver: Solver | None = None,
    branches: Evaluation = "sequential",
    skip: Literal["auto", "never"] = "auto",
    keep: Keep = "final",
    progress: Progress = False,
    remat: Remat = "none",
) -> Any:
    """Draw samples: integrate from `noise` at times[0] down to times[-1] under guidance.

    Each step t → s predicts x̂0 for every branch that the guidance needs, combines them, and lets
    the solver take x_t to x_s. Steps whose ω is known to be 0 (`interval`, omega = 0) make the
    conditional pass alone; so do, at run time, steps that a rule's state lets go (`adaptive`,
    `cached_difference`). ω and every other number is traced: a new value doesn't recompile.

    Args:
        key: One key, or (batch,) keys, one a sample.
        denoise: A `Denoiser`, or any `denoise(x, t, cond) -> x0`.
        process: The noising process.
        noise: x at times[0], (batch, ...), or a pytree of such arrays.
        times: Falling times in [0, 1], (steps + 1,), or (steps + 1, batch) one grid a sample.
        cond: The conditioning c, handed to the network: class ids, embeddings, any pytree.
        uncond: The null condition, the shape of `cond` or broadcast to it; needed under guidance.
        conditions: The condition of every other branch by name ("negative", ...), or a pair
            (denoise, condition) for a branch with a network of its own ("weak", ...).
        guidance: From `guidejax.guidance`; None is the conditional model.
        solver: From `guidejax.solvers`; DDIM without churn by default. The second prediction of a
            two-stage step takes the ω of the next step and leaves the guidance's state alone.
        branches: How the passes of a step are made, with the same samples: "sequential", one after
            another; "batched", one pass over a batch of all; "vmapped", `jax.vmap` over the
            conditions; "sharded", side by side on the axis "branch" of the mesh in scope, with one
            all-reduce a step.
        skip: "never" makes every pass at every step, and costs it: the same samples, bit for bit
            unless XLA compiles the network's own lines otherwise, as it may those that two passes
            share, or within the run-time gate of `adaptive`; then to rounding.
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
        ValueError: If the times don't fall, shapes or labels don't fit, a branch is missing, an
            option is unknown, or a number is NaN; before anything compiles.

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
    for name, value, known in (
        ("skip", skip, ("auto", "never")),
        ("remat", remat, get_args(Remat)),
    ):
        if value not in known:
            raise ValueError(f"unknown {name}={value!r}; expected one of {', '.join(known)}.")
    check(times, noise, cond, guided, denoise, process)
    steps = times.shape[0] - 1
    keep = check_keep(keep, steps)

    active = guided.active_branches(times, process)
    if skip == "never":
        active = {name: np.ones(steps, bool) for name in active}
    active |= {name: np.ones(steps, bool) for name in solver.branches}
    into_data = is_concrete(times) and not np.any(times[-1])
    parts = segments(active, predictions(steps, solver.stages, into_data)[1])
    plan = _Plan(parts, into_data, branches, skip == "auto", keep, progress, remat)
    used = {name for part in parts for name in (*part.gate.sure, *part.gate.maybe)}
    names = [name for name in active if name in used]
    others = find_branches(names, process, cond, uncond, conditions or {})
    check_evaluation(branches, others)
    x, trail = _run(
        key, denoise, process, noise, times, cond, others, guided, solver, active, plan=plan
    )
    return x if keep == "final" else (x, trail)


@functools.partial(jax.jit, static_argnames=("plan",))
def _run(key, denoise, process, noise, times, cond, others, guided, solver, active, *, plan):
    steps = times.shape[0] - 1
    rows = guided.rows(times, cond, process)
    check_rows(rows, guided, batch_size(noise))

    prepare = solver.prepare and functools.partial(solver.prepare, solver.numbers, process)

    def evaluate(names, x, t, at, state):
        """Evaluate these branches and "cond" at (x, t), and guide."""
        chosen = {name: others[name] for name in names}
        found = predict(plan.evaluation, denoise, cond, chosen, x, t)
        x0, state = guided.apply(state, found, at["row"], x, t, at["to"], process)
        stats = measure(x0, found, at["row"][0]) if plan.keep in ("stats", "all") else None
        return Denoised(x0, {name: found[name] for name in solver.branches}), state, stats

    def denoised(gate, x, t, at, state):
        """As the gate says, and among what it is sure of as the guidance's state says."""
        wanted = guided.wants(state) if plan.skip else {}
        maybe = [n for n in gate.sure if n in wanted and n not in solver.branches]
        sure = [n for n in gate.sure if n not in maybe]
        maybe += gate.maybe
        if not maybe:
            return evaluate(sure, x, t, at, state)
        flags = [at["active"][name] & wanted.get(name, True) for name in maybe]
        on, off = (functools.partial(evaluate, names) for names in ([*sure, *maybe], sure))
        return jax.lax.cond(
            for_any(functools.reduce(jnp.logical_or, flags)), on, off, x, t, at, state
        )

    def body(gate):
        def step(carry, at):
            x, state, memory, room = carry
            t, s, again = at["t"], at["s"], at["again"]
            report(plan.progress, at["index"], steps, ~again)
            # A step's second prediction goes on from x as it is, at the end of the step.
            if prepare is not None and solver.correct is None:
                x, t = prepare(x, t, at["key"])
            elif prepare is not None:
                x, t = jax.lax.cond(again, lambda x, t, key: (x, t), prepare, x, t, at["key"])
            here = t if solver.correct is None else jnp.where(again, s, t)
            guess, after, stats = denoised(gate, x, here, at, state)
            moved = solver.step(solver.numbers, guess, process, x, t, s, at["key"], memory)
            if solver.correct is not None:
                corrected = solver.correct(solver.numbers, guess, process, x, s, memory), memory
                either = functools.partial(jnp.where, again)
                moved, after = tree_map(either, (corrected, state), (moved, after))
            x, memory = moved
            if room:
                room = put(room[0], x, at["slot"]), put(room[1], guess.x0, at["slot_x0"])
            seen = (x, guess.x0) if plan.keep == "all" else None
            return (x, after, memory, room), (seen, stats)

        return step

    step, row = predictions(steps, solver.stages, plan.into_data)
    first, last = (np.diff(step, **pad) > 0 for pad in ({"prepend": -1}, {"append": steps}))
    # Ahead of the loop: hashing a key takes XLA a loop of its own.
    keys = jax.vmap(lambda i: fold_in(key, i))(jnp.asarray(step))
    t = times[step]
    if prepare is not None:  # It may give each sample a time of its own.
        shape = jax.eval_shape(prepare, noise, t[0], keys[0])[1].shape
        t = jax.vmap(lambda t: jnp.broadcast_to(t, shape))(t)
    xs = {
        "t": t,
        "s": times[step + 1],
        "to": times[row + 1],
        "index": jnp.asarray(step),
        "key": keys,
        "again": jnp.asarray(~first),
        "row": tree_map(lambda leaf: leaf[row], rows),
        "active": tree_map(lambda leaf: jnp.asarray(leaf)[row], active),
        "slot": jnp.asarray(slots(plan.keep, step)),
        "slot_x0": jnp.asarray(slots(plan.keep, step, first)),
    }
    carry = (noise, guided.init(noise), solver.init(noise, t[0]), blank(plan.keep, noise))
    kept = []
    for start, stop, gate in plan.segments:
        part = tree_map(lambda leaf, a=start, b=stop: leaf[a:b], xs)
        carry, ys = scan(body(gate), carry, part, plan.remat)
        kept.append(ys)
    seen, stats = tree_map(lambda *parts: jnp.concatenate(parts), *kept)
    if solver.correct is not None:  # x after a step's last prediction, all else of its first.
        pick = lambda which, tree: tree_map(lambda leaf: leaf[which], tree)  # noqa: E731
        seen = seen and (pick(last, seen[0]), pick(first, seen[1]))
        stats = pick(first, stats)
    if carry[3]:
        seen = tree_map(lambda leaf: leaf[:-1], carry[3])
    x, x0 = seen or (None, None)
    return carry[0], Trail(x, x0, stats)
