"""Training what the experiment stands on: the denoiser, and classifiers of different shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import guidejax as gj
from experiments.digits.config import NUM_CLASSES, Sizes
from experiments.models import ConvClassifier, MLPClassifier, ResidualMLP

PROCESS = gj.processes.rectified_flow()
CONDITION_DROPOUT = 0.15

# Features that objectives and tuning may see ...
SEEN: dict[str, MLPClassifier | ConvClassifier] = {
    "mlp-silu": MLPClassifier(NUM_CLASSES, (80,), "silu"),
    "conv-tanh": ConvClassifier(NUM_CLASSES, (24,), 48, "tanh"),
    "mlp-gelu-2": MLPClassifier(NUM_CLASSES, (96, 48), "gelu"),
    "conv-silu-2": ConvClassifier(NUM_CLASSES, (12, 24), 48, "silu"),
    "mlp-relu-1": MLPClassifier(NUM_CLASSES, (96,), "relu"),
}
# ... and features for reports alone: where forms are chosen,
CHOICE: dict[str, MLPClassifier | ConvClassifier] = {
    "mlp-relu": MLPClassifier(NUM_CLASSES, (128, 64), "relu"),
    "conv-relu": ConvClassifier(NUM_CLASSES, (16, 32), 64, "relu"),
    "mlp-gelu": MLPClassifier(NUM_CLASSES, (64,), "gelu"),
    "conv-silu": ConvClassifier(NUM_CLASSES, (32,), 64, "silu"),
}
# and, whose shapes served no choice before it, of the protocol that was frozen first.
FULL: dict[str, MLPClassifier | ConvClassifier] = {
    "mlp-tanh-3": MLPClassifier(NUM_CLASSES, (104, 72, 40), "tanh"),
    "conv-gelu": ConvClassifier(NUM_CLASSES, (20,), 56, "gelu"),
    "mlp-elu-2": MLPClassifier(NUM_CLASSES, (112, 56), "elu"),
    "conv-elu-2": ConvClassifier(NUM_CLASSES, (14, 28), 52, "elu"),
}
# ... and of the protocol of the mended method.
MENDED: dict[str, MLPClassifier | ConvClassifier] = {
    "mlp-silu-3": MLPClassifier(NUM_CLASSES, (96, 80, 48), "silu"),
    "conv-elu": ConvClassifier(NUM_CLASSES, (28,), 52, "elu"),
    "mlp-relu-3": MLPClassifier(NUM_CLASSES, (88, 72, 56), "relu"),
    "conv-tanh-2": ConvClassifier(NUM_CLASSES, (10, 20), 44, "tanh"),
}
REPORTS = {"choice": CHOICE, "full": FULL, "mended": MENDED}
CLASSIFIERS = SEEN | CHOICE | FULL | MENDED


@functools.partial(jax.jit, static_argnames=("loss", "optimizer", "steps", "batch"))
def _fit(key, params, x, y, *, loss, optimizer, steps, batch):
    def step(carry, key):
        params, state = carry
        pick, key = jax.random.split(key)
        index = jax.random.randint(pick, (batch,), 0, x.shape[0])
        value, gradient = jax.value_and_grad(loss)(params, key, x[index], y[index])
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    carry = (params, optimizer.init(params))
    (params, _), losses = jax.lax.scan(step, carry, jax.random.split(key, steps))
    return params, losses


# The losses and optimizers are made once, so that all seeds share the compiled programs.


@functools.cache
def _denoiser_loss(net: ResidualMLP) -> Callable[..., jax.Array]:
    def loss(params: Any, key: jax.Array, x0: jax.Array, label: jax.Array) -> jax.Array:
        when, what, drop = jax.random.split(key, 3)
        t = jax.random.uniform(when, label.shape)
        eps = jax.random.normal(what, x0.shape)
        null = jax.random.bernoulli(drop, CONDITION_DROPOUT, label.shape)
        x_t = gj.processes.noise_to(PROCESS, x0, t, eps)
        velocity = net.apply(params, x_t, t, jnp.where(null, NUM_CLASSES, label))
        return jnp.mean((velocity - (eps - x0)) ** 2)

    return loss


@functools.cache
def _classifier_loss(name: str) -> Callable[..., jax.Array]:
    def loss(params: Any, key: jax.Array, x0: jax.Array, label: jax.Array) -> jax.Array:
        level, what = jax.random.split(key)
        noise = jax.random.uniform(level, (label.shape[0], 1, 1, 1), maxval=0.3)
        logits, _ = classify(name, params, x0 + noise * jax.random.normal(what, x0.shape))
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    return loss


@functools.cache
def _feature(name: str) -> Callable[..., jax.Array]:
    return lambda params, x0: classify(name, params, x0)[1]


_DENOISER_OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4))
_CLASSIFIER_OPTIMIZER = optax.adamw(2e-3, weight_decay=1e-3)


def train_denoiser(key: jax.Array, sizes: Sizes, steps: int, x: Any, y: Any) -> gj.Denoiser:
    """A class-conditional denoiser with condition dropout, stopped after `steps`."""
    net = ResidualMLP(NUM_CLASSES, sizes.hidden, sizes.depth)
    init, run = jax.random.split(key)
    params = net.init(init, x[:1], jnp.ones(1), y[:1])
    params, _ = _fit(
        run, params, x, y, loss=_denoiser_loss(net), optimizer=_DENOISER_OPTIMIZER,
        steps=steps, batch=sizes.batch,
    )  # fmt: skip
    return gj.denoiser(net, PROCESS, prediction="velocity", params=params)


def train_classifiers(
    key: jax.Array, sizes: Sizes, x: Any, y: Any, names: Iterable[str] = tuple(SEEN | CHOICE)
) -> dict[str, Any]:
    """Parameters of classifiers by their names, trained on noisy images."""
    params = {}
    for index, (name, net) in enumerate(CLASSIFIERS.items()):
        if name not in names:
            continue
        init, run = jax.random.split(jax.random.fold_in(key, index))
        params[name], _ = _fit(
            run, net.init(init, x[:1]), x, y,
            loss=_classifier_loss(name), optimizer=_CLASSIFIER_OPTIMIZER,
            steps=sizes.classifier_steps, batch=sizes.batch,
        )  # fmt: skip
    return params


def feature(name: str, params: Any) -> jax.tree_util.Partial:
    """The last hidden layer of a classifier, as a pytree that can be called on images."""
    return jax.tree_util.Partial(_feature(name), params)


def classify(name: str, params: Any, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits, features) of a classifier."""
    return CLASSIFIERS[name].apply(params, x0)
