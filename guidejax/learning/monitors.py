"""What shows a run as it goes: a line of progress, TensorBoard, ω's curves.

A monitor is a function of a `Report`; `fit(monitors=[...])` calls each after every dispatch. One
that has a method `close` is closed at the end of the run, whatever ended it.

    fit(..., monitors=[monitors.bar(), monitors.tensorboard("runs/omega/tb")])
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from guidejax.processes.base import Process


class Report(NamedTuple):
    """Where a run stands.

    Attributes:
        step: Updates made.
        steps: Updates in all.
        metrics: Of the last update: "loss", "grad_norm"; "skipped", updates that this call of `fit`
            has skipped so far; "held_out" and "score" where φ was scored.
        phi: φ, on the devices.
        seconds: Where the host spent its time since the report before: "input", taking, checking
            and stacking batches; "device", waiting for the network and the objective; "saving",
            waiting for a checkpoint to be written; "other", everything else. What it waits for
            limits the speed: with nothing to mend, "device" is nearly all.
    """

    step: int
    steps: int
    metrics: Mapping[str, float]
    phi: Any
    seconds: Mapping[str, float]


Monitor = Callable[[Report], None]


class _Closing:
    """A monitor that holds something open; `fit` closes it, however the run ends."""

    def __init__(self, show: Monitor, close: Callable[[], None]):
        self._show, self.close = show, close

    def __call__(self, report: Report) -> None:
        self._show(report)
        if report.step >= report.steps:
            self.close()


class Clock:
    """Sums up where time goes, by name."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What passed since the last lap was spent on `name`."""
        now = time.perf_counter()
        self._spent[name] = self._spent.get(name, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """The sums since the last time they were taken."""
        self.lap("other")
        names = ("input", "device", "saving", "other")
        found = {name: self._spent.get(name, 0.0) for name in names}
        self._spent = {}
        return found


def _first_process() -> bool:
    return jax.process_index() == 0


def bar(console: Any = None) -> Monitor:
    """A line with the step, the loss, the rate, the time left and what the host waits for.

    Needs `rich`. Of several processes the first one shows it.

    Args:
        console: A rich `Console`; by default one that writes to stderr.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left(),
        TextColumn("{task.fields[rate]}"),
    )  # fmt: skip
    shown = Progress(*columns, console=console or Console(stderr=True))
    state: dict[str, Any] = {}

    def show(report: Report) -> None:
        if not _first_process():
            return
        now = time.perf_counter()
        if not state:
            shown.start()
            state["task"] = shown.add_task("", total=report.steps, rate="")
            state["began"], state["from"] = now, report.step
        passed = max(now - state["began"], 1e-9)
        rate = (report.step - state["from"]) / passed
        spent = max(report.seconds.items(), key=lambda item: item[1])
        share = spent[1] / max(sum(report.seconds.values()), 1e-9)
        skipped = f", {report.metrics['skipped']:.0f} skipped" if report.metrics["skipped"] else ""
        shown.update(
            state["task"],
            completed=report.step,
            description=f"loss {report.metrics['loss']:.4g}{skipped}",
            rate=f"{rate:.3g} updates/s, {share:.0%} {spent[0]}",
        )

    def close() -> None:
        if state:
            shown.stop()
            state.clear()

    return _Closing(show, close)


def tensorboard(directory: str | os.PathLike[str]) -> Monitor:
    """TensorBoard files of every metric, and of the host's seconds. Needs `tensorboardX`.

    Args:
        directory: For `tensorboard --logdir`.
    """
    from tensorboardX import SummaryWriter

    writers: list[Any] = []

    def write(report: Report) -> None:
        if not _first_process():
            return
        if not writers:
            writers.append(SummaryWriter(str(directory)))
        for name, value in report.metrics.items():
            writers[0].add_scalar(name, value, report.step)
        for name, value in report.seconds.items():
            writers[0].add_scalar(f"seconds/{name}", value, report.step)
        writers[0].flush()

    def close() -> None:
        while writers:
            writers.pop().close()  # A flush alone doesn't wait for its thread.

    return _Closing(write, close)


def curves(
    path: str | os.PathLike[str],
    net: Any,
    times: Any,
    process: Process,
    conditions: Any = None,
    seconds: float = 30.0,
) -> Monitor:
    """A picture of ω along a grid of times, drawn anew as it is learned. Needs `matplotlib`.

    Args:
        path: The picture, such as "runs/omega.png".
        net: The network that is learned: `net.weight(phi)` is ω.
        times: The grid, (steps + 1,), falling.
        process: The process.
        conditions: A line for each, as in `schedules.to_table`; None for a weight of the times.
        seconds: Least seconds between two pictures; the last one is always drawn.
    """
    from matplotlib.figure import Figure

    times = np.asarray(times)
    drawn = {"at": -np.inf}

    def draw(report: Report) -> None:
        due = time.monotonic() - drawn["at"] >= seconds or report.step >= report.steps
        if not due or not _first_process():
            return
        drawn["at"] = time.monotonic()
        weight = net.weight(jax.device_get(report.phi))
        table = np.asarray(weight.table(times, conditions, process=process))
        table = table.reshape(len(times) - 1, -1)
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        axis.plot(times[:-1], table, linewidth=0.8, alpha=0.6)
        if table.shape[1] > 1:
            axis.plot(times[:-1], table.mean(axis=1), color="black", linewidth=2, label="mean")
            axis.legend(frameon=False)
        axis.set_xlim(times.max(), times.min())
        axis.set_ylim(bottom=min(0.0, float(table.min())))
        axis.set_xlabel("time t denoised from (1 noise → 0 data)")
        axis.set_ylabel("ω  (0: conditional model)")
        axis.set_title(f"after {report.step} of {report.steps} updates", fontsize=10)
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}")
        figure.savefig(part, dpi=130, format=target.suffix[1:] or "png")
        part.replace(target)  # Whole, whoever looks at it meanwhile.

    return draw
