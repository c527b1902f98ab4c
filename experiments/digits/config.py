"""What the digits experiment runs: every number that can be changed from the command line."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

NUM_CLASSES = 10

# Seeds below this one served to choose settings.
FIRST_SEED = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn ω(c, s, t) on the digits and compare it with tuned guidance.

    A run that is stopped goes on where it was when the same command is given again.
    """

    preset: Literal["quick", "full"] = "quick"
    """quick: one seed, minutes. full: five seeds and a well-trained denoiser, half an hour."""
    out: pathlib.Path = pathlib.Path("runs/digits")
    """Where the report, the metrics, the checkpoints and the log go."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps the digits; by default inside `out`."""
    seeds: int | None = None
    """Seeds of denoiser, classifiers, learning and sampling."""
    overwrite: bool = False
    """Start again in `out`, whatever is there."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A preset: sizes of everything."""

    seeds: int
    denoisers: tuple[tuple[str, int], ...]
    classifier_steps: int
    tune_samples: int
    report_samples: int
    omegas: tuple[float, ...]
    los: tuple[float, ...]
    his: tuple[float, ...]
    rollout_steps: int
    rollout_group: int
    consistency_steps: int
    sampling_steps: int = 16
    hidden: int = 128
    depth: int = 3
    batch: int = 128


PLANS = {
    "quick": Plan(
        seeds=1,
        denoisers=(("under-trained", 800),),
        classifier_steps=600,
        tune_samples=600,
        report_samples=1000,
        omegas=(0.1, 0.2, 0.35, 0.6, 1.0),
        los=(0.0, 0.15),
        his=(0.3, 0.45, 0.7),
        rollout_steps=200,
        rollout_group=20,
        consistency_steps=200,
    ),
    "full": Plan(
        seeds=5,
        denoisers=(("under-trained", 800), ("well-trained", 8000)),
        classifier_steps=600,
        tune_samples=1000,
        report_samples=2000,
        omegas=(0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5),
        los=(0.0, 0.1, 0.2),
        his=(0.3, 0.4, 0.5, 0.7),
        rollout_steps=1000,
        rollout_group=24,
        consistency_steps=400,
    ),
}
