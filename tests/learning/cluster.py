"""One of several processes that learn together, as `tests/learning/test_hosts.py` starts them."""

from __future__ import annotations

import os
import pathlib
import signal
import sys

import jax
import numpy as np

from experiments.distributed import local

local.join()  # Before anything, keys of tests included, is put on a device.

import guidejax as gj  # noqa: E402
from guidejax import objectives  # noqa: E402
from guidejax.learning import _log  # noqa: E402
from tests.learning.common import EXACT, KEY, NET, SGD, batches, flat  # noqa: E402

SIZE, STEPS = 8, 8
OBJECTIVE = objectives.self_consistency(particles=2)


def main(directory: str, what: str) -> None:
    """Learn; something happens in the process, or none, that `what` names."""
    index, count = jax.process_index(), jax.process_count()
    rows = slice(index * SIZE // count, (index + 1) * SIZE // count)
    data = [{n: v[rows] for n, v in b.items()} for b in batches(STEPS, SIZE, shape=(1,))]
    last = index == count - 1
    if what == "bad row" and last:
        data[4]["x0"][0] = np.nan

    if what == "log" and index == 0:
        write = _log.write

        def full(log, first, *rest):  # In a dispatch whose checkpoint is due.
            if first == 3:
                raise RuntimeError("metrics.jsonl can't be written")
            write(log, first, *rest)

        _log.write = full

    def happen(step, metrics):
        if what == "callback" and last and step == 6:
            raise OSError("the disk of this host is full")
        if step != 4:
            return
        if what == "killed" and last:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "SIGTERM" and last:
            os.kill(os.getpid(), signal.SIGTERM)

    mesh, axes = jax.make_mesh((jax.device_count(),), ("data",)), None
    if what == "copies":  # Each process gives its own rows, and both hold them all.
        mesh, axes = jax.make_mesh((1, count), ("data", "model")), "data"
    held = [{n: v[rows] for n, v in b.items()} for b in batches(2, SIZE, shape=(1,), seed=3)]
    best = gj.fit_omega(
        KEY, NET, EXACT, data, held_out=held, score_every=1, objective=OBJECTIVE, optimizer=SGD,
        steps=STEPS,
        mesh=mesh, batch_axes=axes, steps_per_dispatch=1, save_every=2,
        checkpoint_dir=directory, progress=happen,
    )  # fmt: skip
    if index == 0:
        last = gj.load_omega(directory, best=False)[1]
        np.save(pathlib.Path(directory) / "phi.npy", [flat(last), flat(best)])


if __name__ == "__main__":
    main(*sys.argv[1:])
