"""Compiles cells for chips that aren't there, one JSON line each; started by `__main__`.

    python -m experiments.tpu.worker < cells.json

libtpu reads its environment as it is loaded, so this is a process of its own: `environment()`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

from experiments.tpu.cells import Cell


def environment() -> dict[str, str]:
    """What lets libtpu compile on a host without a TPU."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it drives no chip that others could want
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }


def measure(cell: Cell) -> dict[str, Any]:
    """What `reading.read` finds of the cell's program, or the error that came in its place."""
    import jax

    from experiments.tpu import programs, reading

    start = time.perf_counter()
    try:
        function, arguments = programs.build(cell)
        lowered = jax.jit(function).lower(*arguments)
        found = reading.read(lowered.as_text(), lowered.compile())
        if cell.group != "small":
            del found["narrow"]  # the network's own
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        traceback.print_exc(limit=-3)
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Compile the cells on stdin."""
    import jax

    for fields in json.load(sys.stdin):
        cell = Cell(**fields)
        print(json.dumps([cell.name, measure(cell)]), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
