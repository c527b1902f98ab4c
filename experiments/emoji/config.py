"""What the emoji experiment runs: every number of a preset."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

from experiments.emoji import storage


@dataclasses.dataclass(frozen=True)
class Config:
    """Guidance of a text-to-image model, tuned and learned, on captions that no choice has seen.

    A run that is stopped goes on where it was when the same command is given again.
    """

    preset: Literal["quick", "full", "wide"] = "quick"
    """quick: minutes, from what is tuned and learned already. full: all of it, hours on CPUs. wide:
    also a report on more denoisers, which `experiments.emoji.train` makes first: for a GPU."""
    out: pathlib.Path = pathlib.Path("runs/emoji/main")
    """Where the report, the metrics, and a small file for each finished cell go."""
    cells: tuple[str, ...] = ()
    """Only the cells whose names match, as in "tune/*": to share the work between machines."""
    jobs: int | None = None
    """Processes that share the cells, each on cores of its own; by default one a core for the full
    preset on CPUs, where two single cores do 1.4 of the work of a pair, and otherwise one."""
    weights: pathlib.Path = storage.WEIGHTS
    """Where the networks lie."""
    publish: bool = False
    """Keep what is finished, of full or wide, in the repository, and write docs/emoji.md."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A preset: sizes of everything.

    Attributes:
        early: Denoisers that were stopped where the loss of held-out pictures was least. The first
            is the one that methods are tuned and learned on.
        long: Denoisers trained four times as long.
        settings: Settings that the search of a tuned method scores.
        learned: Settings whose evaluations learning spends, no more than a search does.
        seeds: Seeds of the report's noise, and of the learned form that won.
        methods: The tuned ones; all by default.
        long_methods: Those of the denoisers trained for long; by default the same.
        both: Those that are tuned for the distance and the reward together too, on the early ones.
        steps: Of the sampler.
        batch: Captions of an update.
        particles: Of self-consistency.
        selection: Pictures of the selection split that tuning and learning look at.
        report: Pictures of the report.
        resamples: Of the report's real pictures.
        constants: Constant weights beside the learned forms, where these are chosen.
        line: Constant weights beside the report's methods, on the first denoiser.
        omegas: Of the sweep, for each rule.
        draws: Of the captions, for the standard errors of the sweep.
        diverse: Captions, and samples of each, that diversity is measured on.
        anew: Updates of a weight that is learned on the spot, beside the one that is loaded.
        label: What the cells of its report are called.
    """

    early: tuple[str, ...] = ("0", "1", "2")
    long: tuple[str, ...] = ("long",)
    settings: int = 40
    learned: int = 32
    seeds: int = 5
    methods: tuple[str, ...] | None = None
    long_methods: tuple[str, ...] | None = None
    both: tuple[str, ...] = ("constant", "interval", "adg", "apg")
    steps: int = 12
    batch: int = 32
    particles: int = 4
    selection: int = 275
    report: int = 461
    resamples: int = 20
    constants: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
    line: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    omegas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0, 14.0, 20.0)
    draws: int = 200
    diverse: tuple[int, int] = (24, 8)
    anew: int = 0
    label: str = "report"


# Every method for the denoiser trained for long too would take more than twelve hours.
FULL = Plan(long_methods=("unguided", "constant", "interval", "interval per group", "adg", "apg"))
PLANS = {
    "full": FULL,
    "wide": dataclasses.replace(FULL, early=("0", "1", "2", "3", "4", "5")),
    "quick": Plan(
        early=("0",), long=(), seeds=1, methods=("unguided", "constant", "interval", "adg", "apg"),
        both=(), batch=16, report=128, resamples=0, constants=(), line=(), omegas=(),
        diverse=(8, 4), anew=24, label="quick",
    ),
}  # fmt: skip
