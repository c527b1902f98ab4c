"""Learn ω for exact and for wrong models of mixtures, and docs/mixtures.md.

python -m experiments.mixtures                 # minutes on two cores
python -m experiments.mixtures --preset full   # more seeds, samples and updates
python -m experiments.mixtures --publish       # and write the page and what it is made of
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from experiments import sharing
from experiments.cells import Cells
from experiments.mixtures import cells
from experiments.mixtures import config as settings
from experiments.mixtures.config import (
    MODELS,
    OBJECTIVES,
    OMEGAS,
    PRESETS,
    RATES,
    RATES_ON,
    SERIES,
    Cell,
    Config,
    Preset,
    report,
    tuning,
)

RESULTS = pathlib.Path(__file__).parent / "results"
# What of the settings every cell depends on.
SETTINGS = (
    "BLUR", "SHIFT", "LEAK", "CLASSES", "COMPONENTS", "WIDTH", "DEPTH", "OMEGAS", "BATCH",
    "PARTICLES", "BETA", "MIN_GAP", "STEPS", "PAIRS", "WIDTHS",
)  # fmt: skip


def chosen_rates(
    preset: Preset, tried: dict[str, tuple[float, ...]], found: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """For each objective the rate of the least mean loss over the tuned seeds and `RATES_ON`."""
    rates = {}
    for objective, each in tried.items():
        losses = {
            rate: np.mean([
                found[Cell("learn", "tuned", model, seed, objective, rate).name]["loss"]
                for model in RATES_ON for seed in preset.tuned
            ])
            for rate in each
        }  # fmt: skip
        rates[objective] = min(losses, key=lambda rate: losses[rate])
    return rates


def wider(tried: tuple[float, ...], best: float) -> tuple[float, ...]:
    """What was tried, and the next of `SERIES` where the best is at an end."""
    first, last = (SERIES.index(rate) for rate in (tried[0], tried[-1]))
    if best == tried[0]:
        first = max(first - 1, 0)
    if best == tried[-1]:
        last = min(last + 1, len(SERIES) - 1)
    return SERIES[first : last + 1]


def chosen_omegas(
    models: tuple[str, ...], preset: Preset, found: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """For each model the constant ω of the least mean energy distance over the tuned seeds."""
    means = {
        model: np.mean(
            [found[Cell("sweep", "tuned", model, seed).name]["energy"] for seed in preset.tuned],
            axis=0,
        )
        for model in models
    }
    return {model: OMEGAS[int(np.argmin(mean))] for model, mean in means.items()}


def identity(preset: Preset) -> dict[str, Any]:
    """What every cell of a preset is of, beside what its name says: its sizes, and the settings."""
    sizes = dataclasses.asdict(preset)
    kept = {name: sizes[name] for name in sizes.keys() - {"tuned", "reported"}}
    return kept | {name: getattr(settings, name) for name in SETTINGS}


def measure(
    config: Config, tell: Callable[[str], Any] = lambda name: print(name, file=sys.stderr)
) -> dict[str, Any]:
    """All cells of a preset, and what was chosen on those of tuning."""
    preset = PRESETS[config.preset]
    made = Cells((), [config.out / "cells" / config.preset], tell)
    found = made.known

    def do(wanted: list[Cell]) -> None:
        made.functions |= {cell.name: functools.partial(cells.run, cell, preset) for cell in wanted}
        made.about = dict.fromkeys(made.functions, identity(preset))
        made.run()

    tried: dict[str, tuple[float, ...]] = dict.fromkeys(OBJECTIVES, RATES)
    while True:
        do(tuning(preset, tried))
        rates = chosen_rates(preset, tried, found)
        wide = {name: wider(tried[name], rates[name]) for name in tried}
        if wide == tried:
            break
        tried = wide
    do(report(preset, rates))
    omegas = chosen_omegas(tuple(MODELS), preset, found)
    return {
        "preset": config.preset, "tried": tried, "rates": rates, "omegas": omegas,
        "cells": {name: found[name] for name in made.functions},
    }  # fmt: skip


def main(config: Config) -> None:
    """Measure what is missing, draw, and write the page."""
    from experiments.mixtures import figures, page

    helping, jobs = sharing.settle(), config.jobs or sharing.default_jobs()
    if jobs > 1 and not helping:
        sharing.share([
            sys.executable, "-m", "experiments.mixtures", "--preset", config.preset, "--out",
            str(config.out),
        ], jobs)  # fmt: skip
    results = measure(config)
    if helping:
        return
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / f"results-{config.preset}.json"
    path.write_text(json.dumps(results, indent=0))
    figures.draw(results, config.out / "pictures")
    (config.out / "mixtures.md").write_text(page.text(results))
    print(page.claims_text(results))
    if config.publish:
        RESULTS.mkdir(exist_ok=True)
        shutil.copy(path, RESULTS / "results.json")
        figures.draw(results, config.docs / "mixtures")
        (config.docs / "mixtures.md").write_text(page.text(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
