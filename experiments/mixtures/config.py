"""What is run: the models, the presets, the seeds of each split, and the cells that they make."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

import numpy as np

import guidejax as gj

PROCESS = gj.processes.rectified_flow()
CLASSES, COMPONENTS = 3, 2

# How the exact models are made wrong.
BLUR, SHIFT, LEAK = 1.5, 0.2, 0.3

# Every model in the order of the tables, and what it is.
MODELS = {
    "exact": "E[x0 | x_t, c] of the data themselves",
    "blurred": f"exact for components {BLUR} times as wide, with and without the class",
    "blurred more without c": f"exact for components {BLUR} times as wide given the class, "
    f"{BLUR**2} times without",
    "shifted": f"exact for components that lie {SHIFT} off, each in a direction of its own, with "
    "and without the class",
    "leaking": f"exact for classes of which a share {LEAK} of the samples is drawn from all of "
    "them",
    "trained network": "a residual MLP of width 24, trained long",
    "under-trained network": "the same network, stopped after a fifteenth of the updates",
    "mislabelled network": f"the trained network, but with a share {LEAK} of the labels drawn at "
    "random in training",
}
NETWORKS = ("trained network", "under-trained network", "mislabelled network")
WIDTH, DEPTH = 24, 1

OBJECTIVES = {"energy": "self-consistency", "l2": "l2"}

# Constant weights that are sampled with; ω = 0 is the conditional model.
OMEGAS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
# Learning rates: the search begins with the three in the middle, and goes on while the best is at
# an end of what was tried.
SERIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
RATES = SERIES[3:6]
RATES_ON = ("exact", "leaking")
BATCH, PARTICLES, BETA, MIN_GAP = 256, 4, 1.75, 0.1
STEPS = 32
TIMES = gj.uniform_times(STEPS)

# Steps t → s and churns of which the best constant ω is found.
PAIRS = tuple(
    (s, t, churn) for s, t in ((0.4, 0.5), (0.3, 0.7), (0.1, 0.4), (0.7, 0.8)) for churn in (0, 1)
)
# Single Gaussians, (std, std of the conditional model, std of the unconditional model).
WIDTHS = ((0.2, 0.3, 0.45), (0.2, 0.3, 0.3), (0.2, 0.25, 0.5), (0.2, 0.2, 0.4))


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        tuned: Seeds that learning rates and constant weights are chosen on.
        reported: Seeds of the tables; neither worlds nor noise are shared with `tuned`.
        updates: Updates of φ.
        network_updates: Updates of the trained network.
        samples: Samples of a class behind an energy distance.
        pairs: Examples behind the best ω of a step.
    """

    tuned: tuple[int, ...]
    reported: tuple[int, ...]
    updates: int
    network_updates: int
    samples: int
    pairs: int


PRESETS = {
    "tiny": Preset((9000, 9001), (0, 1), 20, 50, 100, 2_000),
    "quick": Preset(tuple(range(9000, 9004)), tuple(range(5)), 300, 3_000, 800, 20_000),
    "full": Preset(
        tuple(range(9000, 9005)), tuple(range(20)), 2_000, 20_000, 2_000, 200_000
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn ω on mixtures of Gaussians, for models whose errors are known."""

    preset: Literal["tiny", "quick", "full"] = "quick"
    """tiny: to see that it runs. quick: minutes on two cores. full: hours, for more of all."""
    out: pathlib.Path = pathlib.Path("runs/mixtures")
    """Where cells, results.json and the pictures go; a run that was stopped goes on from there."""
    jobs: int | None = None
    """Processes that share the cells; one a core by default on CPUs."""
    publish: bool = False
    """Write docs/mixtures.md, its pictures and the results it is made of too."""
    docs: pathlib.Path = pathlib.Path("docs")
    """Where the page goes."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement, in a file of its own.

    Attributes:
        kind: "sweep", samples under constant weights; "learn", a weight that is learned; "pair",
            the best ω of single steps; "width", Gaussians under guidance.
        split: "tuned" or "reported".
        model: One of `MODELS`; "" for "width".
        seed: Of the mixture and of all randomness.
        objective: What is learned by; one of `OBJECTIVES`.
        rate: Learning rate; 0 stands for the one that was chosen.
    """

    kind: Literal["sweep", "learn", "pair", "width"]
    split: Literal["tuned", "reported"]
    model: str
    seed: int
    objective: str = ""
    rate: float = 0.0

    @property
    def name(self) -> str:
        """The file's name."""
        parts = [self.split, self.kind, self.model.replace(" ", "_"), f"{self.seed}"]
        parts += [self.objective, f"{self.rate:g}" if self.rate else ""]
        return "-".join(part for part in parts if part)

    def noise(self) -> tuple[int, ...]:
        """What the cell's random numbers are seeded with."""
        return (self.seed, ("sweep", "learn", "pair", "width").index(self.kind))


def tuning(preset: Preset, tried: dict[str, tuple[float, ...]]) -> list[Cell]:
    """The cells that rates, each objective's `tried` ones, and constants are chosen by."""
    cells = [
        Cell("learn", "tuned", model, seed, objective, rate)
        for objective, rates in tried.items()
        for model in RATES_ON
        for seed in preset.tuned
        for rate in rates
    ]
    return cells + [
        Cell("sweep", "tuned", model, seed) for model in MODELS for seed in preset.tuned
    ]


def report(preset: Preset, rates: dict[str, float]) -> list[Cell]:
    """The cells of the tables, once the learning rates are chosen."""
    cells = [Cell("width", "reported", "", seed) for seed in preset.reported]
    for model in MODELS:
        for seed in preset.reported:
            cells += [Cell(kind, "reported", model, seed) for kind in ("sweep", "pair")]
            cells += [
                Cell("learn", "reported", model, seed, objective, rates[objective])
                for objective in OBJECTIVES
            ]
    return cells


def grid() -> tuple[np.ndarray, np.ndarray]:
    """(s, t) of every step of the sampler."""
    return np.asarray(TIMES[1:]), np.asarray(TIMES[:-1])
