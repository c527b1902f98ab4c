"""`fit` and `fit_omega`: what is given is checked here; `_run` is the loop."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import inspect
import itertools
import operator
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from guidejax._arrays import Array
from guidejax._denoisers import Denoiser, check_denoiser
from guidejax._guidance import Guidance, every_weight
from guidejax._guidance import guidance as make_guidance
from guidejax._inputs import warn_of_new_function
from guidejax._random import as_keys
from guidejax.learning import _identity
from guidejax.learning._data import Conditions, Feed
from guidejax.learning._hosts import Signals
from guidejax.learning._keeper import Keeper
from guidejax.learning._placement import batch_axes_of, check_mesh, gathered_if_mapped, placed
from guidejax.learning._run import Run
from guidejax.learning.checkpoints import local
from guidejax.learning.evaluations import as_denoiser
from guidejax.learning.monitors import Monitor
from guidejax.learning.training import Program, TrainState, init_state, propose
from guidejax.objectives.base import Batch, as_pytree
from guidejax.rules.linear import cfg

# Held-out batches beyond so many have no end.
_MANY = 10_000


@dataclasses.dataclass(frozen=True)
class _OmegaGuide:
    """φ → a guidance of one rule; equal ones share a compiled program."""

    net: Any
    rule: Any

    def __call__(self, phi: Any) -> Guidance:
        return make_guidance(self.rule, **self.net.weights(phi))

    def describe(self) -> Any:
        return _identity.describe(self.net)


def fit_omega(
    key: Array,
    net: Any,
    denoise: Denoiser,
    batches: Iterable[Any],
    *,
    rule: Any = cfg,
    uncond: Any = None,
    **options: Any,
) -> Any:
    """Learn φ of ω^φ(c, s, t) for a frozen denoiser: `fit` with the usual weight.

        phi = fit_omega(key, net, ...)     # is
        phi = fit(key, lambda phi: guidance(rule, **net.weights(phi)), net.init(...), ...)

    Args:
        key: The run's key; φ starts from a part of it.
        net: The network to learn, from `OmegaNet`, or anything with `init(key)` and `weights(phi)`,
            a dict of `Weight`s by the names of the rule's numbers.
        denoise: As in `fit`, and so are all other arguments.
        batches: As in `fit`.
        rule: The rule that the weights steer.
        uncond: The null condition, one for all; by default the label `net.num_classes`.
        **options: Whatever else `fit` takes: `objective`, `optimizer`, `steps`, `conditions`, ...

    Returns:
        φ, for `net.weight(phi)`.

    Raises:
        ValueError: As `fit` does.

    Example:
        >>> import itertools
        >>> import guidejax as gj
        >>> process, net = gj.processes.rectified_flow(), gj.OmegaNet(num_classes=2)
        >>> denoise = gj.denoiser(lambda x, t, c: jnp.where(c[:, None] == 2, 0.0, 1.0) * x, process)
        >>> batches = itertools.repeat({"x0": jnp.ones((4, 3)), "cond": jnp.array([0, 1, 0, 1])})
        >>> phi = fit_omega(jax.random.key(0), net, denoise, batches, steps=2,
        ...                 objective=gj.self_consistency(), optimizer=optax.adam(1e-3))
        >>> net.weight(phi)(0.4, 0.5, jnp.array([0, 1]), process=process).shape
        (2,)
    """
    if not (hasattr(net, "init") and hasattr(net, "weights")):
        raise ValueError(
            "fit_omega expects a network, such as gj.OmegaNet(num_classes=10), with init(key) and "
            f"weights(phi); got {net!r}. For any other numbers there is gj.fit."
        )
    if uncond is None:
        uncond = getattr(net, "num_classes", None)
    init_key, run_key = jax.random.split(_one_key(key))
    phi = net.init(init_key)
    return fit(run_key, _OmegaGuide(net, rule), phi, denoise, batches, uncond=uncond, **options)


def fit(
    key: Array,
    guide: Callable[[Any], Guidance],
    phi: Any,
    denoise: Denoiser,
    batches: Iterable[Any],
    *,
    objective: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    steps: int,
    uncond: Any = None,
    conditions: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    held_out: Iterable[Any] | None = None,
    score: Callable[[Any], float] | None = None,
    score_every: int = 500,
    checkpoint_dir: str | pathlib.Path | None = None,
    save_every: int | datetime.timedelta = 500,
    resume: Literal["same", "anyway"] = "same",
    leave_out: Iterable[int] = (),
    max_skipped: int = 10,
    batch_axes: str | tuple[str, ...] | None = None,
    steps_per_dispatch: int = 10,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    monitors: Iterable[Monitor] = (),
) -> Any:
    """Learn any numbers φ of any guidance, for a frozen denoiser.

    `guide` says what φ is: `lambda phi: gj.guidance(gj.apg, **net.weights(phi))` for a network,
    `lambda phi: gj.guidance(gj.cfg, omega=gj.schedules.table(phi))` for a number a step.

    Goes on from the newest intact checkpoint in `checkpoint_dir`, with the same result as a run
    that was never stopped: saved are φ, the optimizer, the step, the key, where the data stood, and
    what run it is. `checkpoint_dir/metrics.jsonl` holds a line of metrics a step.

    With a `checkpoint_dir`, SIGTERM, a cluster's notice of preemption and Ctrl-C save where the run
    stands, and end it: with `learning.Preempted`, of exit status 75, or with KeyboardInterrupt.

    Under `jax.distributed` every process calls it alike. The first one alone writes, so that the
    directory needn't be shared, and an error in one of them ends all with its message.

    Args:
        key: The run's key.
        guide: φ → `Guidance`. Define it once: another function compiles anew. What it reads beside
            φ, as a global, is read as the updates compile, which later calls with equal arguments
            don't; so it is in an objective and a network.
        phi: What to start from: a pytree of floating point arrays.
        denoise: The denoiser; its parameters get no gradient. The process alone, where the batches
            come with their evaluations (`guidejax.learning.evaluate`).
        batches: An iterable of batches: mappings with "x0" and "cond" (and a condition under the
            name of any other branch, "uncond" among them, where the data carry their own), or
            pairs (x0, cond). If its iterator has `get_state` and `set_state`, as grain's have, it
            goes on from where it stood; any other is drawn from the start again and must give the
            same batches. Of several processes each gives the rows that its devices hold: others
            than the rest, or the same where the mesh has copies of them.
        objective: From `self_consistency`, `l2`, `rollout`, or any function
            `objective(keys, guidance, denoise, batch, networks) -> (batch,)` losses, of one key an
            example, an `objectives.Batch`, and the other branches' denoisers by name. On a mesh it
            is called with the rows of one device; one that compares rows needs a method
            `across(axis_name)`, which gives the objective that compares those of all devices.
        optimizer: An optax transformation. It may look at the loss, as
            `optax.contrib.reduce_on_plateau` does; not evaluate it elsewhere, as line searches do,
            and not learn at another point than it is to be used at, as `schedule_free` does.
        steps: Updates in all, those before a restart included.

    Other Args:
        uncond: The null condition, one for all.
        conditions: What every other branch of the rule is made of, one for all, as in `sample`: a
            condition, a `Denoiser` for the batch's own condition, or a pair of both.
        mesh: Devices to split each batch over; those of all processes, where there are several.
            Networks that lie on them already stay as they
            lie, everything else is copied to each.
        batch_axes: The axes of the mesh to split over, the batch size being a multiple of their
            sizes' product; by default all but those that the networks are sharded over, with a
            warning where none is left.
        held_out: Batches that are not learned from, of some end (10,000 at most); their mean loss
            is logged as "held_out".
        score: `score(phi) -> float`, lower is better, any measure of yours (a Fréchet distance of
            samples); logged as "score". It chooses in place of `held_out`. Every process calls it,
            and what the first one finds counts.
        score_every: Updates between scores. With either, the best φ is kept, saved under
            `checkpoint_dir/best`, and returned. A run that goes on scores the saved one again.
        checkpoint_dir: Where to save; None saves nothing.
        save_every: Updates between checkpoints, or a `datetime.timedelta`.
        resume: "same" goes on from a checkpoint of this very run: weight, guidance, objective,
            optimizer, denoiser, conditions, data and key, by their settings, values and programs.
            "anyway" goes on with what is given now, of a learning rate by
            `optax.inject_hyperparams` too.
        leave_out: Numbers of batches, counted from 0, that are drawn and not used.
        max_skipped: Updates in a row that may come out as NaN or infinite. Each is skipped: φ and
            the optimizer stay, the log says `"skipped": true` and which batch it was.
        steps_per_dispatch: Updates compiled into one call. Fewer, one by one, where `save_every`
            or `steps` is no multiple.
        progress: Called as `progress(step, metrics)` after each dispatch, one dispatch late: the
            next one runs by then. `metrics` are the last update's "loss" and "grad_norm";
            "skipped", the updates that this call has skipped so far; and "held_out" and "score"
            where φ was scored. Every process calls it.
        monitors: Functions of a `learning.monitors.Report`, called likewise: a line of progress,
            TensorBoard, ω's curves. One that has a method `close` is closed however the run ends.

    Returns:
        φ after the last update; the best, where there is `held_out` or `score`. Of several
        processes each gets it as NumPy arrays.

    Raises:
        ValueError: If a batch holds a NaN, a label out of range or shapes that don't fit, the
            data end early, a branch has no condition, the optimizer is none that `fit` can use, the
            processes give rows of other shapes, a score is no number, the checkpoint is of another
            run or a later step, or none of them is intact. What was saved stays.
        FloatingPointError: If `max_skipped` updates in a row are not finite. The state before the
            first of them is saved, where there is a `checkpoint_dir`.
        RuntimeError: If another run writes in the directory, a checkpoint can't be written, or
            another process failed.

    Example:
        >>> import itertools
        >>> import guidejax as gj
        >>> process = gj.processes.rectified_flow()
        >>> denoise = gj.denoiser(lambda x, t, c: c[:, None] * x, process)
        >>> batches = itertools.repeat({"x0": jnp.ones((4, 3)), "cond": jnp.ones(4)})
        >>> phi = fit(jax.random.key(0), lambda phi: gj.guidance(gj.cfg, omega=phi), jnp.array(1.0),
        ...           denoise, batches, uncond=0.0, objective=gj.self_consistency(),
        ...           optimizer=optax.adam(1e-2), steps=3)
        >>> phi.shape
        ()
    """
    numbers = _numbers(
        steps=steps, save_every=save_every, score_every=score_every,
        steps_per_dispatch=steps_per_dispatch, max_skipped=max_skipped,
    )  # fmt: skip
    if resume not in ("same", "anyway"):
        raise ValueError(f"fit expects resume='same' or 'anyway', got {resume!r}.")
    if score is not None and not callable(score):
        raise ValueError(f"fit expects score(phi) -> float, got {score!r}.")
    if checkpoint_dir is not None:
        checkpoint_dir = local(checkpoint_dir)
    key = _one_key(key)
    check_mesh(mesh)
    denoise = as_denoiser(denoise)
    check_denoiser(denoise)
    _check_objective(objective, denoise)
    example = _guidance_of(guide, phi)
    state = _begin(key, phi, optimizer)
    _warn_of_new_functions(guide, objective, denoise)
    branches = Conditions.of(example, denoise, uncond, conditions or {})
    checks: list[Any] = [
        functools.partial(_check_condition, w.fn.check)
        for w in every_weight(example)
        if hasattr(w.fn, "check")
    ]
    if hasattr(objective, "check_batch"):
        checks.append(objective.check_batch)
    frozen = (denoise, branches.networks)
    axes = batch_axes_of(mesh, batch_axes, frozen)
    program = Program(
        guide, optimizer, jax.random.key_impl(key), mesh, axes,
        mapped=bool(axes) and not gathered_if_mapped(frozen, mesh, axes),
    )  # fmt: skip
    run = Run(
        program=program,
        state=placed(state, mesh),
        fixed=placed((as_pytree(objective), frozen), mesh),
        feed=Feed(batches, branches, checks, _left_out(leave_out)),
        progress=progress,
        monitors=tuple(monitors),
        **numbers,
    )
    held = run.hosts.together(lambda: _held_out(held_out, branches, checks))
    run.check_rows(held)
    if held or score:
        run.keeper = Keeper(program, run.fixed, held, score, run.hosts)
    with Signals(catch=checkpoint_dir is not None) as run.signals:
        try:
            if checkpoint_dir is not None:
                given = {**branches.given, **branches.networks}
                identity = _identity.of_run(
                    guide, phi, objective, optimizer, denoise, given, run.state.key
                )
                run.open(checkpoint_dir, identity, resume)
            return run.train()
        finally:
            run.close()


def _warn_of_new_functions(guide: Any, objective: Any, denoise: Denoiser) -> None:
    network: Any = denoise.network
    for function in (guide, objective, getattr(network, "fn", network), denoise.time):
        warn_of_new_function(function)


def _check_condition(check: Callable[[Any, str], None], batch: Batch, where: str) -> None:
    check(batch.cond, where)


def _guidance_of(guide: Callable[[Any], Guidance], phi: Any) -> Guidance:
    """The guidance at φ, or an error that says what `guide` should have been."""
    made = guide(phi) if callable(guide) else None
    if not isinstance(made, Guidance):
        raise ValueError(
            "fit expects a function phi -> Guidance, such as lambda phi: gj.guidance(gj.cfg, "
            f"omega=net.weight(phi)); got {guide!r}."
        )
    for leaf in jax.tree.leaves(phi):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"phi holds {jnp.result_type(leaf)}; expected floats to learn.")
    return made


def _one_key(key: Any) -> Array:
    key = as_keys(key)
    if key.ndim:
        raise ValueError(f"fit expects one key, got {key.shape} of them.")
    return key


def _begin(key: Array, phi: Any, optimizer: Any) -> TrainState:
    """The state that a run begins with, or an error that says why the optimizer is none for it."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"expected an optimizer, such as optax.adam(1e-3); got {optimizer!r}.")
    try:
        state = init_state(key, phi, optimizer)
        jax.eval_shape(
            lambda phi, state: propose(optimizer, phi, state, phi, jnp.float32(0)),
            state.phi, state.optimizer,
        )  # fmt: skip
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            "the optimizer can't update φ by its gradient and the loss alone, as a line search "
            f"and lookahead can't ({why})."
        ) from error
    free = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)  # noqa: E731
    if any(free(node) for node in jax.tree.leaves(state.optimizer, is_leaf=free)):
        raise ValueError(
            "schedule_free learns at another point than it is to be used at, and fit would score "
            "and return the wrong one; give another optimizer, with a schedule."
        )
    return state


