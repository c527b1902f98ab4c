"""Keras 3: a functional model as a network, under jit and scan, against the same in JAX."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras

import guidejax as gj
from experiments.interop.checks.common import (
    CLASSES,
    IN,
    KEY,
    LABEL,
    OUT,
    SIZE,
    network,
    problem,
    report,
)

VERSION = keras.__version__


def model() -> keras.Model:
    """The small network as a functional model, with a dropout that must be off."""
    x, t = keras.Input((SIZE,)), keras.Input(())
    label = keras.Input((), dtype="int32")
    embedding = keras.layers.Embedding(CLASSES + 1, 16, name="label")
    dense = keras.layers.Dense(16, use_bias=False, name="in")
    last = keras.layers.Dense(SIZE, use_bias=False, name="out")
    hidden = dense(x) + embedding(label) + keras.ops.expand_dims(t, -1)
    hidden = keras.layers.BatchNormalization(epsilon=1e-12)(keras.ops.tanh(hidden))
    made = keras.Model([x, t, label], last(keras.layers.Dropout(0.5)(hidden)))
    for layer, values in ((dense, IN), (embedding, LABEL), (last, OUT)):
        layer.set_weights([values])
    return made


def main() -> None:
    """`gj.sample` of both; new variables without compiling anew."""
    noise, labels = problem()
    fn, params = gj.interop.keras.network(model())
    process = gj.processes.rectified_flow()
    traces = []

    @jax.jit
    def theirs(params):
        traces.append(1)
        denoise = gj.denoiser(fn, process, prediction="velocity", params=params)
        return sample(denoise)

    def sample(denoise):
        guide = gj.guidance(gj.adg, omega=2.0)
        options = {"cond": labels, "uncond": jnp.int32(CLASSES), "guidance": guide}
        return gj.sample(KEY, denoise, noise, times=gj.uniform_times(10), **options)

    want = sample(gj.denoiser(network, process, prediction="velocity"))
    report("keras", VERSION, "gj.sample of a functional model, adg, jit", theirs(params), want)
    theirs(jax.tree.map(lambda leaf: 2 * leaf, params))
    report(
        "keras",
        VERSION,
        "programs compiled for two sets of variables, of which 1 is right",
        len(traces),
        1,
    )


if __name__ == "__main__":
    main()
