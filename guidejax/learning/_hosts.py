"""What the processes of a run tell each other between two dispatches, and signals that end it."""

from __future__ import annotations

import pickle
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

PREEMPTED = 75
"""Exit status of a run that a signal ended: EX_TEMPFAIL, start it again."""
MESSAGE = 2000  # Characters of an error that other processes are told.
T = TypeVar("T")


class Preempted(SystemExit):
    """A signal asked the run to end; it saved where it stood. The exit status is `PREEMPTED`."""

    def __init__(self, message: str):
        super().__init__(PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Notice(NamedTuple):
    """What holds for all processes alike.

    Attributes:
        stop: The signal that asks for an end, 0 if none.
        save: Whether to save now.
    """

    stop: int = 0
    save: bool = False


class Hosts:
    """The processes of a run; of one alone, nothing is sent."""

    def __init__(self) -> None:
        self.count, self.index = jax.process_count(), jax.process_index()
        self._polls, self._preempted = 0, False

    @property
    def first(self) -> bool:
        """Whether this process writes what is written."""
        return self.index == 0

    def agree(self, notice: Notice, error: BaseException | None = None) -> Notice:
        """What any of the processes noticed; an error of one of them is raised in all.

        Raises:
            RuntimeError: The error of another process. One's own is raised as it is.
        """
        if self.count > 1:
            said = f"{type(error).__name__}: {error}" if error else ""
            notices = self._gather([notice.stop, notice.save], said)
            notice = Notice(
                max(stop for (stop, _), _ in notices), any(save for (_, save), _ in notices)
            )
            failed = [(i, said) for i, (_, said) in enumerate(notices) if said]
            if error is None and failed:
                index, said = failed[0]
                raise RuntimeError(f"process {index} of {self.count} ended this run: {said}")
        if error is not None:
            raise error
        if self._cluster_preempts():
            notice = notice._replace(stop=notice.stop or int(signal.SIGTERM))
        return notice

    def together(self, work: Callable[[], T]) -> T:
        """`work()`, whose error in one process ends all."""
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        self.agree(Notice(), error)
        return result  # type: ignore[return-value]  # agree has raised where there is none

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work()` returns in the first process; it runs there alone."""
        found = self.together(lambda: work() if self.first else None)
        if self.count == 1:
            return found  # type: ignore[return-value]
        from jax.experimental import multihost_utils

        raw = pickle.dumps(found)
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(raw))))
        sent = np.frombuffer(raw, np.uint8) if self.first else np.zeros(size, np.uint8)
        return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())

    def all_texts(self, text: str) -> list[str]:
        """What every process says, in their order."""
        if self.count == 1:
            return [text]
        from jax.experimental import multihost_utils

        raw = np.frombuffer(text.encode(), np.uint8)
        sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(raw)))).reshape(-1)
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(raw)] = raw
        rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(self.count, -1)
        return [row[:n].tobytes().decode() for row, n in zip(rows, sizes, strict=True)]

    def _gather(self, numbers: list[int], text: str) -> list[tuple[list[int], str]]:
        """Numbers and a text of every process, in one collective."""
        from jax.experimental import multihost_utils

        sent = np.zeros(len(numbers) + MESSAGE, np.int32)
        sent[: len(numbers)] = numbers
        codes = [ord(c) for c in text[:MESSAGE]]
        sent[len(numbers) : len(numbers) + len(codes)] = codes
        rows = np.asarray(multihost_utils.process_allgather(sent)).reshape(self.count, -1)
        return [
            (
                [int(n) for n in row[: len(numbers)]],
                "".join(chr(c) for c in row[len(numbers) :] if c),
            )
            for row in rows
        ]

    def _cluster_preempts(self) -> bool:
        """Whether JAX's preemption service, which the cluster tells, has had every process stop."""
        if self._preempted or not jax.distributed.is_initialized():
            return self._preempted
        from jax.experimental import multihost_utils

        self._polls += 1
        try:
            self._preempted = bool(multihost_utils.reached_preemption_sync_point(self._polls))
        except RuntimeError:  # The service is switched off.
            return False
        return self._preempted


class Signals:
    """Catches SIGTERM and Ctrl-C while a run is on; a second Ctrl-C interrupts at once.

    Only the main thread may catch signals: elsewhere, and where `catch` is False, they do what they
    always do.
    """

    def __init__(self, catch: bool):
        self.received = 0
        self._catch = catch and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if self._catch:
            for which in (signal.SIGTERM, signal.SIGINT):
                self._before[which] = signal.signal(which, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *error: Any) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


def stopped(number: int, where: str) -> BaseException:
    """What a run ends with that a signal ended."""
    if number == signal.SIGINT:
        return KeyboardInterrupt(where)
    message = f"{signal.Signals(number).name}: {where}"
    print(message, file=sys.stderr, flush=True)  # Python prints nothing of a SystemExit.
    return Preempted(message)
