"""The best φ of a run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from guidejax._arrays import batch_size
from guidejax.learning._data import shared
from guidejax.learning._hosts import Hosts
from guidejax.learning._placement import mesh_of
from guidejax.learning.training import Program, loss
from guidejax.objectives.base import Batch


class Keeper:
    """The best φ so far, by the held-out loss or the user's score."""

    def __init__(self, program: Program, fixed: Any, held: list[Batch], score: Any, hosts: Hosts):
        self.program, self.fixed, self.score, self.hosts = program, fixed, score, hosts
        self.held = [self._placed(batch) for batch in held]
        self.sizes = [batch_size(batch.x0) for _, batch in self.held]
        self.step, self.value, self.phi = 0, np.inf, None

    def _placed(self, batch: Batch) -> tuple[Any, Batch]:
        """(its loss, the batch): shared out over the mesh, or whole where it doesn't divide."""
        program, objective = self.program, self.fixed[0]
        if program.mesh is None:
            return loss(program), batch
        parts = math.prod(program.mesh.shape[name] for name in program.axes)
        # An objective that compares rows may need whole groups of them on each device.
        group = getattr(objective, "particles", 1) if hasattr(objective, "across") else 1
        if self.hosts.count == 1 and batch_size(batch.x0) % (parts * group):
            return loss(dataclasses.replace(program, axes=(), mapped=False)), batch
        return loss(program), shared(batch, program.mesh, program.axes)

    def look(self, step: int, phi: Any) -> dict[str, float]:
        """Score φ, and keep it if it is the best."""
        found = {}
        if self.held:
            with mesh_of(self.program):
                losses = [
                    loss(phi, *self.fixed, batch, seed)
                    for seed, (loss, batch) in enumerate(self.held)
                ]
            found["held_out"] = float(np.average(jax.device_get(losses), weights=self.sizes))
        if self.score is not None:
            mine = self.hosts.together(lambda: self._score(jax.device_get(phi)))
            found["score"] = float(self.hosts.all_texts(repr(mine))[0])
        value = found["score" if self.score is not None else "held_out"]
        if value < self.value:
            self.step, self.value, self.phi = step, value, jax.device_get(phi)
        return found

    def _score(self, phi: Any) -> float:
        value = self.score(phi)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"score returned {value!r}; expected a number.") from error
