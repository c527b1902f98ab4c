"""diffrax: the guided field as a term whose numbers are arguments of the solve."""

from __future__ import annotations

from typing import Any

from guidejax._arrays import Tree
from guidejax._field import GuidedField


def vector_field(t: Any, y: Tree, args: GuidedField) -> Tree:
    """dx/dt of the probability-flow ODE, in diffrax's order `(t, y, args)`.

    The field goes in as `args`, so that ω, the rule's numbers and the network's parameters are
    arguments of the solve: a new value doesn't recompile `diffrax.diffeqsolve`, and gradients in
    them go through whichever adjoint was chosen, `BacksolveAdjoint` among them, which doesn't see
    what a function holds in its closure.

    Args:
        t: Time.
        y: The state x_t.
        args: From `gj.guided`.

    Returns:
        dx/dt = α̇ x̂0 + σ̇ ε̂, the shape of `y`.

    Raises:
        ValueError: If `args` is no guided field.

    Example:
        >>> import guidejax as gj, jax.numpy as jnp
        >>> denoise = gj.denoiser(lambda x, t, c: 0 * x, gj.processes.rectified_flow())
        >>> field = gj.guided(denoise)
        >>> vector_field(0.5, jnp.ones((1, 2)), field).tolist()
        [[2.0, 2.0]]

    Source: Song et al. 2011.13456, Eq. (13); `diffrax.ODETerm`.
    """
    if not isinstance(args, GuidedField):
        raise ValueError(f"expected the field as args=gj.guided(...), got {type(args).__name__}.")
    return args.drift(y, t)
