"""hackable_diffusion: any guidance as its `GuidanceFn`.

Its loop calls `guidance_fn(xt, conditioning, time, cond_outputs, uncond_outputs)`, where each of
the outputs is a dict of predictions by name, and hands the result to its sampler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, expand, upcast
from guidejax._guidance import Guidance
from guidejax._inputs import as_guidance
from guidejax.processes.base import Process, check_process, from_x0, to_x0

# Its names of what guidejax has too. Its "velocity" is dx/dt, which is guidejax's on rectified
# flow alone.
_OURS = {"x0": "x0", "v": "v", "epsilon": "eps", "score": "score"}
NAMES = (*_OURS, "velocity")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuidanceFn:
    """A guidance in hackable_diffusion's protocol; made by `guidance_fn`.

    A pytree: ω and the numbers of the rules are traced where it is passed through jit.
    """

    guidance: Guidance
    times: Any
    process: Process
    condition: Callable[[Any], Any] | None = dataclasses.field(metadata={"static": True})

    def __call__(
        self,
        xt: Array,
        conditioning: Any,
        time: Array,
        cond_outputs: Mapping[str, Array],
        uncond_outputs: Mapping[str, Array],
    ) -> dict[str, Array]:
        """The guided predictions, under every name that `cond_outputs` has."""
        if not isinstance(cond_outputs, Mapping) or set(cond_outputs) - set(NAMES):
            got = ", ".join(cond_outputs) if isinstance(cond_outputs, Mapping) else cond_outputs
            raise ValueError(
                f"expected one array's predictions by name, of {', '.join(NAMES)}; got {got}. For "
                "data of several parts give its NestedGuidanceFn one guidance_fn each."
            )
        if not cond_outputs or set(cond_outputs) != set(uncond_outputs):
            raise ValueError(
                "expected the same predictions of both branches, and at least one; got "
                f"{', '.join(cond_outputs) or 'none'} and {', '.join(uncond_outputs) or 'none'}."
            )
        t = jnp.asarray(time)
        t = t.reshape(t.shape[0]) if t.ndim else t  # it has the data's axes, all but one of size 1
        name = next(name for name in NAMES if name in cond_outputs)
        ours = _OURS.get(name, "x0")
        pair = {"cond": cond_outputs[name], "uncond": uncond_outputs[name]}
        if name == "velocity":
            pair = {branch: self._x0(value, xt, t) for branch, value in pair.items()}
        condition = conditioning
        if self.condition is not None and conditioning is not None:
            condition = self.condition(conditioning)
        guided = self.guidance.combine(
            pair,
            x=xt,
            t=t,
            condition=condition,
            process=self.process,
            prediction=ours,
            times=self.times,
        )
        # All others by how far guidance moved x̂0: where it does nothing they stay as they are.
        shift = upcast(guided) - upcast(pair["cond"])
        shift = to_x0(shift, jnp.zeros_like(shift), t, self.process, ours)
        made = {other: self._moved(other, cond_outputs[other], shift, t) for other in cond_outputs}
        return {**made, name: guided} if name != "velocity" else made

    def _x0(self, velocity: Array, x: Array, t: Array) -> Array:
        """x̂0 of dx/dt = α̇ x̂0 + σ̇ (x − α x̂0)/σ: (σ dx/dt − σ̇ x)/(σ α̇ − σ̇ α)."""
        x, velocity = upcast(x), upcast(velocity)
        alpha, sigma, d_alpha, d_sigma = self._coefficients(t, x)
        return (sigma * velocity - d_sigma * x) / (sigma * d_alpha - d_sigma * alpha)

    def _moved(self, name: str, value: Array, shift: Array, t: Array) -> Array:
        """A prediction once x̂0 has moved by `shift`."""
        if name == "velocity":
            alpha, sigma, d_alpha, d_sigma = self._coefficients(t, shift)
            moved = (d_alpha - d_sigma * alpha / sigma) * shift
        else:
            moved = from_x0(shift, jnp.zeros_like(shift), t, self.process, _OURS[name])
        return (upcast(value) + moved).astype(value.dtype)

    def _coefficients(self, t: Array, like: Array) -> list[Array]:
        """α, σ and their derivatives in t, each to broadcast against `like`."""
        process = self.process
        found = (process.alpha(t), process.sigma(t), *process.derivatives(t))
        return [expand(value, like).astype(like.dtype) for value in found]


def guidance_fn(
    guidance: Guidance | None,
    times: Any,
    process: Process,
    *,
    condition: Callable[[Any], Any] | None = None,
) -> GuidanceFn:
    """A guidance as hackable_diffusion's `GuidanceFn`, for its `GuidedDiffusionInferenceFn`.

    The rule works in its own space, and every prediction of the dict is made again from the result,
    whatever its sampler then reads. Its protocol knows the time t that is denoised from; the time s
    denoised to, which a learned ω sees, is the next of `times`. Both branches are always
    evaluated, also where ω is 0: their passes are made before the guidance is asked.

    Args:
        guidance: From `guidejax.guidance`, learned or not, of the branches "cond" and "uncond";
            None is the conditional model.
        times: The times of the points of its time schedule, falling: a grid as `gj.sample` takes
            it, (steps + 1,); None for weights that need no s and no index.
        process: The noising process of its `GaussianProcess`: `gj.processes.rectified_flow()` of
            its `RFSchedule`, `gj.processes.cosine()` of its `CosineSchedule`.
        condition: What the guidance's weights see of its `conditioning`, such as
            `lambda conditioning: conditioning["label"]`; None is all of it.

    Returns:
        A `GuidanceFn`, a pytree that its loop can call.

    Raises:
        ValueError: If the guidance carries state from step to step, for which the protocol has no
            place, or combines a branch that it has not; if the process is none; at the call, if a
            prediction has a name that isn't one of a Gaussian process.

    Example:
        >>> import guidejax as gj
        >>> guide = gj.guidance(gj.cfg, omega=2.0)
        >>> process = gj.processes.rectified_flow()
        >>> fn = guidance_fn(guide, [1.0, 0.5, 0.0], process)
        >>> x, cond, uncond = jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.zeros((1, 2))
        >>> time = jnp.full((1, 1), 0.5)
        >>> outputs = {"x0": cond, "epsilon": -cond}, {"x0": uncond, "epsilon": uncond}
        >>> found = fn(x, None, time, *outputs)
        >>> {name: value.tolist() for name, value in found.items()}
        {'x0': [[3.0, 3.0]], 'epsilon': [[-3.0, -3.0]]}

    Source: `hackable_diffusion.lib.inference.guidance`, version 1.0.1.
    """
    guide = as_guidance(guidance)
    check_process(process)
    if guide.stateful:
        carrying = [link.rule.name for link in guide.links if link.rule.init is not None]
        raise ValueError(
            f"{', '.join(carrying)} carries state from step to step, for which the GuidanceFn of "
            "hackable_diffusion has no place; use gj.sample, or guidance.combine(state=...)."
        )
    unknown = sorted(set(guide.branches) - {"cond", "uncond"})
    if unknown:
        raise ValueError(
            f"the guidance combines {', '.join(unknown)}; hackable_diffusion's loop has the "
            "branches cond and uncond alone."
        )
    if times is not None and (np.ndim(times) != 1 or len(times) < 2):
        raise ValueError(f"times must be a grid, (steps + 1,), got shape {np.shape(times)}.")
    times = None if times is None else jnp.asarray(times, jnp.result_type(float))
    return GuidanceFn(guide, times, process, condition)
