"""What a cell measures; every function is compiled once and serves all cells of a shape."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import guidejax as gj
from experiments.mixtures import worlds
from experiments.mixtures.config import (
    BATCH,
    BETA,
    CLASSES,
    MIN_GAP,
    OMEGAS,
    PAIRS,
    PARTICLES,
    PROCESS,
    STEPS,
    TIMES,
    WIDTHS,
    Cell,
    Preset,
)
from guidejax import analytic, learning, objectives
from guidejax.metrics import energy_distance

NET = gj.OmegaNet(num_classes=CLASSES, hidden=32, depth=2, init_omega=0.5)


def run(cell: Cell, preset: Preset) -> dict[str, Any]:
    """The numbers of a cell, as JSON has them."""
    key = _key(cell)
    if cell.kind == "width":
        found: dict[str, Any] = {"width": _widths(key, preset.samples)}
    else:
        data = worlds.Data.drawn(cell.seed).exact()
        denoise = worlds.denoiser(cell.model, cell.seed, preset.network_updates)
        if cell.kind == "sweep":
            found = _sweep(key, data, denoise, jnp.asarray(OMEGAS), preset.samples)
        elif cell.kind == "learn":
            learned, _ = jax.random.split(key)
            # From the sweep's noise, so that what differs is the weight.
            sampled = _key(dataclasses.replace(cell, kind="sweep"))
            loss = objective(cell.objective)
            phi = learn(learned, data, denoise, cell.rate, loss, preset.updates)
            found = _learned(sampled, data, denoise, phi, preset.samples)
            if cell.split == "tuned":
                found["loss"] = _held_out(learned, data, denoise, phi, loss)
        else:
            found = pairs(key, data, denoise, preset.pairs)
    return {name: _plain(value) for name, value in found.items()}


def _key(cell: Cell) -> jax.Array:
    seed, stream = cell.noise()
    return jax.random.fold_in(jax.random.key(seed), stream)


def _plain(value: Any) -> Any:
    """Numbers to six digits, in lists."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    array = np.asarray(value, float)
    return _plain(list(array)) if array.ndim else float(f"{float(array):.6g}")


def objective(name: str, **options: Any) -> objectives.SelfConsistency:
    """Self-consistency at λ = 1, or "l2", with the paper's particles, gap and churn 1."""
    options = {"min_gap": MIN_GAP, **options}
    if name == "l2":
        return objectives.l2(PARTICLES, **options)
    return gj.self_consistency(BETA, PARTICLES, **options)


# Sampling


def _measure(key, data, denoise, guidance, samples):
    """Samples of every class under a guidance, beside true ones.

    Returns the energy distance (β = 1) to the class, the share of samples nearest to a component
    of another class, and the spread about components over the true one; means over classes.
    """
    noise_key, true_key, run = jax.random.split(key, 3)
    cond = jnp.repeat(jnp.arange(CLASSES), samples)
    noise = jax.random.normal(noise_key, (CLASSES * samples, 2))
    true = data.sample(true_key, cond)
    made = gj.sample(run, denoise, noise, cond=cond, uncond=CLASSES, guidance=guidance, times=TIMES)
    split = lambda x: x.reshape(CLASSES, samples, 2)  # noqa: E731
    distance = jax.vmap(lambda x, y: energy_distance(x, y))(split(made), split(true))
    (wrong, spread), (_, known) = (_assigned(data, x, cond) for x in (made, true))
    return {"energy": jnp.mean(distance), "wrong": wrong, "width": spread / known}


def _assigned(data, x, cond):
    """(share of x that is likeliest of another class, rms distance to own components)."""
    # The null label has the components of all classes, as many as each class has of its own.
    everything = analytic.Mixture(
        data.components.means, data.table[-1], data.components.stds, data.components.basis
    )
    shares = everything.responsibilities(x, jnp.zeros(()), PROCESS)[:, -len(worlds.LABELS) :]
    means = data.components.means[-len(worlds.LABELS) :]
    nearest = jnp.argmax(shares, axis=-1)
    right = jnp.asarray(worlds.LABELS)[nearest] == cond
    square = jnp.where(right, jnp.sum((x - means[nearest]) ** 2, axis=-1), 0)
    return jnp.mean(~right), jnp.sqrt(jnp.sum(square) / jnp.sum(right))


