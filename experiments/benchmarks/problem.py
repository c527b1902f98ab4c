"""What every contender samples: sizes, rows, weights, noise and labels, in NumPy alone.

Imported by the environments of all contenders, so nothing here needs JAX, PyTorch or guidejax.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """A diffusion transformer (DiT), its batch and the number of steps."""

    image: int
    channels: int
    patch: int
    width: int
    depth: int
    heads: int
    batch: int
    steps: int
    dtype: str
    classes: int = 10

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the batch."""
        return self.batch, self.image, self.image, self.channels


SIZES = {
    "cpu": Size(16, 4, 2, width=128, depth=3, heads=4, batch=8, steps=50, dtype="float32"),
    # DiT-B/2 on latents of 32 × 32.
    "gpu": Size(32, 4, 2, width=768, depth=12, heads=12, batch=128, steps=50, dtype="bfloat16"),
    # Where only the structure of a program matters; so many that passes follow one another.
    "tiny": Size(4, 2, 2, width=16, depth=1, heads=2, batch=8, steps=10, dtype="float32"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting of the benchmark.

    Attributes:
        name: As the tables print it.
        solver: A key of every contender's list of solvers.
        omega: ω; of CFG++, λ.
        lo: Guided where lo ≤ t ≤ hi.
        hi: See `lo`.
        number: The solver's own number: churn, γ or η.
        stages: Network predictions a step.
        last: Those of the step into t = 0, where Heun's second has nothing left to predict.
    """

    name: str
    solver: str
    omega: float = 2.0
    lo: float = 0.0
    hi: float = 1.0
    number: float = 0.0
    stages: int = 1
    last: int = 1

    @property
    def whole(self) -> bool:
        """Whether every step is guided."""
        return self.lo <= 0 and self.hi >= 1

    def guided(self, steps: int) -> list[bool]:
        """For each step, whether it needs the unconditional pass."""
        times = np.linspace(1, 0, steps + 1)[:-1]
        return [self.omega != 0 and self.lo <= t <= self.hi for t in times]

    def passes(self, steps: int) -> list[tuple[int, int, int]]:
        """The evaluations it needs, as (steps, predictions a step, branches) one after another."""
        found: list[tuple[int, int, int]] = []
        for i, on in enumerate(self.guided(steps)):
            stages = self.last if i == steps - 1 else self.stages
            if found and found[-1][1:] == (stages, 1 + on):
                found[-1] = (found[-1][0] + 1, stages, 1 + on)
            else:
                found.append((1, stages, 1 + on))
        return found


# Of 50 steps, 10 depart from t = 0.58, ..., 0.40.
ROWS = (
    Row("cfg", "ddim"),
    Row("interval of 20%", "ddim", lo=0.39, hi=0.59),
    Row("omega = 0", "ddim", omega=0.0),
    Row("euler", "euler"),
    Row("heun", "heun", stages=2),
    Row("midpoint", "midpoint", stages=2, last=2),
    Row("rk4", "rk4", stages=4, last=3),
    Row("edm_heun", "edm_heun", stages=2),
    Row("edm_heun (gamma 0.2)", "edm_heun", number=0.2, stages=2),
    Row("dpmpp_2m", "dpmpp_2m"),
    Row("dpmpp_2m (churn 1)", "dpmpp_2m", number=1.0),
    Row("ddim (churn 0.7)", "ddim", number=0.7),
    Row("ancestral", "ancestral", number=1.0),
    Row("cfgpp of ddim", "cfgpp", omega=0.6),
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """The arrays: weights of the network by name, noise, labels. The null label is `classes`."""

    size: Size
    params: dict[str, np.ndarray]
    noise: np.ndarray
    labels: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """Falling, from 1 to 0: (steps + 1,)."""
        return np.linspace(1, 0, self.size.steps + 1, dtype=np.float32)

    @property
    def null(self) -> np.ndarray:
        """The null condition."""
        return np.full_like(self.labels, self.size.classes)


def make(size: Size, seed: int = 0) -> Problem:
    """Random weights, so scaled that samples stay of order one."""
    rng = np.random.default_rng(seed)
    d, token = size.width, size.patch**2 * size.channels

    def dense(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return scale * rng.standard_normal((rows, columns)) / np.sqrt(rows)

    params = {
        "patch": dense(token, d),
        "position": 0.5 * rng.standard_normal(((size.image // size.patch) ** 2, d)),
        "time_in": dense(d, d),
        "time_out": dense(d, d),
        "label": rng.standard_normal((size.classes + 1, d)),
        "final_modulation": dense(d, 2 * d, 0.3),
        "final": dense(d, token, 0.5),
    }
    for i in range(size.depth):
        params |= {
            f"modulation_{i}": dense(d, 6 * d, 0.3),
            f"qkv_{i}": dense(d, 3 * d),
            f"mix_{i}": dense(d, d),
            f"up_{i}": dense(d, 4 * d),
            f"down_{i}": dense(4 * d, d),
        }
    return Problem(
        size,
        {name: value.astype(np.float32) for name, value in params.items()},
        rng.standard_normal(size.shape).astype(np.float32),
        rng.integers(0, size.classes, size.batch).astype(np.int32),
    )


def save(problem: Problem, path: pathlib.Path) -> None:
    """To one .npz."""
    arrays: dict[str, Any] = {f"params/{name}": a for name, a in problem.params.items()}
    np.savez(path, noise=problem.noise, labels=problem.labels, **arrays)


def load(size: Size, path: pathlib.Path) -> Problem:
    """What `save` wrote."""
    with np.load(path) as file:
        params = {
            name.removeprefix("params/"): file[name] for name in file if name.startswith("params/")
        }
        return Problem(size, params, file["noise"], file["labels"])
