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
        whole = dataclasses.replace(program, axes=(), mapped=False)
        self.losses = {True: loss(program), False: loss(whole)}  # By whether a batch is split.
        self.held = [self._placed(batch) for batch in held]
        self.sizes = [batch_size(batch.x0) for _, batch in self.held]
        self.step, self.value, self.phi = 0, np.inf, None

    def _placed(self, batch: Batch) -> tuple[bool, Batch]:
        """(whether it is split over the mesh, the batch): not where it doesn't divide.

        Of one process it stays on the host until it is asked for, of several it lies on the mesh.
        """
        program, objective = self.program, self.fixed[0]
        if program.mesh is None:
            return True, batch
        parts = math.prod(program.mesh.shape[name] for name in program.axes)
        # An objective that compares rows may need whole groups of them on each device.
        group = getattr(objective, "particles", 1) if hasattr(objective, "across") else 1
        if self.hosts.count == 1 and batch_size(batch.x0) % (parts * group):
            return False, batch
        return True, self._shared(batch) if self.hosts.count > 1 else batch

    def _shared(self, batch: Batch) -> Batch:
        mesh: Any = self.program.mesh
        return shared(batch, mesh, self.program.axes)

    def look(self, step: int, phi: Any) -> dict[str, float]:
        """Score φ, and keep it if it is the best."""
        found = {}
        if self.held:
            with mesh_of(self.program):
                losses = [
                    self._loss(phi, split, batch, seed)
                    for seed, (split, batch) in enumerate(self.held)
                ]
            found["held_out"] = float(np.average(jax.device_get(losses), weights=self.sizes))
        if self.score is not None:
            mine = self.hosts.together(lambda: self._score(jax.device_get(phi)))
            found["score"] = float(self.hosts.all_texts(repr(mine))[0])
        value = found["score" if self.score is not None else "held_out"]
        if value < self.value:
            self.step, self.value, self.phi = step, value, jax.device_get(phi)
        return found

    def _loss(self, phi: Any, split: bool, batch: Batch, seed: int) -> Any:
        if split and self.program.mesh is not None and self.hosts.count == 1:
            batch = self._shared(batch)
        return self.losses[split](phi, *self.fixed, batch, seed)

    def _score(self, phi: Any) -> float:
        value = self.score(phi)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"score returned {value!r}; expected a number.") from error
