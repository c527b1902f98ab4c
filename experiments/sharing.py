"""Work shared by processes: each result is a file, and is made once."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import jax

# Which cores a process that shares the work is to stay on.
CORES = "GUIDEJAX_EXPERIMENT_CORES"


def settle() -> bool:
    """Stay on the cores that `share` gave; to be called before JAX counts them.

    Returns whether it did: this process shares the work of another, which writes the report.
    """
    if CORES in os.environ and hasattr(os, "sched_setaffinity"):  # Not on macOS.
        os.sched_setaffinity(0, map(int, os.environ[CORES].split()))
    return CORES in os.environ


def cores() -> list[int]:
    """The cores that this process may use, as far as the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def default_jobs() -> int:
    """One process a core where there are CPUs alone, and each can be kept on its own; else one."""
    if jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity"):
        return 1
    return len(cores())


def share(command: Sequence[str], jobs: int) -> None:
    """Run `command` in `jobs` processes, each on its share of the cores, to the end of all.

    Two processes on a core each do more than one on both, where the work is of small arrays; and
    several keep a GPU busy that one would leave idle while it compiles. Of a GPU's memory each
    takes what it needs, unless XLA_PYTHON_CLIENT_PREALLOCATE says otherwise.

    Raises:
        SystemExit: If one of them fails.
    """
    all_cores = cores()
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    workers = [
        subprocess.Popen(command, env={**shared, CORES: " ".join(map(str, all_cores[job::jobs]))})
        for job in range(min(jobs, len(all_cores)))
    ]
    try:
        failed = [worker.wait() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    if any(failed):
        raise SystemExit(f"{sum(map(bool, failed))} of {len(workers)} processes failed; see above.")


def write(path: pathlib.Path, save: Callable[[pathlib.Path], Any]) -> None:
    """Write a file whole or not at all, by `save`, which is given where to write.

    Each process writes to a file of its own first: of several the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def once(
    path: pathlib.Path, make: Callable[[], Any], known: Callable[[], bool], wait: bool = True
) -> None:
    """Write what `make` returns to `path`, as JSON, unless it is `known` already.

    Whoever else is at it, in another process, is waited for, or left to it without `wait`.
    """
    if known():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        try:  # The system lets go of the lock of a process that ends, however it does.
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return
        if known():
            return
        text = json.dumps(make(), indent=1)
        write(path, lambda part: part.write_text(text))
        path.with_suffix(".lock").unlink()
