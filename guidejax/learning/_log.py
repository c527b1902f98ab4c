"""`metrics.jsonl`: a line of JSON a step."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

NAME = "metrics.jsonl"


def read(path: pathlib.Path) -> tuple[list[bytes], int]:
    """(lines that hold a step, in order; how many didn't)."""
    if not path.exists():
        return [], 0
    lines, lost, last = [], 0, 0
    for line in path.read_bytes().splitlines(keepends=True):
        step = _step(line)
        # One that was cut off as it was written is no damage: a killed run leaves it.
        if step is None or step <= last:
            lost += step is not None or line.endswith(b"\n")
            continue
        lines.append(line)
        last = step
    return lines, lost


def _step(line: bytes) -> int | None:
    try:
        found = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"{what} can't be written ({error.strerror or error}). What was saved is kept: make "
            "room, or give the folder back, and start the same run again."
        ) from error


def open_log(directory: pathlib.Path, done: int) -> BinaryIO:
    """The log, without the steps that the checkpoint doesn't know; what is damaged is set aside.

    Raises:
        RuntimeError: If it can't be written.
    """
    path = directory / NAME
    with _writing(str(path)):
        return _open(path, done)


def _open(path: pathlib.Path, done: int) -> BinaryIO:
    lines, lost = read(path)
    if lost:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        warnings.warn(
            f"{lost} lines of {path} hold no step of their own; it is set aside as {aside.name}, "
            "and the other lines are kept.",
            stacklevel=2,
        )
    kept = b"".join(line for line in lines if (_step(line) or 0) <= done)
    if lost or not path.exists() or path.read_bytes() != kept:
        part = path.with_suffix(".part")
        part.write_bytes(kept)
        part.replace(path)
    return path.open("ab", buffering=0)  # Nothing is left to fail at its end.


def write(
    log: BinaryIO | None,
    first: int,
    metrics: Mapping[str, Sequence[Any]],
    last: Mapping[str, float],
) -> None:
    """A line a step; `last` goes with the last. What is not finite is null.

    Raises:
        RuntimeError: If it can't be written.
    """
    if log is None:
        return
    lines = b""
    count = len(next(iter(metrics.values())))
    for index in range(count):
        line = {name: float(values[index]) for name, values in metrics.items()}
        if line.pop("skipped", 0):
            line |= {"skipped": True, "batch": int(line["batch"])}
        else:
            line.pop("batch", None)
        line |= last if index == count - 1 else {}
        plain = {n: None if isinstance(v, float) and not math.isfinite(v) else v
                 for n, v in line.items()}  # fmt: skip
        lines += (json.dumps({"step": first + index + 1, **plain}) + "\n").encode()
    with _writing(log.name):
        if log.write(lines) < len(lines):
            raise OSError("no room")
