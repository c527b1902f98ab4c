"""What the stage-wise experiment runs: sizes, settings and schedules."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

import guidejax as gj
from guidejax.schedules import SCHEDULES

PROCESS = gj.processes.rectified_flow()
# Width of every mode of the settings.
STD = 0.3
# Mean of ω over time that every schedule spends.
MEAN = 3.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure the three stages of guidance on exact mixtures and compare them with the theory.

    A run that is stopped goes on where it was when the same command is given again.
    """

    preset: Literal["quick", "full"] = "quick"
    """quick: 3 seeds, minutes on two cores. full: 4 seeds, twice the samples and steps."""
    out: pathlib.Path = pathlib.Path("runs/stages")
    """Where results and the page go: cells/PRESET/*.json, stagewise.md and stagewise/*.png."""
    publish: bool = False
    """Write the page and its pictures to docs/, and the results beside the program, too."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A preset: sizes of everything."""

    seeds: int
    samples: int
    """Samples a seed."""
    steps: int
    """Steps of Heun's method; half as many tell its error."""
    omegas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    stds: tuple[float, ...] = (0.1, 0.3, 0.5, 0.8)
    """Widths of a single mode, at the ω of `single_omegas`."""
    single_omegas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    shape_stds: tuple[float, ...] = (0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 0.8)
    """Widths of a single mode on which schedules of mean 1 are compared."""
    switches: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    """Times at which guidance is turned on, or off."""
    kicks: tuple[float, ...] = (0.75, 0.5, 0.25)
    """Times at which a sample is perturbed."""
    limit_steps: tuple[int, ...] = (10, 20, 40, 80, 160)
    """Steps at which the sampler is compared with the limit of the ODE."""
    limit_samples: int = 200


PLANS = {
    "quick": Plan(seeds=3, samples=1024, steps=100),
    "full": Plan(seeds=4, samples=2048, steps=200),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A mixture that stands for one condition; its first mode is the weak one."""

    title: str
    means: np.ndarray
    weights: tuple[float, ...]

    @property
    def mean(self) -> np.ndarray:
        """μ̄ = Σ π_k μ_k, (d,)."""
        return np.asarray(self.weights) @ self.means

    def model(self) -> gj.analytic.ClassMixture:
        """Label 0 is the mixture, the null label N(0, I)."""
        return gj.analytic.stagewise(self.means, self.weights, STD)


def _far_apart() -> np.ndarray:
    """Four modes in 16 dimensions: 2 e_k + 1/4 of everything."""
    return 2 * np.eye(4, 16) + 0.25


SETTINGS = {
    "two": Setting("two modes, 2-D", np.array([[-1.5, 1.5], [1.5, 1.5]]), (0.3, 0.7)),
    "four": Setting("four modes, 16-D", _far_apart(), (0.1, 0.2, 0.3, 0.4)),
    "balanced": Setting("balanced, μ̄ = 0", np.array([[-1.5, 0.0], [1.5, 0.0]]), (0.5, 0.5)),
}
# Those with a weak mode.
UNEVEN = ("two", "four")

# Halves of the run, which the paper compares at unequal means; here at the same.
HALVES: dict[str, Callable[[], gj.Weight]] = {
    "early strong": lambda: gj.interval(1.0, lo=0.5, hi=1.0),
    "late strong": lambda: gj.interval(1.0, lo=0.0, hi=0.499),
}


def _example(name: str) -> gj.Weight:
    facts = SCHEDULES[name]
    numbers: dict[str, Any] = dict(facts.example)
    if name == "table":  # knots in time, so that it suits any number of steps
        numbers["times"] = np.linspace(1, 0, len(numbers["values"]))
    if name == "interval":  # that of the paper's program
        numbers |= {"lo": 0.15, "hi": 0.78}
    for own in ("mean", "std"):
        if own in numbers:
            numbers[own] = {"mean": MEAN, "std": STD}[own]
    return facts.make(**numbers, **facts.options)


def schedules() -> dict[str, Callable[[], gj.Weight]]:
    """Every schedule of guidejax with the numbers of its declaration, and the two halves.

    All before `with_mean`. `cfgpp` is left out: it goes to −1 or without bound at the ends of a
    rectified flow, where it has no mean to keep.
    """
    own = [name for name in SCHEDULES if name != "cfgpp"]
    return {name: (lambda name=name: _example(name)) for name in own} | HALVES


# Shapes whose contraction is compared over widths of a mode, each of a given width.
SHAPES: dict[str, Callable[[float], gj.Weight]] = {
    "constant": lambda std: gj.weights.as_weight(1.0),
    "triangular": lambda std: gj.schedules.triangular(1.0),
    "interval": lambda std: gj.interval(1.0, lo=0.15, hi=0.78),
    "low_contraction": lambda std: gj.schedules.low_contraction(1.0, std),
    "least_contraction": lambda std: gj.schedules.least_contraction(1.0, std),
}

# Schedules under which samples are perturbed on the way.
KICKED = ("constant", "early strong", "late strong", "triangular", "least_contraction")
