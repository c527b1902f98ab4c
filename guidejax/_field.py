"""The guided field: guidance for diffrax, and for anybody's solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, Tree, batch_size, is_concrete, tree_map
from guidejax._branches import predict
from guidejax._denoisers import Denoiser, check_denoiser
from guidejax._guidance import Guidance, as_time, check_precision, every_weight, following
from guidejax._inputs import (
    as_guidance,
    check_batched,
    check_conditions,
    check_sighted,
    find_branches,
)
from guidejax._scan import for_any
from guidejax.processes.base import from_x0
from guidejax.solvers.base import slope
from guidejax.weights.base import Step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuidedField:
    """A guided denoiser as functions of (x, t); made by `guided`.

    A pytree: pass it through jit, or hand its methods to a solver. x is (batch, ...), t a scalar or
    (batch,); every method returns the shape and dtype of x.
    """

    denoise: Denoiser
    guidance: Guidance
    cond: Any
    others: dict[str, Any]
    times: Any

    def x0(self, x: Tree, t: Any) -> Tree:
        """The guided x̂0(x, t). Where ω is 0, at run time too, the conditional pass is all.

        Raises:
            ValueError: If α is 0 at a t that is known now, where a network that predicts ε or the
                score says nothing of x0: start an ODE a little below t = 1.
        """
        if self.times is not None:
            check_precision(t)
        t = as_time("t", t)
        check_sighted(self.denoise, t)
        process = self.denoise.process
        s = None if self.times is None else following(self.times, t)
        step = Step(s, t, self.cond, process, self.times, x)
        values = self.guidance.row(step)
        self.guidance.check_row(values, x)
        one = lambda time: None if time is None else time[None]  # noqa: E731
        flags = {
            name: self.guidance.needed((name,), one(s), one(t), process, self.times)
            for name in self.others
        }

        def evaluate(names: list[str], x: Tree, t: Array) -> Tree:
            chosen = {name: self.others[name] for name in names}
            found = predict("sequential", self.denoise, self.cond, chosen, x, t)
            where = dataclasses.replace(step, x=x, t=t)
            return self.guidance.apply(self.guidance.init(x), found, where, values)[0]

        sure = [name for name, flag in flags.items() if is_concrete(flag) and bool(flag[0])]
        maybe = [name for name, flag in flags.items() if not is_concrete(flag)]
        for name in sure:
            network = self.others[name][0]
            if network is not None:
                check_sighted(network, t, f"the branch {name!r}: ")
        if not maybe:
            return evaluate(sure, x, t)
        on = for_any(jnp.any(jnp.stack([flags[name][0] for name in maybe])))
        return jax.lax.cond(
            on,
            lambda x, t: evaluate([*sure, *maybe], x, t),
            lambda x, t: evaluate(sure, x, t),
            x,
            t,
        )

    __call__ = x0

    def eps(self, x: Tree, t: Any) -> Tree:
        """ε̂ = (x − α x̂0)/σ; needs σ(t) > 0."""
        return self._as("eps", x, t)

    def v(self, x: Tree, t: Any) -> Tree:
        """v̂ = α ε̂ − σ x̂0; needs σ(t) > 0."""
        return self._as("v", x, t)

    def velocity(self, x: Tree, t: Any) -> Tree:
        """ε̂ − x̂0, what flow-matching networks predict; needs σ(t) > 0.

        dx/dt on rectified flow alone: an ODE solver takes `drift`.
        """
        return self._as("velocity", x, t)

    def score(self, x: Tree, t: Any) -> Tree:
        """∇ₓ log p_t(x) = (α x̂0 − x)/σ²; needs σ(t) > 0."""
        return self._as("score", x, t)

    def drift(self, x: Tree, t: Any) -> Tree:
        """dx/dt = α̇ x̂0 + σ̇ ε̂ of the probability-flow ODE, on any process.

        Song et al. 2011.13456, Eq. (13). At t = 0 ε̂ is taken as 0, its limit on smooth data.
        """
        t = as_time("t", t)
        return slope(self.denoise.process, x, self.x0(x, t), t)

    def _as(self, prediction: str, x: Tree, t: Any) -> Tree:
        t = as_time("t", t)
        value = from_x0(self.x0(x, t), x, t, self.denoise.process, prediction)
        return tree_map(lambda a, b: a.astype(b.dtype), value, x)


def guided(
    denoise: Denoiser,
    guidance: Guidance | None = None,
    *,
    cond: Any = None,
    uncond: Any = None,
    conditions: Mapping[str, Any] | None = None,
    times: Any = None,
) -> GuidedField:
    """The guided denoiser as a field of (x, t), for a solver that isn't ours.

        field = gj.guided(denoise, gj.guidance(gj.cfg, omega=2.0), cond=labels, uncond=null)
        diffrax.ODETerm(lambda t, x, args: field.drift(x, t))

    Args:
        denoise: From `guidejax.denoiser`.
        guidance: From `guidejax.guidance`; None is the conditional model.
        cond: The conditioning c.
        uncond: The null condition, the shape of `cond` or broadcast to it.
        conditions: The other branches, as in `sample`.
        times: A grid, as `sample` takes it, for weights that depend on the time s denoised to, a
            learned ω among them, or on the step's index: the s that goes with t is the grid's next.

    Returns:
        A `GuidedField`: `x0`, `eps`, `v`, `velocity`, `score` and `drift` of (x, t).

    Raises:
        ValueError: If the guidance carries state from step to step, which a field can't, a branch
            is missing, or given and no rule's, the condition is not what a weight was made for, or
            the times are no grid.

    Example:
        >>> import guidejax as gj
        >>> process = gj.processes.rectified_flow()
        >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c[:, None], process)
        >>> field = guided(denoise, gj.guidance(gj.cfg, omega=2.0), cond=jnp.ones(1), uncond=0.0)
        >>> field.x0(jnp.zeros((1, 2)), 0.5).tolist(), field.drift(jnp.zeros((1, 2)), 0.5).tolist()
        ([[3.0, 3.0]], [[-6.0, -6.0]])
    """
    check_denoiser(denoise)
    guide = as_guidance(guidance)
    if guide.stateful:
        carrying = [link.rule.name for link in guide.links if link.rule.init is not None]
        raise ValueError(
            f"{', '.join(carrying)} carries state from step to step, which a field can't; "
            "use `sample`, or guidance.combine(state=...) in a loop of your own."
        )
    check_batched("cond", cond)
    if cond is not None:
        batch_size(cond)
    for weight in every_weight(guide):
        if hasattr(weight.fn, "check"):
            weight.fn.check(cond)
    if times is not None:
        times = _as_grid(times)
    names = guide.branches[1:]
    conditions = {} if conditions is None else conditions
    check_conditions(conditions, guide)
    others = find_branches(names, denoise, cond, uncond, conditions, who="guided")
    return GuidedField(denoise, guide, cond, dict(others), times)


def _as_grid(times: Any) -> Any:
    grid = as_time("times", times)
    if grid.ndim not in (1, 2) or len(grid) < 2:
        raise ValueError(f"times must be (steps + 1,) with steps ≥ 1, got shape {grid.shape}.")
    if is_concrete(grid) and not any(np.all(sign * np.diff(grid, axis=0) > 0) for sign in (1, -1)):
        raise ValueError(f"times must fall from noise to data, or rise throughout; got {grid}.")
    return grid
