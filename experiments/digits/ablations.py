"""What the rollout objective should compare: variants, scored on the selection images.

    python -m experiments.digits.ablations

Learns ω by each variant on denoisers of seeds that the experiment doesn't report, and scores it
on the validation images. The experiment's settings were chosen by such runs.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import guidejax as gj
import guidejax.data
from experiments.digits import arena as arenas
from experiments.digits import methods, networks
from experiments.digits.config import NUM_CLASSES, PLANS


@dataclasses.dataclass(frozen=True)
class Config:
    """Variants of the rollout objective on selection images."""

    out: pathlib.Path = pathlib.Path("runs/ablations")
    """Where the table and the data go."""
    seeds: int = 2
    """Denoisers to average over."""


def variants(params: dict[str, Any], x0: Any, group: int, steps: int) -> dict[str, Any]:
    """The objectives compared, by name."""
    seen: list[Any] = [networks.feature(n, params[n]) for n in networks.SEEN]
    spread = [gj.objectives.unit_spread(f, x0) for f in [gj.objectives.pixels, *seen]]
    moments = [gj.objectives.frechet_moments(f, x0) for f in [gj.objectives.pixels, *seen]]

    def rollout(features: list[Any], beta: float, pooled: float) -> Any:
        return gj.rollout(features, group, steps, beta=beta, pooled=pooled)

    return {
        "self-consistency, least gap 0.1": gj.self_consistency(1.75, 4),
        "self-consistency, least gap 0.03": gj.self_consistency(1.75, 4, min_gap=0.03),
        "energy distance per class, all features": rollout(spread, 1.0, 0.0),
        "energy distance per class, pixels": rollout(spread[:1], 1.0, 0.0),
        "energy distance per class, networks": rollout(spread[1:], 1.0, 0.0),
        "energy distance, half pooled": rollout(spread, 1.0, 0.5),
        "Fréchet moments per class": rollout(moments, 2.0, 0.0),
        "Fréchet moments, 0.9 pooled": rollout(moments, 2.0, 0.9),
        "Fréchet moments, 0.97 pooled (used)": rollout(moments, 2.0, 0.97),
        "Fréchet moments, pooled": rollout(moments, 2.0, 1.0),
    }


def run(seed: int, config: Config, report: Callable[[str, dict[str, float]], None]) -> None:
    """All variants on one denoiser."""
    plan = PLANS["quick"]
    data_dir = config.out / "data"
    train = gj.data.arrays("digits", "train", data_dir=data_dir)
    x0, cond = jnp.asarray(train["x0"]), jnp.asarray(train["cond"])
    keys = jax.random.split(jax.random.key(seed), 4)
    params = networks.train_classifiers(keys[0], plan, x0, cond)
    denoise = networks.train_denoiser(keys[1], plan, plan.denoisers[0][1], x0, cond)
    validation = gj.data.arrays("digits", "validation", data_dir=data_dir)
    arena = arenas.Arena(params, tuple(networks.REPORT), **validation)

    def measure(guide: gj.Guidance) -> dict[str, float]:
        x = arenas.generate(keys[2], denoise, guide, plan.report_samples, plan.sampling_steps)
        return arena.measure(x)

    report("unguided", measure(gj.guidance(gj.cfg, 0.0)))
    numbers, _ = methods.tune(
        "interval", plan, keys[2], denoise, arena, plan.report_samples, lambda: None
    )
    report("interval, tuned on this measure", measure(methods.guide("interval", numbers)))
    for name, objective in variants(params, x0, plan.rollout_group, plan.sampling_steps).items():
        batches = gj.data.grouped(
            "digits", "train", groups=NUM_CLASSES, per_group=plan.rollout_group, seed=seed,
            data_dir=data_dir,
        )  # fmt: skip
        phi = gj.fit_omega(
            keys[3], methods.NET, denoise, batches, objective=objective,
            optimizer=methods.optimizer(plan.rollout_steps), steps=plan.rollout_steps,
        )  # fmt: skip
        report(name, measure(gj.guidance(gj.cfg, methods.NET.weight(phi))))


def main(config: Config) -> None:
    """Run every seed and write the table."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(1000, 1000 + config.seeds):

        def report(name: str, figures: dict[str, float], seed: int = seed) -> None:
            print(f"seed {seed}, {name}: frechet {figures['frechet']:.3f}", flush=True)
            found.setdefault(name, []).append(figures)

        run(seed, config, report)
    rows = ["| variant | Fréchet distance ↓ | energy distance per class ↓ |", "|---|---|---|"]
    for name, results in found.items():
        frechet = arenas.geometric_mean(r["frechet"] for r in results)
        energy = sum(r["energy"] for r in results) / len(results)
        rows.append(f"| {name} | {frechet:.2f} | {energy:.4f} |")
    table = "\n".join(rows) + "\n"
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "table.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