@functools.partial(jax.jit, static_argnames="samples")
def _sweep(key, data, denoise, omegas, samples):
    """`_measure` at constant weights, all from the same noise."""
    one = lambda w: _measure(key, data, denoise, gj.guidance(gj.cfg, w), samples)  # noqa: E731
    return jax.lax.map(one, omegas)


@functools.partial(jax.jit, static_argnames="samples")
def _learned(key, data, denoise, phi, samples):
    """`_measure` under a learned weight, and the weight at every step: (steps, classes)."""
    weight = NET.weight(phi)
    found = _measure(key, data, denoise, gj.guidance(gj.cfg, weight), samples)
    table = weight.table(TIMES, jnp.arange(CLASSES), process=PROCESS)
    return found | {"omega": table.reshape(STEPS, CLASSES)}


# Learning


@functools.cache
def _guide(net: gj.OmegaNet) -> Any:
    """φ → CFG at the ω of a network."""
    return lambda phi: gj.guidance(gj.cfg, omega=net.weight(phi))


def examples(data: Any, key: jax.Array, count: int) -> objectives.Batch:
    """`count` examples of the classes alike."""
    kinds, points = jax.random.split(key)
    cond = jax.random.randint(kinds, (count,), 0, CLASSES)
    null = jnp.full((count,), CLASSES)
    return objectives.Batch(data.sample(points, cond), cond, {"uncond": null})


@functools.partial(jax.jit, static_argnames=("updates", "net"))
def learn(key, data, denoise, rate, loss, updates, net=NET):
    """φ of a network after the updates, each on fresh examples."""
    begin, run, _ = jax.random.split(key, 3)
    decay = optax.cosine_decay_schedule(1.0, updates)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(lambda count: rate * decay(count))
    )

    def update(state, key):
        which, how = jax.random.split(key)
        batch, keys = examples(data, which, BATCH), jax.random.split(how, BATCH)
        state, _ = learning.train_step(
            state, denoise, batch, keys, guide=_guide(net), objective=loss, optimizer=optimizer
        )
        return state, None

    state = learning.init_state(run, net.init(begin), optimizer)
    state, _ = jax.lax.scan(update, state, jax.random.split(run, updates))
    return state.phi


@jax.jit
def _held_out(key, data, denoise, phi, loss):
    """The mean loss of examples that φ wasn't learned from."""
    which, how = jax.random.split(jax.random.split(key, 3)[2])
    count = 32 * BATCH
    batch, keys = examples(data, which, count), jax.random.split(how, count)
    return jnp.mean(loss(keys, _guide(NET)(phi), denoise, batch))


# Single steps


def pairs(key: jax.Array, data: Any, denoise: gj.Denoiser, count: int) -> dict[str, Any]:
    """The best constant ω of each step of `PAIRS`, for each objective.

    Returns:
        "l2" and "energy", the minimum in simulation; "l2_error", its standard error; "matching"
        and "formula", guided score matching's minimum and the l2 minimum that follows from it
        (`worlds.l2_of_score_matching`), on other samples. A number a pair each; of
        "energy" only with churn, as the paper learns.
    """
    found: dict[str, list[float]] = {
        name: [] for name in ("l2", "l2_error", "energy", "matching", "formula")
    }
    for index, (s, t, churn) in enumerate(PAIRS):
        sim, closed = jax.random.split(jax.random.fold_in(key, index))
        at = {"s_min": s, "min_gap": t - s, "t_max": t, "churn": float(churn)}
        best, error = parabola(sim, data, denoise, objective("l2", **at), count)
        matching, alignment = (float(v) for v in _moments(closed, data, denoise, t, count))
        found["l2"].append(best)
        found["l2_error"].append(error)
        if churn:
            found["energy"].append(_least(sim, data, denoise, objective("energy", **at), count))
        found["matching"].append(matching)
        found["formula"].append(worlds.l2_of_score_matching(s, t, churn, matching, alignment))
    return found


