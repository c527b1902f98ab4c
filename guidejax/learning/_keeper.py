"""The best φ of a run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from guidejax._arrays import batch_size
from guidejax.learning import _identity
from guidejax.learning._data import shared
from guidejax.learning._hosts import Hosts
from guidejax.learning._placement import mesh_of
from guidejax.learning.training import Program, loss
from guidejax.objectives.base import Batch


class Keeper:
    """The best φ so far, by the held-out loss or the user's score."""

    def __init__(self, program: Program, fixed: Any, held: list[Batch], score: Any, hosts: Hosts):
        self.loss, self.program, self.fixed = loss(program), program, fixed
        self.score, self.hosts = score, hosts
        if program.mesh is not None and hosts.count > 1:
            held = [shared(batch, program.mesh, program.axes) for batch in held]
        self.held = held
        # What scores, to know it again: a function of the user's by its being one.
        self.by = "score" if score is not None else _identity.fingerprint(held)
        self.step, self.value, self.phi = 0, np.inf, None

    def look(self, step: int, phi: Any) -> dict[str, float]:
        """Score φ, and keep it if it is the best."""
        found = {}
        if self.held:
            keys = [
                jax.random.split(jax.random.key(i), batch_size(b.x0))
                for i, b in enumerate(self.held)
            ]
            with mesh_of(self.program):
                losses = [
                    self.loss(phi, *self.fixed, b, k) for b, k in zip(self.held, keys, strict=True)
                ]
            sizes = [batch_size(batch.x0) for batch in self.held]
            found["held_out"] = float(np.average(jax.device_get(losses), weights=sizes))
        if self.score is not None:
            mine = self.hosts.together(lambda: float(self.score(jax.device_get(phi))))
            found["score"] = float(self.hosts.all_texts(repr(mine))[0])
        value = found["score" if self.score is not None else "held_out"]
        if value < self.value:
            self.take((step, value, jax.device_get(phi)))
        return found

    def take(self, best: tuple[int, float, Any] | None) -> None:
        """Go on from the best of an earlier run."""
        if best is not None:
            self.step, self.value, self.phi = best
