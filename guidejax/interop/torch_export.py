"""A scheduled or learned ω as the list of guidance scales that PyTorch front ends take."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from guidejax._guidance import Guidance
from guidejax._inputs import as_guidance
from guidejax.processes.base import Process, check_process
from guidejax.rules.linear import cfg, negative_prompt
from guidejax.schedules.tables import to_table
from guidejax.weights.base import Weight

# Rules that are u + w (c − u) of two predictions, which is what those front ends compute.
_PLAIN = (cfg, negative_prompt)


def _scales(guidance: Guidance | None, times: Any, process: Any, cond: Any) -> np.ndarray:
    """w = ω + 1 of every step: (steps,), or (steps, batch) under more conditions than one."""
    guide = as_guidance(guidance)
    if process is not None:
        check_process(process)
    rules = [link.rule for link in guide.links]
    # By themselves, not by name: a rule of one's own may be named as one of these.
    plain = len(rules) <= 1 and all(any(rule is known for known in _PLAIN) for rule in rules)
    if not plain or guide.mask is not None:
        names = " and ".join(rule.name for rule in rules)
        what = "a mask" if guide.mask is not None else f"the rule {names}"
        raise ValueError(
            f"the guidance has {what}, of which no list of scales is the same; expected "
            f"{' or '.join('gj.rules.' + rule.name for rule in _PLAIN)} with any ω."
        )
    if not isinstance(guide.omega, Weight):
        raise ValueError("ω is given by parts of the state; a list of scales has one a step.")
    if guide.omega.sees_state:
        raise ValueError("ω sees x_t or the predictions; a list of scales is made ahead of them.")
    table = to_table(guide.omega, times, cond, process=process)
    scales = np.asarray(table.params["values"], np.float64) + 1
    return scales[:, 0] if scales.ndim > 1 and scales.shape[1] == 1 else scales


def _write(path: Any, entries: Any) -> None:
    if path is None:
        return
    path = pathlib.Path(path)
    if path.suffix != ".json":
        raise ValueError(f"expected a file name that ends in .json, got {path.name!r}.")
    path.write_text(json.dumps(entries, indent=1))


def to_diffusers(
    guidance: Guidance | None,
    times: Any,
    process: Process | None = None,
    cond: Any = None,
    *,
    path: Any = None,
) -> list[Any]:
    """The guidance scale w = ω + 1 of each step, for diffusers' `guidance_scale`.

    docs/interop.md has the callback that sets them in a pipeline of diffusers, and the loop that
    sets them in one of its guiders. One trap: where w ≤ 1 a pipeline makes no unconditional pass
    and expects no embeddings of it, so that a list with such steps needs that very callback, and
    w < 1, which is ω < 0, can be had in a guider alone.

    Args:
        guidance: `gj.cfg` or `gj.rules.negative_prompt` with any ω, learned or not; None is the
            conditional model, w = 1.
        times: The grid of the run, (steps + 1,), falling: of a diffusers scheduler on a table,
            `np.append(process.times(scheduler.timesteps), 0)`.
        process: For ω in log-SNR or sigma, and a learned one.
        cond: The condition, for ω that depends on it: class ids 0 to C − 1 for a column a class,
            or any other, with a leading axis, for a column a sample.
        path: A .json file to write beside: "guidance_scale", "omega", "t" and "s", a row a step,
            and "timesteps", the table's index, where the process has a table.

    Returns:
        (steps,) numbers; under more conditions than one, a list of as many each.

    Raises:
        ValueError: If the rule is another, ω sees the state or lacks a condition, or the times
            don't fall.

    Example:
        >>> import guidejax as gj
        >>> guide = gj.guidance(gj.cfg, omega=gj.interval(6.5, lo=0.3, hi=0.8))
        >>> to_diffusers(guide, gj.uniform_times(4))
        [1.0, 7.5, 7.5, 1.0]

    Source: `diffusers.StableDiffusionPipeline`, `diffusers.guiders`, version 0.42.
    """
    scales = _scales(guidance, times, process, cond)
    grid = np.asarray(times, np.float64)
    entries = {"guidance_scale": scales, "omega": scales - 1, "t": grid[:-1], "s": grid[1:]}
    if process is not None and hasattr(process, "index"):
        entries["timesteps"] = np.asarray(process.index(jnp.asarray(grid[:-1])), np.float64)
    _write(path, {name: np.asarray(value).tolist() for name, value in entries.items()})
    return scales.tolist()


def to_comfyui(
    guidance: Guidance | None,
    times: Any,
    process: Process,
    cond: Any = None,
    *,
    path: Any = None,
) -> list[dict[str, float]]:
    """The guidance scale of each step by the sigma at which it starts, for ComfyUI.

    A ComfyUI sampler tells its `sampler_cfg_function` the sigma and not the step; a step holds from
    its sigma down to the next's. docs/interop.md has the function. sigma is the noise over the
    signal, σ(t)/α(t), as its ε and v models count; of a process with α + σ = 1, rectified flow
    above all, it is σ(t), as its flow models count.

    Args:
        guidance: As in `to_diffusers`.
        times: The grid of the run, (steps + 1,), falling.
        process: The process of the model.
        cond: One condition, (1, ...), for ω that depends on it.
        path: A .json file to write beside: the list.

    Returns:
        [{"sigma": ..., "cfg": w}, ...], a step each, sigma falling.

    Raises:
        ValueError: As `to_diffusers`, or if ω has more than one value a step.

    Example:
        >>> import guidejax as gj
        >>> guide = gj.guidance(gj.cfg, omega=gj.schedules.linear_ramp(2.0))
        >>> to_comfyui(guide, [1.0, 0.5, 0.0], gj.processes.rectified_flow())[1]["sigma"]
        0.5

    Source: `ModelPatcher.set_model_sampler_cfg_function` and `comfy/samplers.py`.
    """
    check_process(process)
    scales = _scales(guidance, times, process, cond)
    if scales.ndim > 1:
        raise ValueError(
            f"ω has {scales.shape[1]} values a step; expected one condition, (1, ...)."
        )
    t = jnp.asarray(np.asarray(times)[:-1], jnp.result_type(float))
    alpha, sigma = (np.asarray(value, np.float64) for value in (process.alpha(t), process.sigma(t)))
    if not np.allclose(alpha + sigma, 1, atol=1e-6):
        with np.errstate(divide="ignore"):
            sigma = sigma / alpha
    rows = [{"sigma": float(s), "cfg": float(w)} for s, w in zip(sigma, scales, strict=True)]
    _write(path, rows)
    return rows
