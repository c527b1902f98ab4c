"""Evaluations that are made once and learned from many times, with the network or without it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, batch_size, check_finite
from guidejax._denoisers import Denoiser, denoiser
from guidejax._guidance import Guidance
from guidejax._guidance import guidance as make_guidance
from guidejax._random import as_keys
from guidejax.objectives.base import Evaluations
from guidejax.processes import Process
from guidejax.rules.linear import cfg


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """See `evaluate`."""

    key: Array
    denoise: Denoiser
    batches: Iterable[Any]
    objective: Any
    guidance: Guidance
    uncond: Any
    conditions: Mapping[str, Any]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from guidejax.learning._data import Conditions

        branches = Conditions.of(self.guidance, self.denoise, self.uncond, self.conditions)
        # Each process has rows of its own, and noise of its own for them.
        own = jax.process_index()
        run_key = jax.random.fold_in(self.key, 2**32 - own) if own else self.key
        frozen = self.objective, (self.denoise, branches.networks)
        for index, given in enumerate(self.batches):
            batch = branches.batch(given, [], f"batch {index}")
            keys = jax.random.split(jax.random.fold_in(run_key, index), batch_size(batch.x0))
            names = ("cond", *branches.names)
            found = _evaluate(keys, *frozen, batch, names)
            host = jax.tree.map(np.asarray, batch)
            yield {
                "x0": host.x0,
                "cond": host.cond,
                **host.conditions,
                "evaluations": jax.device_get(found)._asdict(),
            }


@functools.partial(jax.jit, static_argnames="names")
def _evaluate(keys, objective, frozen, batch, names):
    denoise, networks = frozen
    return objective.evaluate(keys, names, denoise, batch, networks)


def evaluate(
    key: Array,
    denoise: Denoiser,
    batches: Iterable[Any],
    *,
    objective: Any,
    rule: Any = cfg,
    uncond: Any = None,
    conditions: Mapping[str, Any] | None = None,
) -> Iterable[dict[str, Any]]:
    """Batches with what the network says of them: `fit` learns from these without asking it again.

    Self-consistency needs the network at (x_t, t) alone, for x_t that don't depend on ω: made once,
    an evaluation serves every s and every update. The batches come as they are asked for; keep them
    in a list, or on disk with `guidejax.data.write_examples`, and give `fit` them as often as it
    is to see each, with the process in place of the denoiser:

        kept = list(gj.learning.evaluate(key, denoise, batches, objective=objective, uncond=null))
        phi = gj.fit_omega(key, net, process, itertools.cycle(kept), objective=objective, ...)

    A batch is a mapping of "x0", "cond", the other branches' conditions, and "evaluations": "t",
    (batch,); "x", x_t ~ N(α_t x0, σ_t² I), (batch, particles, ...); "predictions", x̂0(x_t, t) of
    each branch by name, the shape of "x". Whoever has the network in another framework makes such
    batches there, of the t that `objective.times` draws.

    Args:
        key: A key; the same one gives the same evaluations.
        denoise: The denoiser.
        batches: As in `fit`, of some end where the result is kept.
        objective: From `self_consistency` or `l2`: how many particles, and at which times. Learn
            by one of the same particles, s_min, min_gap, t_max and t_density.
        rule: The rule, of which the branches are evaluated.
        uncond: The null condition, one for all.
        conditions: As in `fit`.

    Raises:
        ValueError: If the objective's states depend on ω, as a rollout's do, and as `fit` does.

    Example:
        >>> import guidejax as gj
        >>> denoise = gj.denoiser(lambda x, t, c: c[:, None] * x, gj.processes.rectified_flow())
        >>> batches = [{"x0": np.ones((4, 3), np.float32), "cond": np.ones(4, np.float32)}]
        >>> kept = list(evaluate(jax.random.key(0), denoise, batches, uncond=0.0,
        ...                      objective=gj.self_consistency(particles=2)))
        >>> kept[0]["evaluations"]["predictions"]["uncond"].shape
        (4, 2, 3)
    """
    if not hasattr(objective, "evaluate"):
        raise ValueError(
            "evaluate expects an objective whose states don't depend on ω, such as "
            f"gj.self_consistency(); got {objective!r}."
        )
    objective.check(denoise)
    return _Evaluated(
        as_keys(key), denoise, batches, objective, make_guidance(rule), uncond, conditions or {}
    )


def as_denoiser(denoise: Any) -> Any:
    """`denoise`; of a process, a denoiser on it that can't be asked."""
    return denoiser(_nothing, denoise, time="t") if isinstance(denoise, Process) else denoise


def _nothing(x: Any, t: Any, cond: Any) -> Any:
    raise ValueError(
        "a process is given in place of the denoiser, and the batches have no evaluations; "
        "give the denoiser, or batches from gj.learning.evaluate or gj.data.load_examples."
    )


def as_evaluations(value: Any, size: int, where: str) -> Evaluations | None:
    """The evaluations that a batch carries, or an error that says what is wrong with them."""
    if value is None:
        return None
    value = value._asdict() if isinstance(value, Evaluations) else value
    if not isinstance(value, Mapping) or set(value) != set(Evaluations._fields):
        names = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"{where}: evaluations are {names}; expected t, x, predictions, by name.")
    found = Evaluations(**value)
    if "cond" not in found.predictions:
        raise ValueError(f"{where}: the evaluations have no prediction 'cond'.")
    shape = jax.tree.map(np.shape, found.x)
    for name, prediction in found.predictions.items():
        if jax.tree.map(np.shape, prediction) != shape:
            raise ValueError(f"{where}: the prediction {name!r} has not the shape of x, {shape}.")
    for leaf in jax.tree.leaves(found):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != size:
            raise ValueError(f"{where}: evaluations of shape {np.shape(leaf)} for {size} samples.")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"{where}: evaluations are {jnp.result_type(leaf)}; expected floats.")
    check_finite(f"evaluations of {where}", found)
    return found
