"""What a learned weight gains by what it gives and what it sees.

    python -m experiments.digits.weights

On denoisers, splits and noise of seeds that nothing was chosen on, learns by the same rollout
objective: ω of the times alone; of the class too; with a second number for what lies along c and
across it (APG's η); with one for low and one for high frequencies (FDG); and seeing the angle and
the difference of the predictions. The interval is tuned twice: on the selection images, and on the
very measure, images and noise that are reported. A run that was stopped goes on seed by seed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import guidejax as gj
import guidejax.data
from experiments.digits import arena as arenas
from experiments.digits import methods, networks
from experiments.digits.config import NUM_CLASSES, PLANS
from experiments.statistics import paired_ratio_interval

# Where the intervals' search begins; it widens until its optimum lies on no edge but a natural one.
OMEGAS = (0.1, 0.2, 0.35, 0.6, 1.0, 1.6)
LOS = (0.0, 0.1, 0.2, 0.3)
HIS = (0.2, 0.3, 0.4, 0.5, 0.7)
PUBLISHED = pathlib.Path(__file__).parents[2] / "docs" / "digits" / "weights"
SPLIT = (997, 400, 400)  # to train, to select, to report on

Range, OMEGA = gj.weights.Range, methods.OMEGA
BY_CLASS = functools.partial(gj.OmegaNet, num_classes=NUM_CLASSES)


# Each starts as CFG at the same ω.
VARIANTS: dict[str, tuple[Any, gj.OmegaNet]] = {
    "times": (gj.cfg, gj.OmegaNet(outputs={"omega": OMEGA})),
    "class": (gj.cfg, methods.NET),
    "class, along and across": (gj.apg, methods.ALONG_ACROSS_NET),
    "class, low and high": (
        gj.rules.fdg, BY_CLASS(outputs={"omega": OMEGA, "low": Range(1.0, lo=0.0)}),
    ),
    "class, seeing delta and angle": (
        gj.cfg, BY_CLASS(outputs={"omega": OMEGA}, sees=("delta", "angle")),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Forms of the learned weight, each on fresh denoisers."""

    out: pathlib.Path = pathlib.Path("runs/weights")
    """Where the result of each seed and the table go."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps the digits; by default inside `out`."""
    first_seed: int = 40
    """The first seed of data split, networks, learning and sampling."""
    seeds: int = 5
    """How many."""
    updates: int = 400
    """Updates of each weight."""
    publish: bool = False
    """Copy the results to docs/digits/weights, where later runs find the seeds that are done."""


@functools.cache
def _images(data_dir: pathlib.Path) -> list[Any]:
    return [
        gj.data.Images("digits", s, data_dir=data_dir).arrays()
        for s in ("train", "validation", "test")
    ]


