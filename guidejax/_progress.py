"""Progress from inside a compiled loop."""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax

from guidejax._arrays import Array

Progress = bool | Callable[[int, int], None]


def bar(step: int, steps: int) -> None:
    """One line on stderr, rewritten at each step."""
    full = 40 * step // steps
    end = "\n" if step == steps else ""
    sys.stderr.write(f"\rsampling [{'=' * full}{' ' * (40 - full)}] {step}/{steps}{end}")
    sys.stderr.flush()


def report(progress: Progress, index: Array, steps: int, begins: Array) -> None:
    """Have the host call `progress(step, steps)` where the step with this index `begins`."""
    if progress is False:
        return
    call = bar if progress is True else progress
    jax.debug.callback(lambda i, begins: begins and call(int(i) + 1, steps), index, begins)
