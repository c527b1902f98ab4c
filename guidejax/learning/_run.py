"""The loop that learns a guidance: it feeds the steps, logs, saves, and goes on."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, tree_map
from guidejax.learning import _identity, _log
from guidejax.learning._data import Feed, Rows, check_shares, shared, stack
from guidejax.learning._hosts import Hosts, Notice, Signals, stopped
from guidejax.learning._keeper import Keeper
from guidejax.learning._placement import mesh_of, parts_of_processes, placed
from guidejax.learning.checkpoints import (
    Checkpoints,
    Saved,
    newest,
    on_host,
    part,
    place,
    unflatten,
)
from guidejax.learning.monitors import Clock, Monitor, Report
from guidejax.learning.training import Program, TrainState, many_steps
from guidejax.objectives.base import Batch


class Dispatch(NamedTuple):
    """One call of the compiled steps, of which the device may not be done."""

    first: int
    done: int
    state: TrainState
    metrics: dict[str, Array]
    batches: list[int]
    save: bool
    position: Any


@dataclasses.dataclass
class Run:
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
    keeper: Keeper | None = None
    done: int = 0
    kept: int = 0  # The step that was saved last, 0 where none was.
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    signals: Signals = dataclasses.field(default_factory=lambda: Signals(catch=False))
    saver: Checkpoints | None = None
    log: BinaryIO | None = None
    identity: Any = None
    skipped: int = 0
    bad: list[tuple[int, int, dict[str, float]]] = dataclasses.field(default_factory=list)
    good: Dispatch | None = None
    failed: Exception | None = None
    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    def check_rows(self, held: list[Batch]) -> None:
        """Raise `ValueError` where what the processes give doesn't make one batch."""
        if self.hosts.count == 1 or self.program.mesh is None:
            return
        first = self.hosts.together(self.feed.first)
        given = Rows(
            [] if first is None else _identity.shapes(tuple(first)),
            "" if first is None else _identity.fingerprint(tuple(first)),
            [_identity.shapes(tuple(batch)) for batch in held],
        )
        said = [Rows(*json.loads(text)) for text in self.hosts.all_texts(json.dumps(given))]
        parts = parts_of_processes(self.program.mesh, self.program.axes)
        check_shares([parts[index] for index in sorted(parts)], said, self.hosts.index)

    # The loop.

    def train(self) -> Any:
        """Run what is left; φ, the best where one is kept."""
        running: Dispatch | None = None
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
                self.hosts.agree(Notice(), self.failed)
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
        until = min([self.steps, *((self.done // n + 1) * n for n in every)])
        # What is left over goes one by one: two programs compile at most.
        whole = self.done + self.steps_per_dispatch <= until
        try:
            return self.feed.take(self.steps_per_dispatch if whole else 1), None
        except Exception as error:
            return None, error

    @functools.cached_property
    def _update(self) -> Callable[..., Any]:
        # Once: of a rule with numbers there is no function for equal programs, and each is new.
        return many_steps(self.program)

    def _launch(self, chunk: list[Batch], numbers: list[int]) -> Dispatch:
        """Start the next steps; returns before the device is done."""
        batches = stack(chunk, self.program.mesh, self.program.axes)
        self.clock.lap("input")
        with mesh_of(self.program):
            self.state, metrics = self._update(self.state, *self.fixed, batches)
        first, self.done = self.done, self.done + len(chunk)
        scheduled = isinstance(self.save_every, int) and self.done % self.save_every == 0
        position = None if self.identity is None else self.feed.position()
        save = scheduled or self.done == self.steps
        return Dispatch(first, self.done, self.state, metrics, numbers, save, position)

    def _finish_or_fail(self, launched: Dispatch, save: bool) -> None:
        """`_finish`, whose error the other processes are told before the next dispatch."""
        try:
            self._finish(launched, save)
        except Exception as error:
            self.failed = error

    def _finish(self, launched: Dispatch, save: bool) -> None:
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
        given_up = len(self.bad) >= self.max_skipped
        # Not the middle of a row of skipped updates: that is gone on with before them.
        whole = not self.bad or (launched.done == self.steps and not given_up)
        fit_to_save = launched if whole else self.good
        # What the processes do together comes before what one of them may fail at by itself.
        positions = self._positions(fit_to_save) if save or given_up else []
        _log.write(self.log, launched.first, {**metrics, "batch": launched.batches}, scored)
        if fit_to_save is not None and positions:
            self._save(fit_to_save, positions)
        if given_up:
            self._give_up()
        if scored:
            self._save_best()
        if self.progress is not None:
            self.progress(launched.done, {**last, **scored})
        report = Report(
            launched.done, self.steps, {**last, **scored}, launched.state.phi, self.clock.take()
        )
        for monitor in self.monitors:
            monitor(report)

    def _count_skipped(self, launched: Dispatch, metrics: Mapping[str, np.ndarray]) -> None:
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
        again = "Start again with a smaller learning rate"
        if self.kept:
            again = f'The state before it is saved. {again} and resume="anyway"'
        raise FloatingPointError(
            f"{len(self.bad)} updates in a row came out as NaN or infinite. The first was that of "
            f"step {step}, of batch {batch}: {values}. {again}, or with leave_out=[{batch}]."
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
            found, damaged = newest(self.saver.directory)
            if found is not None:
                self._check(found, directory, resume)
                self.saver.set_aside(damaged, found.step)
            return found, self._best(self.saver, found)

        found, best = self.hosts.from_first(take)
        if found is not None:
            self.hosts.together(lambda: self._go_on(found, directory, resume))
        self.hosts.together(self._open_log)
        self._score_again(best)

    def _open_log(self) -> None:
        if self.saver is not None:
            self.log = _log.open_log(self.saver.directory, self.done)

    def _best(self, saver: Checkpoints, found: Saved | None) -> Saved | None:
        """The best φ until the checkpoint that is gone on from; later ones are to be made again."""
        if found is None:
            saver.set_best_aside("there is no checkpoint to go on from")
            return None
        if self.keeper is None:
            if found.step < self.steps:
                saver.set_best_aside("this run scores none")
            return None
        if _identity.differences(found.about["identity"], self.identity):
            saver.set_best_aside("it is of a run that went on another way", above=found.step)
        saver.set_best_aside("this run goes on from before it", above=found.step)
        return saver.best()

    def _score_again(self, best: Saved | None) -> None:
        """Score what was saved by what scores today, which may be something else."""
        if self.keeper is None or not self.done:
            return
        if best is not None:
            phi = unflatten(part(best.arrays, "phi"), self.state.phi)
            self.keeper.look(best.step, placed(phi, self.program.mesh))
            if self.saver is not None and not self.keeper.step:
                self.saver.set_best_aside("its score is no number now")
        due = self.done == self.steps or self.done % self.score_every == 0
        if due and (best is None or best.step < self.done):
            self.keeper.look(self.done, self.state.phi)
            self._save_best()

    def _check(self, found: Saved, directory: pathlib.Path, resume: str) -> None:
        """Raise `ValueError` where the checkpoint is of another run."""
        if found.step > self.steps:
            raise ValueError(
                f"the checkpoint in {directory} is of step {found.step}; expected at most "
                f"steps={self.steps}."
            )
        lines = _identity.differences(found.about["identity"], self.identity)
        if lines and resume == "same":
            if any(line.startswith("data, first batch") for line in lines):
                lines.append(
                    "(or `batches` isn't at its beginning: give the data, not an iterator of them "
                    "that was used)"
                )
            raise ValueError(
                f"the checkpoint in {directory} is of another run:\n  "
                + "\n  ".join(lines)
                + '\nGive another checkpoint_dir, what it was written by, or resume="anyway" to go '
                "on with what is given now."
            )

    def _go_on(self, found: Saved, directory: pathlib.Path, resume: str) -> None:
        """Take over what was saved."""
        arrays = dict(found.arrays)
        if resume == "anyway":
            fresh = on_host(self.state._asdict())
            # A learning rate that lies in the optimizer's state is of what is given now.
            own = {"key", *_hyperparams({"optimizer": self.state.optimizer})}
            try:
                unflatten(part(arrays, "optimizer"), self.state.optimizer)
            except ValueError:
                warnings.warn(
                    f"{directory} holds the state of another optimizer; this one starts anew.",
                    stacklevel=2,
                )
                arrays = {n: a for n, a in arrays.items() if n.split(".")[0] != "optimizer"}
                own |= {n for n in fresh if n.split(".")[0] == "optimizer"}
            arrays |= {name: fresh[name] for name in own}
        try:
            self.state = placed(unflatten(arrays, self.state), self.program.mesh)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint in {directory} doesn't fit this run: {error}."
            ) from error
        self.done = self.kept = found.step
        self._resume_data(found, directory, resume)

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

    def _positions(self, launched: Dispatch | None) -> list[Any]:
        """Where the data stood in every process, once where all say the same; none to save none."""
        if launched is None or self.identity is None:
            return []
        texts = self.hosts.all_texts(json.dumps(launched.position, sort_keys=True))
        return [json.loads(text) for text in (texts if len(set(texts)) > 1 else texts[:1])]

    def _save(self, launched: Dispatch, positions: list[Any]) -> None:
        """Save the state after that dispatch."""
        if self.saver is not None:
            about = {"identity": self.identity, "positions": positions}
            self.clock.lap("other")
            self.saver.save(launched.done, launched.state._asdict(), about)
            self.clock.lap("saving")
        self.kept, self.saved_at = launched.done, time.monotonic()

    def _save_best(self) -> None:
        keeper = self.keeper
        if self.saver is not None and keeper is not None and keeper.step:
            self.saver.save_best(keeper.step, keeper.value, keeper.phi, self.identity)

    def _save_is_due(self) -> bool:
        every = self.save_every
        waited = time.monotonic() - self.saved_at
        return isinstance(every, datetime.timedelta) and waited >= every.total_seconds()

    def _stopped(self, number: int) -> BaseException:
        where = f"stopped at step {self.done} of {self.steps}"
        self._wait_for_saving()
        if self.kept:
            where += ", saved" + (f" as of step {self.kept}" if self.kept < self.done else "")
            where += "; the same call goes on from there"
        return stopped(number, where)

    def _wait_for_saving(self) -> None:
        """Wait for the last checkpoint; where it can't be written, all processes end."""
        self.hosts.together(self.saver.wait if self.saver is not None else lambda: None)

    def close(self) -> None:
        """Finish what is being written and shown, and let go of the directory."""
        for monitor in self.monitors:
            try:
                getattr(monitor, "close", lambda: None)()
            except Exception as error:  # It isn't to hide what ended the run.
                warnings.warn(f"closing a monitor failed: {error!r}", stacklevel=3)
        if self.log is not None:
            self.log.close()
        if self.saver is not None:
            self.saver.close()


def _hyperparams(state: Any) -> list[str]:
    """The places of what `optax.inject_hyperparams` keeps in an optimizer's state."""
    return [
        place(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
        if any(getattr(key, "name", None) == "hyperparams" for key in path)
    ]
