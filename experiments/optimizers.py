"""How experiments learn a weight."""

from __future__ import annotations

import functools

import optax


@functools.cache  # The same object each time, so that runs share the compiled step.
def adam(steps: int) -> optax.GradientTransformation:
    """Adam, its rate from 0.01 to 0 by a cosine, gradients clipped to norm 1."""
    rate = optax.cosine_decay_schedule(1e-2, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
