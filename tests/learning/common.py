"""What the tests of learning share: a small world, and a run that can be killed."""

from __future__ import annotations

import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import guidejax as gj
from guidejax import analytic, learning, objectives

PROCESS = gj.processes.rectified_flow()
NET = gj.OmegaNet(num_classes=2, hidden=8, depth=1)
TIMES_ONLY = gj.OmegaNet(hidden=8, depth=1)
KEY = jax.random.key(0)
ADAM = optax.adam(1e-2)  # One for all: runs that are alike share their program.
SGD = optax.sgd(0.1)  # Adam hides a gradient that is too large by the number of devices.
# Two classes in one dimension, and the denoiser that is exact for both and for their sum.
MODEL = analytic.by_class(analytic.mixture([[-1.0], [1.5]], stds=[0.5, 0.25]), [0, 1])
EXACT = analytic.denoiser(MODEL, PROCESS)


def examples(n, seed=1):
    """(n,) examples of the two classes, with the null label."""
    cond = jnp.arange(n) % 2
    x0 = MODEL.sample(jax.random.key(seed), cond)
    return objectives.Batch(x0, cond, {"uncond": jnp.full((n,), MODEL.null)})


def batches(count, size=8, seed=0, shape=(3,)):
    rng = np.random.default_rng(seed)
    return [
        {
            "x0": rng.normal(size=(size, *shape)).astype(np.float32),
            "cond": rng.integers(0, 2, size).astype(np.int32),
        }
        for _ in range(count)
    ]


# A denoiser for objectives that don't ask it.
STILL = gj.denoiser(lambda x, t, cond: x, PROCESS)


def guide(phi):
    """CFG at the ω of `NET`."""
    return gj.guidance(gj.cfg, omega=NET.weight(phi))


def begin(optimizer, key=KEY):
    """The state that `fit_omega` begins with."""
    init_key, run_key = jax.random.split(key)
    return learning.init_state(run_key, NET.init(init_key), optimizer)


def chase(keys, guidance, denoise, batch, networks=()):
    """An objective that compiles fast: ω should be near a noisy target of the example."""
    omega = guidance.omega(jnp.float32(0.3), jnp.float32(0.6), batch.cond, process=PROCESS)
    noise = jax.vmap(jax.random.normal)(keys)
    return (omega - jnp.mean(batch.x0, axis=tuple(range(1, batch.x0.ndim))) - noise) ** 2


def fit(data, steps=12, **options):
    options = {
        "net": NET, "objective": chase, "optimizer": ADAM, "save_every": 3,
        "steps_per_dispatch": 2, "denoise": STILL, **options,
    }  # fmt: skip
    return learning.fit_omega(
        options.pop("key", KEY), options.pop("net"), options.pop("denoise"), data,
        steps=steps, **options,
    )  # fmt: skip


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


class Counting:
    """A source whose iterator knows where it stands, as bytes, and says when it was told."""

    def __init__(self, items):
        self.items, self.told, self.at = items, [], 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        return self.items[(self.at - 1) % len(self.items)]

    def get_state(self):
        return str(self.at).encode()

    def set_state(self, state):
        self.told.append(int(state.decode()))
        self.at = int(state.decode())


SOURCES = {"plain": batches, "stateful": lambda count: Counting(batches(count))}


def main(directory, kind):
    """A run that is killed between two checkpoints, with no time to clean up."""

    def kill(step, metrics):
        if step >= 7:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(SOURCES[kind](12), checkpoint_dir=directory, progress=kill)


if __name__ == "__main__":
    main(*sys.argv[1:])
