"""The loop that learns a guidance: it feeds the steps, logs, saves, and goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import inspect
import itertools
import json
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from guidejax._arrays import Array, batch_size, tree_map
from guidejax._denoisers import Denoiser, check_denoiser
from guidejax._guidance import Guidance, every_weight
from guidejax._guidance import guidance as make_guidance
from guidejax._random import as_keys
from guidejax.learning import _identity, _log
from guidejax.learning._data import Conditions, Feed, shared, stack
from guidejax.learning._hosts import Hosts, Notice, Signals, stopped
from guidejax.learning.checkpoints import Checkpoints, Saved, local, named_leaves, part, unflatten
from guidejax.learning.evaluations import as_denoiser
from guidejax.learning.monitors import Clock, Monitor, Report
from guidejax.learning.training import Program, TrainState, init_state, loss, many_steps
from guidejax.objectives.base import Batch, as_pytree
from guidejax.rules.linear import cfg


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
        >>> batches = itertools.repeat({"x0": np.ones((4, 3)), "cond": np.array([0, 1, 0, 1])})
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
    init_key, run_key = jax.random.split(as_keys(key))
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

    SIGTERM, a cluster's notice of preemption and Ctrl-C save where the run stands, and end it:
    with `learning.Preempted`, of exit status 75, or with KeyboardInterrupt.

    Under `jax.distributed` every process calls it alike. The first one alone writes, so that the
    directory needn't be shared, and an error in one of them ends all with its message.

    Args:
        key: The run's key.
        guide: φ → `Guidance`. Define it once: another function compiles anew.
        phi: What to start from: a pytree of floating point arrays.
        denoise: The denoiser; its parameters get no gradient. The process alone, where the batches
            come with their evaluations (`guidejax.learning.evaluate`).
        batches: An iterable of batches: mappings with "x0" and "cond" (and a condition under the
            name of any other branch, "uncond" among them, where the data carry their own), or
            pairs (x0, cond). If its iterator has `get_state` and `set_state`, as grain's have, it
            goes on from where it stood; any other is drawn from the start again and must give the
            same batches. Of several processes each gives the rows that its devices hold: others
            than the rest, or the same where the mesh has copies of them.
        objective: From `self_consistency`, `l2`, `rollout`, or any function of the same arguments.
        optimizer: An optax transformation. It may look at the loss, as
            `optax.contrib.reduce_on_plateau` does; not evaluate it elsewhere, as line searches do.
        steps: Updates in all, those before a restart included.

    Other Args:
        uncond: The null condition, one for all.
        conditions: What every other branch of the rule is made of, one for all, as in `sample`: a
            condition, a `Denoiser` for the batch's own condition, or a pair of both.
        mesh: Devices to split each batch over; those of all processes, where there are several.
            Networks that lie on them already stay as they
            lie, everything else is copied to each.
        batch_axes: The axes of the mesh to split over, the batch size being a multiple of their
            sizes' product; by default all but those that the networks are sharded over.
        held_out: Batches that are not learned from, of some end; their mean loss is logged as
            "held_out".
        score: `score(phi) -> float`, lower is better, any measure of yours (a Fréchet distance of
            samples); logged as "score". It chooses in place of `held_out`. Every process calls it,
            and what the first one finds counts.
        score_every: Updates between scores. With either, the best φ is kept, saved under
            `checkpoint_dir/best`, and returned.
        checkpoint_dir: Where to save; None saves nothing.
        save_every: Updates between checkpoints, or a `datetime.timedelta`.
        resume: "same" goes on from a checkpoint of this very run: weight, guidance, objective,
            optimizer, denoiser, conditions, data and key, by their settings, values and programs.
            "anyway" goes on with what is given now.
        leave_out: Numbers of batches, counted from 0, that are drawn and not used.
        max_skipped: Updates in a row that may come out as NaN or infinite. Each is skipped: φ and
            the optimizer stay, the log says `"skipped": true` and which batch it was.
        steps_per_dispatch: Updates compiled into one call. Fewer, one by one, where `save_every`
            or `steps` is no multiple.
        progress: Called as `progress(step, metrics)` after each dispatch, one dispatch late: the
            next one runs by then.
        monitors: Functions of a `learning.monitors.Report`, called likewise: a line of progress,
            TensorBoard, ω's curves.

    Returns:
        φ after the last update; the best, where there is `held_out` or `score`. Of several
        processes each gets it as NumPy arrays.

    Raises:
        ValueError: If a batch holds a NaN, a label out of range or shapes that don't fit, the
            data end early, a branch has no condition, the checkpoint is of another run or a later
            step, or none of them is intact. What was saved stays.
        FloatingPointError: If `max_skipped` updates in a row are not finite. The state before the
            first of them is saved.
        RuntimeError: If another run writes in the directory, a checkpoint can't be written, or
            another process failed.

    Example:
        >>> import itertools
        >>> import guidejax as gj
        >>> process = gj.processes.rectified_flow()
        >>> denoise = gj.denoiser(lambda x, t, c: c[:, None] * x, process)
        >>> batches = itertools.repeat({"x0": np.ones((4, 3)), "cond": np.ones(4)})
        >>> phi = fit(jax.random.key(0), lambda phi: gj.guidance(gj.cfg, omega=phi), jnp.array(1.0),
        ...           denoise, batches, uncond=0.0, objective=gj.self_consistency(),
        ...           optimizer=optax.adam(1e-2), steps=3)
        >>> phi.shape
        ()
    """
    _check_numbers(steps, save_every, score_every, steps_per_dispatch, max_skipped, resume)
    _check_mesh(mesh)
    denoise = as_denoiser(denoise)
    check_denoiser(denoise)
    _check_objective(objective, denoise)
    example = _guidance_of(guide, phi)
    branches = Conditions.of(example, denoise, uncond, conditions or {})
    checks: list[Any] = [
        functools.partial(_check_condition, w.fn.check)
        for w in every_weight(example)
        if hasattr(w.fn, "check")
    ]
    if hasattr(objective, "check_batch"):
        checks.append(objective.check_batch)
    frozen = (denoise, branches.networks)
    axes = _batch_axes(mesh, batch_axes, frozen)
    program = Program(
        guide, optimizer, jax.random.key_impl(as_keys(key)), mesh, axes,
        mapped=bool(axes) and not _gathered_if_mapped(frozen, mesh, axes),
    )  # fmt: skip
    run = _Run(
        program=program,
        state=_placed(init_state(key, phi, optimizer), mesh),
        fixed=_placed((as_pytree(objective), frozen), mesh),
        feed=Feed(batches, branches, checks, leave_out),
        steps=steps,
        save_every=save_every,
        score_every=score_every,
        steps_per_dispatch=steps_per_dispatch,
        max_skipped=max_skipped,
        progress=progress,
        monitors=tuple(monitors),
    )
    run.check_rows()
    held = run.hosts.together(lambda: _held_out(held_out, branches, checks))
    if held or score:
        run.keeper = _Keeper(program, run.fixed, held, score, run.hosts)
    if checkpoint_dir is None:
        return run.train()
    local(checkpoint_dir)
    given = {**branches.given, **branches.networks}
    identity = _identity.of_run(guide, phi, objective, optimizer, denoise, given, run.state.key)
    with Signals(catch=True) as run.signals:
        try:
            run.open(pathlib.Path(checkpoint_dir), identity, resume)
            return run.train()
        finally:
            run.close()