def _left_out(numbers: Any) -> frozenset[int]:
    try:
        return frozenset(operator.index(number) for number in numbers)
    except TypeError:
        raise ValueError(
            f"fit expects leave_out, the numbers of batches, as [3, 8]; got {numbers!r}."
        ) from None


def _held_out(batches: Any, branches: Conditions, checks: list[Any]) -> list[Batch]:
    """Every held-out batch; raises where there is none, or no end of them."""
    if batches is None:
        return []
    if getattr(batches, "steps", 0) is None:
        raise ValueError("held_out has no end; give its batches once: load(..., epochs=1).")
    given = list(itertools.islice(batches, _MANY + 1))
    if len(given) > _MANY:
        raise ValueError(f"held_out goes on beyond {_MANY} batches; give some that have an end.")
    found = [branches.batch(b, checks, f"held-out batch {i}") for i, b in enumerate(given)]
    if not found:
        raise ValueError(
            "held_out has no batches; an iterator that an earlier call used up has none left, so "
            "give a list."
        )
    return found


def _numbers(save_every: Any, **counts: Any) -> dict[str, Any]:
    """Counts as whole numbers, 1e3 and NumPy's among them; `save_every` may be a time."""
    numbers = {name: _whole(name, value) for name, value in counts.items()}
    if not isinstance(save_every, datetime.timedelta):
        save_every = _whole("save_every", save_every)
    elif save_every <= datetime.timedelta(0):
        raise ValueError(f"fit expects a positive save_every, got {save_every}.")
    return {**numbers, "save_every": save_every}


def _whole(name: str, value: Any) -> int:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    try:
        found = operator.index(value)
    except TypeError:
        found = 0
    if found < 1:
        raise ValueError(f"fit expects {name} ≥ 1, a whole number; got {value!r}.")
    return found


def _check_objective(objective: Any, denoise: Denoiser) -> None:
    made_here = getattr(objective, "__module__", None) or ""
    if inspect.isfunction(objective) and made_here.startswith("guidejax.objectives"):
        raise ValueError(
            f"expected an objective, such as gj.self_consistency(); got the function "
            f"{objective.__name__} itself: call it."
        )
    if not callable(objective):
        raise ValueError(
            f"expected an objective, such as gj.self_consistency(); got {objective!r}."
        )
    if hasattr(objective, "check"):
        objective.check(denoise)
