"""A small network, and what a loop by hand makes of it."""

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj

KEY = jax.random.key(0)
BATCH, SIZE, NULL = 4, 3, 2
NOISE = jax.random.normal(KEY, (BATCH, SIZE))
LABELS = jnp.arange(BATCH) % NULL
TIMES = np.linspace(0.9, 0.1, 6).astype(np.float32)


def network(x, t, label):
    return jnp.tanh(x - label[:, None] + t[:, None])


def learned():
    net = gj.OmegaNet(num_classes=NULL)
    return net.weight(jax.tree.map(lambda leaf: leaf + 0.1, net.init(jax.random.key(3))))


def sample(process, prediction, guide, solver=None, times=TIMES, net=network):
    denoise = gj.denoiser(net, process, prediction=prediction)
    options = {"cond": LABELS, "uncond": jnp.int32(NULL), "guidance": guide, "times": times}
    return gj.sample(KEY, denoise, NOISE, solver=solver or gj.ddim(), **options)