def parabola(key: Any, data: Any, denoise: Any, loss: Any, count: int) -> tuple[float, float]:
    """ω where a loss that is a parabola in ω is least, and its standard error."""
    at_0, at_1, at_2 = np.asarray(_losses(key, data, denoise, loss, jnp.arange(3.0), count), float)
    a = (at_2 - 2 * at_1 + at_0) / 2
    b = at_1 - at_0 - a
    best = -b.mean() / (2 * a.mean())
    return float(best), float(np.std(b + 2 * best * a) / (2 * a.mean() * np.sqrt(count)))


def _least(key: Any, data: Any, denoise: Any, loss: Any, count: int) -> float:
    """ω in [−1, 2] where a loss is least, refined by a parabola through three of a grid."""
    grid = np.linspace(-1.0, 2.0, 13)
    values = np.asarray(_losses(key, data, denoise, loss, jnp.asarray(grid), count), float)
    mean = values.mean(axis=1)
    i = int(np.clip(np.argmin(mean), 1, len(grid) - 2))
    low, middle, high = mean[i - 1 : i + 2]
    place = grid[i] + (grid[1] - grid[0]) * (low - high) / (2 * (low - 2 * middle + high))
    return float(np.clip(place, grid[0], grid[-1]))


@functools.partial(jax.jit, static_argnames="count")
def _losses(key, data, denoise, loss, omegas, count):
    """Losses (omegas, count) at constant weights, all of the same particles."""
    which, how = jax.random.split(key)
    batch, keys = examples(data, which, count), jax.random.split(how, count)
    kept = loss.evaluate(keys, ("cond", "uncond"), denoise, batch)
    batch = batch._replace(evaluations=kept)
    one = lambda w: loss(keys, gj.guidance(gj.cfg, w), denoise, batch)  # noqa: E731
    return jax.lax.map(one, omegas)


@functools.partial(jax.jit, static_argnames="count")
def _moments(key, data, denoise, t, count):
    """E⟨x0 − x̂(c), Δ⟩/E‖Δ‖² and E⟨ε, Δ⟩/E‖Δ‖² at a time."""
    which, how = jax.random.split(key)
    x0, cond, conditions, _ = examples(data, which, count)
    eps = jax.random.normal(how, x0.shape)
    x = gj.processes.noise_to(PROCESS, x0, jnp.full((count,), t), eps)
    own = denoise(x, t, cond)
    delta = own - denoise(x, t, conditions["uncond"])
    square = jnp.sum(delta**2)
    return jnp.sum((x0 - own) * delta) / square, jnp.sum(eps * delta) / square


def _widths(key, count):
    """Stds of guided samples of the Gaussians of `WIDTHS`: (widths, omegas)."""
    return [
        np.asarray(_gaussian_widths(key, jnp.float32(cond), jnp.float32(uncond), count))
        for _, cond, uncond in WIDTHS
    ]


@functools.partial(jax.jit, static_argnames="count")
def _gaussian_widths(key, cond, uncond, count):
    model = analytic.with_unconditional(
        [analytic.gaussian(jnp.array([0.7]), cond)], analytic.gaussian(jnp.array([0.7]), uncond)
    )
    denoise = analytic.denoiser(model, PROCESS)
    noise = jax.random.normal(key, (count, 1))

    def one(omega):
        made = gj.sample(
            key, denoise, noise, cond=jnp.zeros(count, int), uncond=1,
            guidance=gj.guidance(gj.cfg, omega), times=gj.uniform_times(128),
            solver=gj.solvers.heun(),
        )  # fmt: skip
        return jnp.std(made, ddof=1)

    return jax.lax.map(one, jnp.asarray(OMEGAS))
