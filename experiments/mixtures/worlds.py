"""The mixtures, the models of them that are exact or wrong in a known way, and closed forms."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import guidejax as gj
from experiments.mixtures.config import (
    BLUR,
    CLASSES,
    COMPONENTS,
    DEPTH,
    LEAK,
    NETWORKS,
    PROCESS,
    SHIFT,
    WIDTH,
)
from experiments.models import ResidualMLP
from guidejax import analytic

LABELS = np.repeat(np.arange(CLASSES), COMPONENTS)
CONDITION_DROPOUT = 0.15
NET = ResidualMLP(CLASSES, WIDTH, DEPTH)


@dataclasses.dataclass(frozen=True)
class Data:
    """A mixture of `CLASSES` classes, `COMPONENTS` Gaussians each, in the plane.

    Attributes:
        means: (K, 2); component k belongs to class `LABELS[k]`.
        stds: (K,).
    """

    means: np.ndarray
    stds: np.ndarray

    @classmethod
    def drawn(cls, seed: int) -> Data:
        """The mixture of a seed: class centres on a circle, components about them."""
        rng = np.random.default_rng(seed)
        angles = 2 * np.pi * (np.arange(CLASSES) + rng.uniform(size=1)) / CLASSES
        centres = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        means = centres[:, None] + rng.normal(size=(CLASSES, COMPONENTS, 2)) * 0.5
        stds = rng.uniform(0.1, 0.2, size=(CLASSES, COMPONENTS))
        return cls(means.reshape(-1, 2), stds.ravel())

    def exact(self) -> analytic.ClassMixture:
        """The data's own classes, and their sum for the null label."""
        return self.model()

    def model(
        self,
        *,
        blur: float = 1.0,
        blur_uncond: float = 1.0,
        shift: Any = 0.0,
        leak: float = 0.0,
    ) -> analytic.ClassMixture:
        """The classes with every std times `blur`, means moved and a share of them leaking.

        Args:
            blur: Factor of the stds given the class.
            blur_uncond: Factor of the stds without.
            shift: Added to the means, with and without the class: (K, 2).
            leak: Share of every class that is drawn from the whole mixture.
        """
        means = np.concatenate([self.means + shift] * 2)
        stds = np.concatenate([self.stds * blur, self.stds * blur_uncond])
        given = (1 - leak) * (np.arange(CLASSES)[:, None] == LABELS) + leak / CLASSES
        shares = np.zeros((CLASSES + 1, 2 * len(LABELS)))
        shares[:-1, : len(LABELS)] = given / COMPONENTS
        shares[-1, len(LABELS) :] = 1 / len(LABELS)
        with np.errstate(divide="ignore"):
            table = jnp.asarray(np.log(shares), jnp.float32)
        return analytic.ClassMixture(analytic.mixture(means, stds=stds), table)


def denoiser(model: str, seed: int, network_updates: int) -> gj.Denoiser:
    """The frozen denoiser of a model of `MODELS`, for the mixture of a seed."""
    data = Data.drawn(seed)
    if model in NETWORKS:
        updates = network_updates // 15 if model == "under-trained network" else network_updates
        return _network(seed, max(updates, 1), LEAK if model == "mislabelled network" else 0.0)
    turn = 2 * np.pi * np.random.default_rng([seed, 1]).uniform(size=len(LABELS))
    options: dict[str, dict[str, Any]] = {
        "exact": {},
        "blurred": {"blur": BLUR, "blur_uncond": BLUR},
        "blurred more without c": {"blur": BLUR, "blur_uncond": BLUR**2},
        "shifted": {"shift": SHIFT * np.stack([np.cos(turn), np.sin(turn)], axis=-1)},
        "leaking": {"leak": LEAK},
    }
    return analytic.denoiser(data.model(**options[model]), PROCESS)


@functools.lru_cache(maxsize=4)
def _network(seed: int, updates: int, leak: float) -> gj.Denoiser:
    """A network trained on fresh samples, with condition dropout."""
    params = _train(jax.random.key(seed), Data.drawn(seed).exact(), updates, leak)
    return gj.denoiser(NET, PROCESS, prediction="velocity", params=params)


