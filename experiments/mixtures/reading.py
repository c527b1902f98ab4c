"""What tables, claims and pictures take from the results."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.mixtures.config import OMEGAS, PRESETS, Cell
from experiments.statistics.intervals import (
    Interval,
    mean_interval,
    paired_difference_interval,
)


def values(
    results: dict[str, Any], kind: Any, model: str, name: str, objective: str = ""
) -> np.ndarray:
    """A number of the report's cells, (seeds, ...)."""
    rate = results["rates"][objective] if objective else 0.0
    seeds = PRESETS[results["preset"]].reported
    cells = [Cell(kind, "reported", model, seed, objective, rate) for seed in seeds]
    return np.array([results["cells"][cell.name][name] for cell in cells])


def at(results: dict[str, Any], model: str, omega: float, name: str = "energy") -> np.ndarray:
    """A number of samples under a constant weight, (seeds,)."""
    return values(results, "sweep", model, name)[:, OMEGAS.index(omega)]


def learned_omega(results: dict[str, Any], model: str, objective: str) -> np.ndarray:
    """The learned ω, mean over the sampler's steps and the classes, (seeds,)."""
    return values(results, "learn", model, "omega", objective).mean(axis=(1, 2))


def gain(results: dict[str, Any], model: str, objective: str = "energy") -> Interval:
    """Energy distance with the learned weight, less that with the tuned constant one."""
    learned = values(results, "learn", model, "energy", objective)
    return paired_difference_interval(learned, at(results, model, results["omegas"][model]))


def shown(found: Interval, digits: int = 3) -> str:
    """An interval as text: mean ± half its width."""
    half = float(found.high - found.estimate)
    return f"{float(found.estimate):.{digits}f} ± {half:.{digits}f}"


def mean(found: np.ndarray, digits: int = 3) -> str:
    """The mean over seeds and its 95% interval as text."""
    return shown(mean_interval(found), digits)
