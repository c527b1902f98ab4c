"""swirl-dynamics: any guidance as a transform of its `denoise_fn(x, sigma, cond)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, concretely, expand, is_concrete
from guidejax._denoisers import Denoiser
from guidejax._field import guided
from guidejax._guidance import Guidance
from guidejax._inputs import as_guidance
from guidejax.processes.base import Process, check_process

DenoiseFn = Callable[[Any, Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A guidance in swirl-dynamics' protocol; made by `transform`."""

    guidance: Guidance
    process: Process
    sigmas: Any
    denoise_fns: Mapping[str, DenoiseFn]
    keys: Mapping[str, str]

    def __call__(self, denoise_fn: DenoiseFn, guidance_inputs: Any) -> DenoiseFn:
        """`denoise_fn` guided: the same signature, (x, sigma, cond) -> x̂0."""
        given = {} if guidance_inputs is None else guidance_inputs
        names = self.guidance.branches[1:]
        for name in names:
            if self.keys.get(name, name) not in given and name not in self.denoise_fns:
                raise ValueError(
                    f"the guidance needs the branch {name!r}: give its condition as "
                    f"guidance_inputs[{self.keys.get(name, name)!r}]; got "
                    f"{', '.join(given) or 'none'}."
                )
        times = None if self.sigmas is None else time_of(self.process, self.sigmas)

        def guided_denoise(x: Array, sigma: Array, cond: Any = None) -> Array:
            # It scales the state so that α = 1; guidejax's is of `process`.
            t = time_of(self.process, sigma)
            state = (expand(self.process.alpha(t), x) * x).astype(x.dtype)

            def at_sigma(fn: DenoiseFn) -> Denoiser:
                # The very x and sigma that it was called with, to no rounding.
                network = lambda params, state, told, c: fn(x, sigma, c)  # noqa: E731
                return Denoiser((), self.process, None, network, "x0", "t")

            conditions: dict[str, Any] = {}
            for name in names:
                value = given.get(self.keys.get(name, name), cond)
                own = self.denoise_fns.get(name)
                conditions[name] = value if own is None else (at_sigma(own), value)
            field = guided(
                at_sigma(denoise_fn), self.guidance, cond=cond, conditions=conditions, times=times
            )
            return field.x0(state, t)

        return guided_denoise


def time_of(process: Process, sigma: Any) -> Any:
    """The time t of a process at which its noise over its signal, σ(t)/α(t), is `sigma`.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> float(time_of(rectified_flow(), 1.0))
        0.5
    """
    convert = lambda sigma: process.inverse_log_snr(-2 * jnp.log(sigma))  # noqa: E731
    if is_concrete(sigma, process):  # NumPy where it is known now: passes can be left out
        with concretely():
            return np.asarray(convert(jnp.asarray(sigma, jnp.result_type(float))))
    return convert(jnp.asarray(sigma, jnp.result_type(float)))


def transform(
    guidance: Guidance | None,
    process: Process,
    *,
    sigmas: Any = None,
    denoise_fns: Mapping[str, DenoiseFn] | None = None,
    keys: Mapping[str, str] | None = None,
) -> Transform:
    """A guidance as swirl-dynamics' guidance transform, for `guidance_transforms` of its samplers.

    `transform(guide, process)(denoise_fn, guidance_inputs)` is a denoiser of the same signature.
    The condition of each branch beside "cond" is taken from `guidance_inputs` by the branch's name:
    `guidance_inputs={"uncond": null}`, where null is like `cond` or broadcast to it. Its
    `guidance_strength` is guidejax's ω: an excess over the conditional model both. A pass is left
    out where ω is 0 at its σ, at run time too, which its own transforms don't do.

    Args:
        guidance: From `guidejax.guidance`; None is the conditional model.
        process: In whose time schedules and a learned ω count, such as `gj.processes.edm(80.0)`;
            σ is its noise over its signal, σ(t)/α(t). Rules in ε, v or velocity take x as a state
            of it.
        sigmas: The noise levels of its sampler, `scheme.sigma(tspan)`, for weights that depend on
            the time denoised to, a learned ω among them, or on the step's index.
        denoise_fns: Denoisers of their own for branches that have one, as autoguidance's "weak"
            has; under the same condition where `guidance_inputs` has none for it.
        keys: Under which key of `guidance_inputs` a branch's condition is, if not its name.

    Returns:
        A `Transform`.

    Raises:
        ValueError: If the guidance carries state from step to step, a branch has no condition, or
            the process is none.

    Example:
        >>> import guidejax as gj
        >>> guide = gj.guidance(gj.cfg, omega=2.0)
        >>> denoise_fn = lambda x, sigma, cond: 0 * x + cond["c"][:, None]
        >>> better = transform(guide, gj.processes.edm())
        >>> better = better(denoise_fn, {"uncond": {"c": jnp.zeros(1)}})
        >>> better(jnp.ones((1, 2)), 0.5, {"c": jnp.ones(1)}).tolist()
        [[3.0, 3.0]]

    Source: `swirl_dynamics.lib.diffusion.guidance.Transform`.
    """
    guide = as_guidance(guidance)
    check_process(process)
    if guide.stateful:
        carrying = [link.rule.name for link in guide.links if link.rule.init is not None]
        raise ValueError(
            f"{', '.join(carrying)} carries state from step to step, which a transform of a "
            "denoiser can't; use gj.sample, or guidance.combine(state=...)."
        )
    for name, known in (("denoise_fns", denoise_fns), ("keys", keys)):
        unknown = sorted(set(known or {}) - set(guide.branches[1:]))
        if unknown:
            raise ValueError(
                f"{name} has {', '.join(unknown)}; the guidance combines "
                f"{', '.join(guide.branches)}."
            )
    return Transform(guide, process, sigmas, dict(denoise_fns or {}), dict(keys or {}))