# Sections of a run's identity that its scores depend on.
SCORED = ("weight", "guidance", "objective", "denoiser", "conditions", "loss")


class _Dispatch(NamedTuple):
    """One call of the compiled steps, of which the device may not be done."""

    first: int
    done: int
    state: TrainState
    metrics: dict[str, Array]
    batches: list[int]
    save: bool
    position: Any


@dataclasses.dataclass
class _Run:
    """One call of `fit`."""

    program: Program
    state: TrainState
    fixed: Any
    feed: Feed
    steps: int
    save_every: int | datetime.timedelta
    score_every: int
    steps_per_dispatch: int
    max_skipped: int
    progress: Callable[[int, dict[str, float]], None] | None
    monitors: tuple[Monitor, ...] = ()
    clock: Clock = dataclasses.field(default_factory=Clock)
    keeper: _Keeper | None = None
    done: int = 0
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    signals: Signals = dataclasses.field(default_factory=lambda: Signals(catch=False))
    saver: Checkpoints | None = None
    log: BinaryIO | None = None
    identity: Any = None
    skipped: int = 0
    bad: list[tuple[int, int, dict[str, float]]] = dataclasses.field(default_factory=list)
    good: _Dispatch | None = None
    failed: Exception | None = None
    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    def check_rows(self) -> None:
        """Raise `ValueError` where processes that hold copies of the same rows give other ones."""
        if self.hosts.count == 1 or self.program.mesh is None:
            return
        parts = _parts_of_processes(self.program.mesh, self.program.axes)
        groups = sorted(set(parts.values()))
        if len(groups) == len(parts):
            return
        first = self.hosts.together(self.feed.first)
        said = self.hosts.all_texts("" if first is None else _identity.fingerprint(first))
        for index, other in itertools.combinations(sorted(parts), 2):
            if parts[index] == parts[other] and said[index] != said[other]:
                raise ValueError(
                    f"processes {index} and {other} hold the same rows of a batch on this mesh, "
                    "and give different ones; a process gives those that its devices hold: "
                    f"gj.data.load(..., shard=({groups.index(parts[self.hosts.index])}, "
                    f"{len(groups)})) in this one."
                )

    # The loop.

    def train(self) -> Any:
        """Run what is left; φ, the best where one is kept."""
        running: _Dispatch | None = None
        while True:
            following, notice = None, Notice()
            try:
                # The host takes and checks the next batches while the device runs the last ones;
                # what those came to is kept even where the next ones are found to be bad.
                self.clock.lap("other")
                chunk, error = self._next_chunk()
                self.clock.lap("input")
                asked = Notice(self.signals.received, self._save_is_due())
                notice = self.hosts.agree(asked, self.failed or error)
                if chunk is not None and not notice.stop:
                    following = self._launch(*chunk)
            except Exception:
                if running is not None and self.hosts.count == 1:
                    self._finish(running, running.save)
                raise
            if running is not None:
                save = running.save or notice.save or bool(notice.stop)
                if self.hosts.count == 1:
                    self._finish(running, save)
                else:
                    self._finish_or_fail(running, save)
            if notice.stop:
                raise self._stopped(notice.stop)
            if following is None and running is None:
                break
            running = following
        self._wait_for_saving()
        best = None if self.keeper is None else self.keeper.phi
        if self.keeper is not None and best is None:
            warnings.warn(
                "no score was a number: the φ that is returned is the last.", stacklevel=3
            )
        if self.hosts.count > 1:
            # An array of all processes is no use to one alone.
            return jax.device_get(self.state.phi) if best is None else best
        return self.state.phi if best is None else tree_map(jnp.asarray, best)

    def _next_chunk(self) -> tuple[Any, Exception | None]:
        """The batches of the next dispatch, if any is left; the error that taking them met."""
        if self.done >= self.steps or self.failed is not None or self.signals.received:
            return None, None
        every = [self.save_every] if isinstance(self.save_every, int) else []
        every += [self.score_every] if self.keeper else []
        until = min(self.steps, *((self.done // n + 1) * n for n in every), self.steps)
        # What is left over goes one by one: two programs compile at most.
        whole = self.done + self.steps_per_dispatch <= until
        try:
            return self.feed.take(self.steps_per_dispatch if whole else 1), None
        except Exception as error:
            return None, error

    def _launch(self, chunk: list[Batch], numbers: list[int]) -> _Dispatch:
        """Start the next steps; returns before the device is done."""
        batches = stack(chunk, self.program.mesh, self.program.axes)
        self.clock.lap("input")
        with _mesh_of(self.program):
            self.state, metrics = many_steps(self.program)(self.state, *self.fixed, batches)
        first, self.done = self.done, self.done + len(chunk)
        scheduled = isinstance(self.save_every, int) and self.done % self.save_every == 0
        position = None if self.identity is None else self.feed.position()
        save = scheduled or self.done == self.steps
        return _Dispatch(first, self.done, self.state, metrics, numbers, save, position)

    def _finish_or_fail(self, launched: _Dispatch, save: bool) -> None:
        """`_finish`, whose error the other processes are told before the next dispatch."""
        try:
            self._finish(launched, save)
        except Exception as error:
            self.failed = error

    def _finish(self, launched: _Dispatch, save: bool) -> None:
        """Wait for the device; log and save what is fit to go on from."""
        self.clock.lap("other")
        metrics = jax.device_get(launched.metrics)
        self.clock.lap("device")
        self._count_skipped(launched, metrics)
        last = {name: float(values[-1]) for name, values in metrics.items()}
        last["skipped"] = self.skipped
        scored: dict[str, float] = {}
        if self.keeper and (launched.done == self.steps or launched.done % self.score_every == 0):
            scored = self.keeper.look(launched.done, launched.state.phi)
        _log.write(self.log, launched.first, {**metrics, "batch": launched.batches}, scored)
        if len(self.bad) >= self.max_skipped:
            self._give_up()
        # Not the middle of a row of skipped updates: that is gone on with before them.
        whole = not self.bad or launched.done == self.steps
        if save:
            self._save(launched if whole else self.good)
        if self.saver is not None and scored and self.keeper is not None and self.keeper.step:
            self.saver.save_best(
                self.keeper.step, self.keeper.value, self.keeper.phi, self.identity, self.keeper.by
            )
        if self.progress is not None:
            self.progress(launched.done, {**last, **scored})
        report = Report(
            launched.done, self.steps, {**last, **scored}, launched.state.phi, self.clock.take()
        )
        for monitor in self.monitors:
            monitor(report)

    def _count_skipped(self, launched: _Dispatch, metrics: Mapping[str, np.ndarray]) -> None:
        for index, skipped in enumerate(metrics["skipped"]):
            if not skipped:
                self.bad = []
                continue
            self.skipped += 1
            values = {name: float(metrics[name][index]) for name in ("loss", "grad_norm")}
            self.bad.append((launched.first + index + 1, launched.batches[index], values))
        if not self.bad:
            self.good = launched

    def _give_up(self) -> None:
        step, batch, values = self.bad[0]
        self._save(self.good)
        raise FloatingPointError(
            f"{len(self.bad)} updates in a row came out as NaN or infinite. The first was that of "
            f"step {step}, of batch {batch}: {values}. The state before it is kept. Start again "
            f'with a smaller learning rate and resume="anyway", or with leave_out=[{batch}].'
        )

    # What is saved.

    def open(self, directory: pathlib.Path, identity: Any, resume: str) -> None:
        """Take the directory, and go on from its newest checkpoint where it has one."""
        first = self.hosts.together(self.feed.first)
        objective, (denoise, networks) = self.fixed
        if first is not None:
            batch = first
            if self.program.mesh is not None and self.hosts.count > 1:
                batch = shared(first, self.program.mesh, self.program.axes)
            identity |= _identity.of_data(
                self.program.guide, self.state.phi, objective, denoise, networks, batch
            )
        self.identity = json.loads(json.dumps(identity))

        def take() -> tuple[Saved | None, Saved | None]:
            self.saver = Checkpoints(directory)
            found = self.saver.newest()
            if found is None:
                return None, None
            self._check(found, directory, resume)
            self.saver.set_aside()
            return found, self._best(found)

        found, best = self.hosts.from_first(take)
        if found is not None:
            self.hosts.together(lambda: self._go_on(found, best, directory, resume))
        self.hosts.together(self._open_log)

    def _open_log(self) -> None:
        if self.saver is not None:
            self.log = _log.open_log(self.saver.directory, self.done)

    def _best(self, found: Saved) -> Saved | None:
        """The best φ of a run that goes on, where what scored it would score alike today."""
        saver, keeper = self.saver, self.keeper
        assert saver is not None
        best = saver.best(found.step)
        if best is None:
            return None
        if keeper is None:
            if found.step < self.steps:
                saver.set_best_aside("this run scores none")
            return None
        of = [
            {name: about[name] for name in SCORED if name in about}
            for about in (best.about["identity"], self.identity)
        ]
        if best.about.get("by") != keeper.by or _identity.differences(*of):
            saver.set_best_aside("this run scores it by something else")
            return None
        if _identity.differences(found.about["identity"], self.identity):
            saver.set_best_aside("it is of a run that went on another way", above=found.step)
        return best

    def _check(self, found: Saved, directory: pathlib.Path, resume: str) -> None:
        """Raise `ValueError` where the checkpoint is of another run."""
        if found.step > self.steps:
            raise ValueError(
                f"the checkpoint in {directory} is of step {found.step}; expected at most "
                f"steps={self.steps}."
            )
        lines = _identity.differences(found.about["identity"], self.identity)
        if lines and resume == "same":
            raise ValueError(
                f"the checkpoint in {directory} is of another run:\n  "
                + "\n  ".join(lines)
                + '\nGive another checkpoint_dir, what it was written by, or resume="anyway" to go '
                "on with what is given now."
            )

    def _go_on(
        self, found: Saved, best: Saved | None, directory: pathlib.Path, resume: str
    ) -> None:
        """Take over what was saved."""
        arrays = dict(found.arrays)
        if resume == "anyway":
            fresh = named_leaves(jax.device_get(self.state._asdict()))
            arrays["key"] = np.asarray(fresh["key"])
            try:
                unflatten(part(arrays, "optimizer"), self.state.optimizer)
            except ValueError:
                warnings.warn(
                    f"{directory} holds the state of another optimizer; this one starts anew.",
                    stacklevel=2,
                )
                own = {n: np.asarray(a) for n, a in fresh.items() if n.split(".")[0] == "optimizer"}
                arrays = {n: a for n, a in arrays.items() if n.split(".")[0] != "optimizer"} | own
        try:
            self.state = _placed(unflatten(arrays, self.state), self.program.mesh)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint in {directory} doesn't fit this run: {error}."
            ) from error
        self.done = found.step
        self._resume_data(found, directory, resume)
        if best is not None and self.keeper is not None:
            phi = unflatten(part(best.arrays, "phi"), self.state.phi)
            self.keeper.take((best.step, best.about["score"], phi))

    def _resume_data(self, found: Saved, directory: pathlib.Path, resume: str) -> None:
        saved, now = (about.get("data") for about in (found.about["identity"], self.identity))
        if resume == "anyway" and None not in (saved, now) and saved != now:
            warnings.warn(
                f"{directory} was written with other data; these are taken from their beginning.",
                stacklevel=2,
            )
            return
        positions = found.about["positions"]
        if len(positions) not in (1, self.hosts.count):
            raise ValueError(
                f"the checkpoint in {directory} holds where the data stood in {len(positions)} "
                f"processes; now there are {self.hosts.count}. Go on with as many, or give data "
                "whose get_state() is the same in each."
            )
        self.feed.resume(positions[self.hosts.index if len(positions) > 1 else 0])

    def _save(self, launched: _Dispatch | None) -> None:
        """Save the state after that dispatch, with where the data stood in every process."""
        if launched is None or self.identity is None:
            return
        texts = self.hosts.all_texts(json.dumps(launched.position, sort_keys=True))
        texts = texts if len(set(texts)) > 1 else texts[:1]
        if self.saver is not None:
            about = {"identity": self.identity, "positions": [json.loads(t) for t in texts]}
            self.clock.lap("other")
            self.saver.save(launched.done, launched.state._asdict(), about)
            self.clock.lap("saving")
        self.saved_at = time.monotonic()

    def _save_is_due(self) -> bool:
        every = self.save_every
        waited = time.monotonic() - self.saved_at
        return isinstance(every, datetime.timedelta) and waited >= every.total_seconds()

    def _stopped(self, number: int) -> BaseException:
        where = f"stopped at step {self.done} of {self.steps}"
        self._wait_for_saving()
        if self.identity is not None and self.done:
            where += ", saved; the same call goes on from there"
        return stopped(number, where)

    def _wait_for_saving(self) -> None:
        """Wait for the last checkpoint; where it can't be written, all processes end."""
        self.hosts.together(self.saver.wait if self.saver is not None else lambda: None)

    def close(self) -> None:
        """Finish what is being written, and let go of the directory."""
        if self.log is not None:
            self.log.close()
        if self.saver is not None:
            self.saver.close()


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


def _held_out(batches: Any, branches: Conditions, checks: list[Any]) -> list[Batch]:
    """Every held-out batch; raises where there is none, or no end of them."""
    if batches is None:
        return []
    if getattr(batches, "steps", 0) is None:
        raise ValueError("held_out has no end; give its batches once: load(..., epochs=1).")
    found = [branches.batch(b, checks, f"held-out batch {i}") for i, b in enumerate(batches)]
    if not found:
        raise ValueError(
            "held_out has no batches; an iterator that an earlier call used up has none left, so "
            "give a list."
        )
    return found


class _Keeper:
    """The best φ so far, by the held-out loss or the user's score."""

    def __init__(self, program: Program, fixed: Any, held: list[Batch], score: Any, hosts: Hosts):
        self.loss, self.program, self.fixed = loss(program), program, fixed
        self.score, self.hosts = score, hosts
        if program.mesh is not None and hosts.count > 1:
            held = [shared(batch, program.mesh, program.axes) for batch in held]
        self.held = held
        # What scores, to know it again: a function of the user's by its being one.
        self.by = "score" if score is not None else _identity.fingerprint(held)
        self.step, self.value, self.phi = 0, np.inf, None

    def look(self, step: int, phi: Any) -> dict[str, float]:
        """Score φ, and keep it if it is the best."""
        found = {}
        if self.held:
            keys = [
                jax.random.split(jax.random.key(i), batch_size(b.x0))
                for i, b in enumerate(self.held)
            ]
            with _mesh_of(self.program):
                losses = [
                    self.loss(phi, *self.fixed, b, k) for b, k in zip(self.held, keys, strict=True)
                ]
            sizes = [batch_size(batch.x0) for batch in self.held]
            found["held_out"] = float(np.average(jax.device_get(losses), weights=sizes))
        if self.score is not None:
            mine = self.hosts.together(lambda: float(self.score(jax.device_get(phi))))
            found["score"] = float(self.hosts.all_texts(repr(mine))[0])
        value = found["score" if self.score is not None else "held_out"]
        if value < self.value:
            self.take((step, value, jax.device_get(phi)))
        return found

    def take(self, best: tuple[int, float, Any] | None) -> None:
        """Go on from the best of an earlier run."""
        if best is not None:
            self.step, self.value, self.phi = best


def _check_numbers(
    steps: int, save_every: Any, score_every: int, per_dispatch: int, skipped: int, resume: str
) -> None:
    if isinstance(save_every, datetime.timedelta):
        if save_every <= datetime.timedelta(0):
            raise ValueError(f"fit expects a positive save_every, got {save_every}.")
        save_every = 1
    for name, value in (
        ("steps", steps),
        ("save_every", save_every),
        ("steps_per_dispatch", per_dispatch),
        ("score_every", score_every),
        ("max_skipped", skipped),
    ):
        if value < 1:
            raise ValueError(f"fit expects {name} ≥ 1, got {value}.")
    if resume not in ("same", "anyway"):
        raise ValueError(f"fit expects resume='same' or 'anyway', got {resume!r}.")


def _check_mesh(mesh: Mesh | None) -> None:
    """Raise `ValueError` where a process would learn by itself, of rows that are a share."""
    count = jax.process_count()
    reached = set() if mesh is None else {d.process_index for d in mesh.devices.flat}
    if count > 1 and len(reached) < count:
        raise ValueError(
            f"fit is called in {count} processes, and "
            + ("no mesh is given" if mesh is None else f"its mesh has devices of {len(reached)}")
            + "; expected one of all devices: mesh=jax.make_mesh((jax.device_count(),), ('data',))."
        )


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


def _on(leaf: Any, mesh: Mesh) -> bool:
    """Whether an array lies on the devices of the mesh already."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.device_set == set(mesh.devices.flat)


def _axes_of(tree: Any, mesh: Mesh | None) -> dict[str, AxisType]:
    """The axes that arrays on the devices of the mesh are sharded over, and their kinds."""
    found: dict[str, AxisType] = {}
    for leaf in jax.tree.leaves(tree):
        if mesh is not None and _on(leaf, mesh):
            theirs = leaf.sharding.mesh
            kinds = dict(zip(theirs.axis_names, theirs.axis_types, strict=True))
            for name in leaf.sharding.spec:
                names = name if isinstance(name, tuple) else [name] if name else []
                found |= {n: kinds[n] for n in names}
    return found


def _gathered_if_mapped(frozen: Any, mesh: Mesh | None, axes: tuple[str, ...]) -> bool:
    """Whether mapping over the batch's axes would copy a network's shards to every device.

    So it would where parameters are sharded over one of these axes, or over an explicit axis, which
    `shard_map` takes in whole.
    """
    return any(
        name in axes or name not in mesh.shape or kind == AxisType.Explicit
        for name, kind in _axes_of(frozen, mesh).items()
        if mesh is not None
    )


def _batch_axes(mesh: Mesh | None, asked: Any, frozen: Any) -> tuple[str, ...]:
    if mesh is None:
        return ()
    if asked is None:
        used = _axes_of(frozen, mesh)
        return tuple(name for name in mesh.axis_names if name not in used)
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    unknown = [name for name in names if name not in mesh.axis_names]
    if unknown:
        raise ValueError(
            f"batch_axes names {', '.join(unknown)}; the mesh has {', '.join(mesh.axis_names)}."
        )
    return names


def _parts_of_processes(mesh: Mesh, axes: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    """For each process the parts of a batch, split over `axes`, that its devices hold."""
    where = [mesh.axis_names.index(name) for name in axes]
    sizes = [mesh.shape[name] for name in axes]
    found: dict[int, set[int]] = {}
    for place, device in np.ndenumerate(mesh.devices):
        part = int(np.ravel_multi_index([place[i] for i in where], sizes)) if axes else 0
        found.setdefault(device.process_index, set()).add(part)
    return {process: tuple(sorted(parts)) for process, parts in found.items()}


def _mesh_of(program: Program) -> contextlib.AbstractContextManager[Any]:
    """The mesh that a network's own shardings speak of, where nothing is mapped over."""
    if program.mesh is None or program.mapped:
        return contextlib.nullcontext()
    return jax.set_mesh(program.mesh)


def _placed(tree: Any, mesh: Mesh | None) -> Any:
    """Copied to every device of the mesh; what lies on them already stays as it lies."""
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())

    def one(leaf):
        if _on(leaf, mesh):
            return leaf
        # An array first: of a Python number, processes compare what it was before its rounding.
        leaf = jnp.asarray(leaf)
        here = jax.process_count() == 1 or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.device_put(leaf if here else np.asarray(leaf), whole)

    return tree_map(one, tree)
