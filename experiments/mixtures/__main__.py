"""Learn ω for exact and for wrong models of mixtures, and docs/mixtures.md.

python -m experiments.mixtures                 # minutes on two cores
python -m experiments.mixtures --preset full   # more seeds, samples and updates
python -m experiments.mixtures --publish       # and write the page and what it is made of
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from experiments.mixtures import cells
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


def measured(
    cell: Cell, preset: Preset, folder: pathlib.Path, tell: Callable[[str], Any]
) -> dict[str, Any]:
    """A cell's numbers: from its file, or measured and written there whole."""
    path = folder / f"{cell.name}.json"
    if path.exists():
        return json.loads(path.read_text())
    tell(cell.name)
    found = cells.run(cell, preset)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(path)
    return found


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


def measure(
    config: Config, tell: Callable[[str], Any] = lambda name: print(name, file=sys.stderr)
) -> dict[str, Any]:
    """All cells of a preset, and what was chosen on those of tuning."""
    preset = PRESETS[config.preset]
    folder = config.out / "cells" / config.preset
    found: dict[str, dict[str, Any]] = {}

    def do(cells: list[Cell]) -> None:
        for cell in cells:
            if cell.name not in found:
                found[cell.name] = measured(cell, preset, folder, tell)

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
        "preset": config.preset, "tried": tried, "rates": rates, "omegas": omegas, "cells": found,
    }  # fmt: skip


def main(config: Config) -> None:
    """Measure what is missing, draw, and write the page."""
    from experiments.mixtures import figures, page

    results = measure(config)
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
