"""What the experiment on angle domain guidance runs: every number of a preset."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Config:
    """Norm growth under CFG, the anomalous region, and what each part of ADG does.

    A run that is stopped goes on where it was when the same command is given again.
    """

    preset: Literal["quick", "full"] = "quick"
    """quick: a few minutes on two cores. full: what docs/angle.md reports."""
    out: pathlib.Path = pathlib.Path("runs/angle")
    """Where page, pictures, and a small file for each finished cell go."""
    publish: bool = False
    """Write the page to docs/ and the results beside the code, too."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A preset: sizes of everything.

    Attributes:
        seeds: Of what is reported: noise, samples of the data.
        tuning_seeds: Of the choice of ω for each rule; none of `seeds`.
        samples: Of each cell.
        steps: Of Heun's solver, where a sample is compared with a closed form.
        sampler_steps: Of DDIM, where rules are compared.
        omegas: ω of everything but the region.
        far: Larger ones, which a rule may choose as well.
        region_omegas: ω of the anomalous region.
        times: t of the anomalous region.
        convergence: Steps of Heun's solver whose error is measured.
        label: The folder of its cells.
    """

    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    samples: int
    steps: int = 96
    sampler_steps: int = 28
    omegas: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 14.0)
    far: tuple[float, ...] = (28.0, 56.0, 112.0)
    region_omegas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    times: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    convergence: tuple[int, ...] = (16, 32, 64, 128)
    label: str = "quick"


PLANS = {
    "quick": Plan(seeds=tuple(range(5)), tuning_seeds=tuple(range(100, 103)), samples=512),
    "full": Plan(
        seeds=tuple(range(10)), tuning_seeds=tuple(range(100, 105)), samples=1024, steps=256,
        label="full",
    ),
}  # fmt: skip