def split(seed: int, data_dir: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """All digits dealt anew into training, selection and report images, class by class."""
    parts = _images(data_dir)
    whole = {name: np.concatenate([p[name] for p in parts]) for name in ("x0", "cond")}
    order = np.random.default_rng(seed).permutation(len(whole["cond"]))
    # Ranked within its class, an image's rank says which part it falls into.
    label = whole["cond"][order]
    rank = np.empty(len(label))
    for c in range(NUM_CLASSES):
        rank[label == c] = (np.arange(np.sum(label == c)) + 0.5) / np.sum(label == c)
    order = order[np.argsort(rank, kind="stable")]
    ends = np.cumsum((0, *SPLIT))
    return [{n: v[order[a:b]] for n, v in whole.items()} for a, b in itertools.pairwise(ends)]


def batches(train: dict[str, np.ndarray], group: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every class `group` times in a row, for the rollout."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(train["cond"] == c) for c in range(NUM_CLASSES)]
    while True:
        chosen = np.concatenate([rng.choice(r, group, replace=False) for r in rows])
        yield {"x0": train["x0"][chosen], "cond": train["cond"][chosen]}


def tuned_interval(
    key: jax.Array, denoise: gj.Denoiser, arena: arenas.Arena, count: int, steps: int
) -> dict[str, float]:
    """The interval with the least score in `arena`; the grid widens until that lies inside."""
    omegas, los, his = (sorted(values) for values in (OMEGAS, LOS, HIS))
    scores: dict[tuple[float, float, float], float] = {}
    while True:
        for setting in itertools.product(omegas, los, his):
            if setting[1] < setting[2] and setting not in scores:
                numbers = dict(zip(("omega", "lo", "hi"), map(jnp.asarray, setting), strict=True))
                x = methods.generate_traced("interval")(key, denoise, numbers, count, steps)
                scores[setting] = arena.score(x)
        omega, lo, hi = min(scores, key=scores.__getitem__)
        found = {"omega": omega, "lo": lo, "hi": hi, "settings": len(scores)}
        if omega == omegas[-1]:
            omegas.append(round(1.6 * omega, 3))
        elif omega == omegas[0] and omega > 0.02:
            omegas.insert(0, omega / 2)
        elif lo == los[-1] and lo < 0.8:
            los.append(round(lo + 0.1, 1))
        elif hi == his[0] and hi > 0.1:
            his.insert(0, round(hi - 0.1, 1))
        elif hi == his[-1] and hi < 1:
            his.append(round(hi + 0.1, 1))
        else:
            return found


def run(seed: int, config: Config, say: Callable[[str], Any]) -> dict[str, Any]:
    """The figures and numbers of every form on one seed."""
    plan = PLANS["full"]
    train, select, report = split(seed, config.data_dir or config.out / "data")
    keys = jax.random.split(jax.random.key(seed), 5)
    x0, cond = jnp.asarray(train["x0"]), jnp.asarray(train["cond"])
    say("training the networks")
    params = networks.train_classifiers(keys[0], plan, x0, cond)
    denoise = networks.train_denoiser(keys[1], plan, plan.denoisers[0][1], x0, cond)
    seen = arenas.Arena(params, tuple(networks.SEEN), **select)
    test = arenas.Arena(params, tuple(networks.REPORT), **report)
    steps, count = plan.sampling_steps, plan.report_samples

    found: dict[str, Any] = {}

    def measure(name: str, guide: gj.Guidance, **numbers: Any) -> None:
        figures = test.measure(arenas.generate(keys[3], denoise, guide, count, steps))
        figures["evaluations"] = arenas.evaluations(guide, steps)
        found[name] = {"figures": figures, "numbers": numbers}
        say(f"{name}: frechet {figures['frechet']:.3f}, energy {figures['energy']:.4f} {numbers}")

    measure("unguided", gj.guidance(gj.cfg, 0.0))
    for name, key, arena, samples in (
        ("interval", keys[2], seen, plan.tune_samples),
        ("interval (oracle)", keys[3], test, count),
    ):
        numbers = tuned_interval(key, denoise, arena, samples, steps)
        measure(name, methods.guide("interval", numbers), **numbers)
    objective = methods.rollout(plan, params, train["x0"])
    for name, (rule, net) in VARIANTS.items():
        phi = gj.fit_omega(
            keys[4], net, denoise, batches(train, plan.rollout_group, seed),
            rule=rule, uncond=NUM_CLASSES, objective=objective,
            optimizer=methods.optimizer(config.updates), steps=config.updates,
        )  # fmt: skip
        measure(name, gj.guidance(rule, **net.weights(phi)))
    return found


def table(seeds: list[dict[str, Any]]) -> str:
    """Geometric means over seeds, each over the interval tuned on the reported measure itself."""
    rows = [
        "| weight | Fréchet distance ↓ | / interval (oracle) | / class | energy per class, "
        "/ interval (oracle) | evaluations |",
        "|---|---|---|---|---|---|",
    ]
    value = lambda name, figure: [s[name]["figures"][figure] for s in seeds]  # noqa: E731

    def against(name: str, other: str, figure: str = "frechet") -> str:
        if name == other or len(seeds) < 2:
            return "" if name != other else "1"
        found = paired_ratio_interval(value(name, figure), value(other, figure))
        return f"{found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})"

    for name in seeds[0]:
        mean = arenas.geometric_mean(value(name, "frechet"))
        cells = (
            name, f"{mean:.2f}", against(name, "interval (oracle)"), against(name, "class"),
            against(name, "interval (oracle)", "energy"),
            f"{np.mean(value(name, 'evaluations')):.0f}",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main(config: Config) -> None:
    """Run what is left of the seeds and write the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        path, published = (folder / f"seed{seed}.json" for folder in (config.out, PUBLISHED))
        if not path.exists() and published.exists() and config.updates == Config.updates:
            shutil.copy(published, path)
        if not path.exists():
            found = run(seed, config, functools.partial(print, f"seed {seed},", flush=True))
            part = path.with_suffix(".part")
            part.write_text(json.dumps(found, indent=1))
            part.replace(path)
        results.append(json.loads(path.read_text()))
    (config.out / "weights.md").write_text(table(results))
    print(table(results))
    if config.publish:
        PUBLISHED.mkdir(parents=True, exist_ok=True)
        for path in (*config.out.glob("seed*.json"), config.out / "weights.md"):
            shutil.copy(path, PUBLISHED)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