@functools.partial(jax.jit, static_argnames="updates")
def _train(key: jax.Array, data: Any, updates: int, leak: float) -> Any:
    decay = optax.cosine_decay_schedule(3e-3, updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(decay))

    def loss(params, key):
        kinds, points, when, what, drop = jax.random.split(key, 5)
        label = jax.random.randint(kinds, (256,), 0, CLASSES)
        x0 = data.sample(points, label)
        t, eps = jax.random.uniform(when, label.shape), jax.random.normal(what, x0.shape)
        other, which = jax.random.split(jax.random.fold_in(key, 1))
        told = jax.random.randint(which, label.shape, 0, CLASSES)
        told = jnp.where(jax.random.bernoulli(other, leak, label.shape), told, label)
        null = jax.random.bernoulli(drop, CONDITION_DROPOUT, label.shape)
        x = gj.processes.noise_to(PROCESS, x0, t, eps)
        velocity = NET.apply(params, x, t, jnp.where(null, CLASSES, told))
        return jnp.mean((velocity - (eps - x0)) ** 2)

    def update(carry, key):
        params, state = carry
        change, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, change), state), None

    begin, run = jax.random.split(key)
    params = NET.init(begin, jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros(1, int))
    carry = params, optimizer.init(params)
    return jax.lax.scan(update, carry, jax.random.split(run, updates))[0][0]


# Closed forms


def l2_omega(s: float, t: float, churn: float) -> float:
    """ω where l2 is least for exact denoisers: A α_t / B, with A, B of the bridge from t to s.

    r₁₁/(1 − r₁₁) without churn, r₂₂/(1 − r₂₂) with full churn; > 0, and ∞ as s → t.

    Example:
        >>> round(l2_omega(0.4, 0.5, 0.0), 4), round(l2_omega(0.4, 0.5, 1.0), 4)
        (2.0, 0.8)
    """
    a, b, _ = gj.processes.bridge(PROCESS, jnp.asarray(s), jnp.asarray(t), churn)
    return float(a * PROCESS.alpha(t) / b)


def l2_of_score_matching(
    s: float, t: float, churn: float, matching: float, alignment: float
) -> float:
    """ω where l2 is least for any denoisers, from the ω where guided score matching is.

    With Δ = x̂(c) − x̂(∅), x_t = α_t x0 + σ_t ε and α_s = A α_t + B, the mean of x̃_s − x_s given
    (x0, x_t) is A σ_t ε + B (x̂(c) + ω Δ − x0), so that
    ω = E⟨x0 − x̂(c), Δ⟩/E‖Δ‖² − (A σ_t/B) E⟨ε, Δ⟩/E‖Δ‖².

    Args:
        s: Time that the step ends at.
        t: Time that it begins at.
        churn: Of the bridge.
        matching: E⟨x0 − x̂(c), Δ⟩/E‖Δ‖², the best ω of guided score matching; 0 for exact ones.
        alignment: E⟨ε, Δ⟩/E‖Δ‖²; −α_t/σ_t for exact ones.
    """
    a, b, _ = gj.processes.bridge(PROCESS, jnp.asarray(s), jnp.asarray(t), churn)
    return matching - float(a * PROCESS.sigma(t) / b) * alignment


def guided_width(cond: float, uncond: float, omega: Any) -> Any:
    """Std of guided samples of one Gaussian, of models with these stds and its mean, from N(0, I).

    The probability-flow ODE is linear there: d log δ = (1 + ω) d log √b_c − ω d log √b_u with
    b = α² std² + σ², which is 1 at t = 1: cond^(1 + ω) / uncond^ω. `analytic.within_mode_std` is
    the case uncond = 1.

    Example:
        >>> guided_width(0.5, 1.0, 1.0)
        0.25
    """
    return cond ** (1 + omega) / uncond**omega


def restoring_omega(std: float, cond: float, uncond: float) -> float:
    """ω at which `guided_width` is the true std: log(cond/std) / log(uncond/cond).

    Example:
        >>> round(restoring_omega(0.2, 0.3, 0.45), 4)
        1.0
    """
    return float(np.log(cond / std) / np.log(uncond / cond))
