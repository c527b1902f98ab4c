"""The experiment as cells, each a small file: what is finished is never done again."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments import cells
from experiments.angle import mixtures, theory
from experiments.angle.config import Plan
from experiments.angle.mixtures import CLASSES, PROCESS, RADIUS, SETTINGS, SHAPE
from experiments.angle.rules import CONSTANTS, VARIANTS
from guidejax.analytic import denoiser
from guidejax.metrics import energy_distance

# Dimensions of the pair of classes whose anomalous region is measured.
DIMENSIONS = (2, 4)
# Where no sample of ours would lie in it: the closed form alone.
BEYOND = 16
# Points of the line on which the region's edge is looked for.
LINE = 4001

# What the parts of the experiment draw their keys from; none is another's.
NORM, REGION, SWEEP, GEOMETRY, CODE, STEPS = range(6)


class Cells(cells.Cells):
    """Every cell of a plan by name."""

    def __init__(
        self, plan: Plan, folder: pathlib.Path, say: Callable[[str], None],
        known: dict[str, Any] | None = None,
    ):  # fmt: skip
        """Results lie in `folder`; those in `known` needn't. `say` gets progress."""
        self.plan = plan
        super().__init__(self._cells(), [folder / plan.label], say, known)
        self.about = dict.fromkeys(self.functions, identity(plan))

    def _cells(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        plan, partial = self.plan, functools.partial
        yield "closed", partial(closed, plan)
        yield "width", partial(width, plan)
        yield "convergence", partial(convergence, plan)
        for seed in plan.seeds:
            for setting in SETTINGS:
                yield f"norm/{setting}/{seed}", partial(norm, plan, setting, seed)
            for dimension in DIMENSIONS:
                yield f"region/{dimension}/{seed}", partial(region, plan, dimension, seed)
            yield f"geometry/{seed}", partial(geometry, plan, seed)
            yield f"constants/{seed}", partial(constants, plan, seed)
        for seed in (*plan.tuning_seeds, *plan.seeds):
            for rule in VARIANTS:
                yield f"sweep/{rule}/{seed}", partial(sweep, plan, plan.omegas, rule, seed)
                yield f"far/{rule}/{seed}", partial(sweep, plan, plan.far, rule, seed)

    def over_seeds(self, kind: str, field: str, tuning: bool = False) -> np.ndarray:
        """A field of the cells `kind`/seed, the seeds first."""
        seeds = self.plan.tuning_seeds if tuning else self.plan.seeds
        return np.array([self[f"{kind}/{seed}"][field] for seed in seeds], np.float64)


def identity(plan: Plan) -> dict[str, Any]:
    """What every cell of a plan is of, beside its seed, which its name has: its sizes."""
    settings = dataclasses.asdict(plan)
    return {name: settings[name] for name in settings.keys() - {"seeds", "tuning_seeds", "label"}}


def key(part: int, seed: int) -> jax.Array:
    """The key of a part of the experiment at a seed."""
    return jax.random.fold_in(jax.random.key(part), seed)


def _rounded(values: Any) -> Any:
    """Six digits, as lists."""
    return jax.tree.map(
        lambda v: np.vectorize(lambda x: float(f"{x:.6g}"), otypes=[float])(v).tolist(), values
    )


# Against closed forms


def closed(plan: Plan) -> dict[str, Any]:
    """Every closed form of the plan: moments of the pair, and shares of the region."""
    moments = [theory.pair_moments(omega, RADIUS) for omega in plan.omegas]
    grid = [(t, omega) for t in plan.times for omega in plan.region_omegas]
    shares = {
        str(d): [theory.region_share(omega, t, RADIUS, d) for t, omega in grid]
        for d in (*DIMENSIONS, BEYOND)
    }
    means = theory.pair(RADIUS, 2)
    widths = [theory.width(omega, t, means, 0, np.array([1.0, 0.0])) for t, omega in grid]
    return {"first": [m for m, _ in moments], "second": [m for _, m in moments],
            "share": shares, "width": widths}  # fmt: skip


def width(plan: Plan) -> dict[str, list[float]]:
    """Where the library's scores stop opposing each other, between two points of a line."""
    setting = theory.pair(RADIUS, 2)
    model = mixtures.Setting(setting, np.array([1.0, 0.0]), "").model
    labels = jnp.zeros(LINE, int)
    low, high = [], []
    for t in plan.times:
        for omega in plan.region_omegas:
            line = np.linspace(0, 2 * RADIUS * omega * (1 - t), LINE)
            x = jnp.asarray((1 - t) * setting[0] + line[:, None] * np.array([1.0, 0.0]))
            opposed = np.asarray(opposing(model, x, t, omega, labels))
            last = int(np.flatnonzero(opposed[1:])[-1]) + 1
            low.append(line[last])
            high.append(line[min(last + 1, LINE - 1)])
    return _rounded({"low": low, "high": high})


def products(model: Any, x: jax.Array, t: Any, omega: Any, labels: jax.Array) -> jax.Array:
    """⟨guided score, conditional score⟩ at each x, by `gj.guided`."""
    fields = [
        gj.guided(denoiser(model, PROCESS), gj.guidance(gj.cfg, w), cond=labels, uncond=model.null)
        for w in (omega, 0.0)
    ]
    guided, plain = (field.score(x, t) for field in fields)
    return jnp.sum(guided * plain, axis=1)


def opposing(model: Any, x: jax.Array, t: Any, omega: Any, labels: jax.Array) -> jax.Array:
    """Whether x lies in the anomalous region: `products` ≤ 0."""
    return products(model, x, t, omega, labels) <= 0


def convergence(plan: Plan) -> dict[str, list[list[float]]]:
    """The largest error of Heun's solver in n·x0, (ω, steps), beside the ODE solved to 10⁻¹⁰."""
    setting, n = SETTINGS["pair"], min(plan.samples, 256)
    noise = jax.random.normal(key(STEPS, 0), (n, setting.means.shape[1]))
    errors = []
    for omega in plan.region_omegas:
        exact = theory.pair_end(np.asarray(noise) @ setting.normal, omega, RADIUS)
        row = []
        for steps in plan.convergence:
            guide = gj.guidance(gj.cfg, jnp.asarray(omega))
            labels = jnp.zeros(n, int)
            x = mixtures.run(setting.model, noise, labels, guide, steps, gj.heun())
            row.append(np.abs(np.asarray(x, np.float64) @ setting.normal - exact).max())
        errors.append(row)
    return _rounded({"error": errors})


def norm(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """CFG beside the conditional model from the same noise: projections and norms at each ω."""
    setting = SETTINGS[name]
    noise = jax.random.normal(key(NORM, seed), (plan.samples, setting.means.shape[1]))
    labels, times = jnp.zeros(plan.samples, int), gj.uniform_times(plan.steps)
    go = functools.partial(
        mixtures.run, setting.model, noise, labels, steps=plan.steps, solver=gj.heun()
    )
    # The conditional model adds μ_y to the noise, exactly.
    plain = np.asarray(noise, np.float64) + setting.means[0]
    found: dict[str, list[float]] = {}
    for omega in plan.omegas:
        x, trail = go(guidance=gj.guidance(gj.cfg, jnp.asarray(omega)), keep="all")
        path = np.concatenate([np.asarray(noise)[None], np.asarray(trail.x)])
        guided = np.asarray(x, np.float64)
        gain = (guided - plain) @ setting.normal
        integral = theory.gain_along(path, times, setting.means, 0, setting.normal, omega)
        length, before = (np.linalg.norm(v, axis=1) for v in (guided, plain))
        row = {
            "gain": gain.mean(), "integral": integral.mean(), "least": gain.min(),
            "off": np.abs(gain - integral).max(), "positive": (gain > 0).mean(),
            "first": (guided @ setting.normal).mean(), "square": (guided**2).sum(axis=1).mean(),
            "shorter": (length < before).mean(), "ratio": length.mean() / before.mean(),
        }  # fmt: skip
        for field, value in row.items():
            found.setdefault(field, []).append(float(value))
    return _rounded(found)


def region(plan: Plan, dimension: int, seed: int) -> dict[str, Any]:
    """Shares in the anomalous region: of the class's own x_t, and of CFG's paths."""
    model = mixtures.Setting(theory.pair(RADIUS, dimension), np.eye(dimension)[0], "").model
    labels = jnp.zeros(plan.samples, int)
    clean, add, start = jax.random.split(key(REGION, seed), 3)
    x0 = model.sample(clean, labels)
    eps, noise = (jax.random.normal(k, x0.shape) for k in (add, start))
    own: list[float] = []
    paths = {
        omega: mixtures.run(
            model, noise, labels, gj.guidance(gj.cfg, jnp.asarray(omega)), plan.steps,
            gj.heun(), "all",
        )[1].x
        for omega in plan.region_omegas
    }  # fmt: skip
    times = gj.uniform_times(plan.steps)[1:]
    on_path = []
    for t in plan.times:
        x = gj.processes.noise_to(PROCESS, x0, jnp.asarray(t), eps)
        step = int(np.argmin(np.abs(times - t)))
        for omega in plan.region_omegas:
            own.append(float(opposing(model, x, t, omega, labels).mean()))
            inside = opposing(model, paths[omega][step], times[step], omega, labels)
            on_path.append(float(inside.mean()))
    return _rounded({"own": own, "path": on_path})


# On latents


def sweep(plan: Plan, omega: tuple[float, ...], rule: str, seed: int) -> dict[str, Any]:
    """One rule on the latents at every `omega` from the same noise."""
    start, real = jax.random.split(key(SWEEP, seed))
    n, omegas, every = plan.samples, jnp.asarray(omega), len(omega)
    labels = jnp.arange(n) % CLASSES
    noise = jax.random.normal(start, (n, *SHAPE))
    data = mixtures.latents(0.0).sample(real, labels)
    x = mixtures.run(
        mixtures.latents(), jnp.tile(noise, (every, 1, 1, 1)), jnp.tile(labels, every),
        VARIANTS[rule].guide(jnp.repeat(omegas, n)), plan.sampler_steps,
    )  # fmt: skip
    rows = [_measures(each, data, labels) for each in x.reshape(every, n, -1)]
    return _rounded({field: [float(row[field]) for row in rows] for field in rows[0]})


@jax.jit
def _measures(x: jax.Array, data: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    means = jnp.asarray(mixtures.latent_means(), x.dtype)
    model = mixtures.latents(0.0).components
    of_class = lambda v: v.reshape(-1, CLASSES, v.shape[-1]).swapaxes(0, 1)  # noqa: E731
    length = jnp.linalg.norm(x, axis=1)
    posterior = model.responsibilities(x, jnp.zeros(()), PROCESS)
    along = jnp.sum(x * means[labels], axis=1) / jnp.linalg.norm(means[labels], axis=1)
    return {
        "norm": length.mean() / jnp.linalg.norm(data, axis=1).mean(),
        "distance": jax.vmap(energy_distance)(of_class(x), of_class(data)).mean(),
        "agreement": jnp.take_along_axis(posterior, labels[:, None], axis=1).mean(),
        "cosine": (along / length).mean(),
        "spread": jnp.sqrt(jnp.mean(jnp.var(of_class(x), axis=1, ddof=1))) / mixtures.SPREAD,
    }


def geometry(plan: Plan, seed: int) -> dict[str, Any]:
    """c, u and what ADG makes of them, on its own path at every step and ω; float64 from c, u."""
    n = min(plan.samples, 256)
    noise = jax.random.normal(key(GEOMETRY, seed), (n, *SHAPE))
    labels, times = jnp.arange(n) % CLASSES, gj.uniform_times(plan.sampler_steps)
    model = mixtures.latents()
    found: dict[str, list[list[float]]] = {}
    wide = lambda v: np.asarray(v, np.float64).reshape(n, -1)  # noqa: E731
    for omega in plan.omegas:
        guide = VARIANTS["adg"].guide(jnp.asarray(omega))
        trail = mixtures.run(model, noise, labels, guide, plan.sampler_steps, keep="all")[1]
        path = jnp.concatenate([noise[None], trail.x[:-1]])
        steps = []
        for x, t, guided in zip(path, times[:-1], trail.x0, strict=True):
            c, u = (wide(model.denoise(x, t, label, PROCESS)) for label in (labels, None))
            steps.append(_step(c, u, wide(guided), omega))
        for field in steps[0]:
            found.setdefault(field, []).append([step[field] for step in steps])
    return _rounded(found)


def _step(c: np.ndarray, u: np.ndarray, guided: np.ndarray, omega: float) -> dict[str, float]:
    """One step of ADG against its closed form and the authors' program."""
    length = lambda v: np.linalg.norm(v, axis=1)  # noqa: E731
    unit = lambda v: v / length(v)[:, None]  # noqa: E731
    # 2 atan2 of the half-angle: exact for small angles too.
    angle = lambda a, b: 2 * np.arctan2(length(unit(a) - unit(b)), length(unit(a) + unit(b)))  # noqa: E731
    theta = angle(c, u)
    turn = np.minimum(omega * theta, np.pi / 3)
    ratio = length(guided) / length(c)
    formula = np.sqrt(1 + np.sin(2 * turn) * np.sin(theta))
    code, _ = theory.official(c, u, omega)
    nan = np.isnan(code).any(axis=1)
    off = length(code - guided)[~nan] / length(c)[~nan]
    asked = theta + turn
    wide = theta > 0.01
    reached = angle(guided, u)[wide] / asked[wide]
    return {
        "theta": theta.mean(), "capped": (omega * theta >= np.pi / 3).mean(),
        "largest": ratio.max(), "smallest": ratio.min(), "mean": ratio.mean(),
        "off": np.abs(ratio - formula).max(), "turned": reached.mean() if wide.any() else 1.0,
        "code_nan": nan.mean(), "code_off": off.mean() if len(off) else 0.0,
        "equal": np.all(c == u, axis=1).mean(),
    }  # fmt: skip


def constants(plan: Plan, seed: int) -> dict[str, Any]:
    """How far the constants of the authors' program move a sample, ‖difference‖/‖sample‖.

    The median and the largest of the samples.
    """
    n, every = min(plan.samples, 512), len(plan.omegas)
    noise = jax.random.normal(key(CODE, seed), (n, *SHAPE))
    labels = jnp.arange(n) % CLASSES
    omegas = jnp.repeat(jnp.asarray(plan.omegas), n)

    def go(guide: gj.Guidance) -> np.ndarray:
        x = mixtures.run(
            mixtures.latents(), jnp.tile(noise, (every, 1, 1, 1)), jnp.tile(labels, every), guide,
            plan.sampler_steps,
        )  # fmt: skip
        return np.asarray(x, np.float64).reshape(every, n, -1)

    paper = go(VARIANTS["adg"].guide(omegas))
    # An ω that differs by a millionth tells how much of a difference is rounding.
    guides = {name: guide(omegas) for name, guide in CONSTANTS.items()}
    guides["rounding"] = VARIANTS["adg"].guide(omegas * (1 + 1e-6))
    found = {}
    for name, guide in guides.items():
        off = np.linalg.norm(go(guide) - paper, axis=2) / np.linalg.norm(paper, axis=2)
        found[name], found[f"{name}, largest"] = np.median(off, axis=1), off.max(axis=1)
    return _rounded(found)
