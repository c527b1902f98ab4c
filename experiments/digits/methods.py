"""The methods compared: tuned by search on selection images, or learned."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import guidejax as gj
import guidejax.data
from experiments.digits import networks
from experiments.digits.arena import Arena, generate
from experiments.digits.config import NUM_CLASSES, Plan

# What the table and the figures call each method, in their order.
TUNED = ("constant", "interval", "clamp-linear", "triangular", "adg")
ALONG_ACROSS = "rollout, along and across"
LEARNED = ("self-consistency", "l2", "rollout", ALONG_ACROSS)

OMEGA = gj.weights.Range(0.5, lo=0.0)
NET = gj.OmegaNet(num_classes=NUM_CLASSES, outputs={"omega": OMEGA})
# ω, and how much of the difference that lies along c counts: APG's η. It starts as CFG.
ALONG_ACROSS_NET = gj.OmegaNet(
    num_classes=NUM_CLASSES, outputs={"omega": OMEGA, "eta": gj.weights.Range(1.0, lo=0.0)}
)


def form(method: str) -> tuple[Any, gj.OmegaNet]:
    """(rule, network) of a learned method."""
    return (gj.apg, ALONG_ACROSS_NET) if method == ALONG_ACROSS else (gj.cfg, NET)


def guide(method: str, numbers: dict[str, float]) -> gj.Guidance:
    """The guidance of a tuned method with its numbers."""
    n = dict(numbers)
    if method == "constant":
        return gj.guidance(gj.cfg, n["omega"])
    if method == "interval":
        return gj.guidance(gj.cfg, gj.interval(n["omega"], lo=n["lo"], hi=n["hi"]))
    if method == "clamp-linear":
        return gj.guidance(gj.cfg, gj.schedules.clamp_linear(n["mean"], floor=n["floor"]))
    if method == "triangular":
        return gj.guidance(gj.cfg, gj.schedules.triangular(n["mean"]))
    if method == "adg":
        return gj.guidance(gj.adg, n["omega"], max_angle=n["max_angle"])
    raise ValueError(f"unknown method {method!r}.")


def grid(method: str, plan: Plan) -> Iterable[dict[str, float]]:
    """Every setting that the search tries."""
    if method == "interval":
        for omega, lo, hi in itertools.product(plan.omegas, plan.los, plan.his):
            if lo < hi:
                yield {"omega": omega, "lo": lo, "hi": hi}
    elif method == "clamp-linear":
        for mean, floor in itertools.product(plan.omegas, (0.0, 0.5, 1.0)):
            yield {"mean": mean, "floor": floor * mean}
    elif method == "adg":
        for omega, cap in itertools.product(plan.omegas, (np.pi / 6, np.pi / 3)):
            yield {"omega": omega, "max_angle": float(cap)}
    else:
        for omega in plan.omegas:
            yield {"omega" if method == "constant" else "mean": omega}


def tune(
    method: str,
    plan: Plan,
    key: jax.Array,
    denoise: Any,
    arena: Arena,
    count: int,
    tick: Callable[[], None],
) -> tuple[dict[str, float], float]:
    """(numbers, score) of the setting with the least score in `arena`, on the noise of `key`."""

    def score(numbers: dict[str, float]) -> float:
        # Arrays, so that one program serves the whole search, interval ends and all.
        traced = {name: jnp.asarray(value) for name, value in numbers.items()}
        value = arena.score(
            generate_traced(method)(key, denoise, traced, count, plan.sampling_steps)
        )
        tick()
        return value

    return min(((numbers, score(numbers)) for numbers in grid(method, plan)), key=lambda p: p[1])


_PROGRAMS: dict[str, Any] = {}


def generate_traced(method: str) -> Any:
    """`generate` under a tuned method whose numbers are traced: one program for a whole search."""
    if method not in _PROGRAMS:

        def run(key, denoise, numbers, count, steps):
            return generate(key, denoise, guide(method, numbers), count, steps)

        _PROGRAMS[method] = jax.jit(run, static_argnums=(3, 4))
    return _PROGRAMS[method]


@functools.cache  # the same object for every seed, so that they share the compiled step
def optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with a cosine decay to 0 and clipped gradients."""
    schedule = optax.cosine_decay_schedule(1e-2, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def updates(method: str, plan: Plan) -> int:
    """Updates of a learned method."""
    return plan.rollout_steps if method.startswith("rollout") else plan.consistency_steps


def rollout(plan: Plan, params: dict[str, Any], x0: Any) -> Any:
    """The rollout objective: moments in pixels and in the networks that learning may see."""
    features: tuple[Any, ...] = (
        gj.objectives.pixels,
        *(networks.feature(n, params[n]) for n in networks.SEEN),
    )
    return gj.rollout(
        [gj.objectives.frechet_moments(f, jnp.asarray(x0)) for f in features],
        particles=plan.rollout_group,
        steps=plan.sampling_steps,
        pooled=0.97,
        beta=2.0,
    )


def learn(
    method: str,
    plan: Plan,
    key: jax.Array,
    denoise: Any,
    params: dict[str, Any],
    train: dict[str, Any],
    data_dir: Any,
    seed: int,
    checkpoint_dir: pathlib.Path,
    tick: Callable[[int, dict[str, float]], None],
) -> gj.Guidance:
    """The learned method's guidance."""
    if method.startswith("rollout"):
        objective: Any = rollout(plan, params, train["x0"])
    else:
        objective = (
            gj.self_consistency(1.75, 4) if method == "self-consistency" else gj.objectives.l2(4)
        )
    steps = updates(method, plan)
    batches = gj.data.grouped(
        gj.data.Images("digits", "train", data_dir=data_dir),
        groups=NUM_CLASSES,
        per_group=plan.rollout_group,
        seed=seed,
    )
    rule, net = form(method)
    phi = gj.fit_omega(
        key,
        net,
        denoise,
        batches,
        rule=rule,
        objective=objective,
        optimizer=optimizer(steps),
        steps=steps,
        checkpoint_dir=checkpoint_dir,
        save_every=50,
        progress=tick,
    )
    return gj.guidance(rule, **net.weights(phi))
