"""MaxDiffusion: its UNets and transformers as denoisers, and the line that guides in its loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from guidejax._arrays import Array, Tree, tree_map
from guidejax._denoisers import Denoiser, denoiser
from guidejax._guidance import Guidance
from guidejax.interop._nnx import split
from guidejax.processes.base import Process
from guidejax.processes.continuous import rectified_flow
from guidejax.processes.tables import scaled_linear

_UNET = ("encoder_hidden_states", "added_cond_kwargs")
_FLUX = ("encoder_hidden_states", "pooled_projections", "distilled_guidance")
_WAN = ("encoder_hidden_states", "encoder_hidden_states_image", "encoder_attention_mask")


def _named(cond: Any, names: tuple[str, ...], model: str) -> dict[str, Any]:
    """A condition as keyword arguments; the text's embeddings alone may come without a name."""
    if not isinstance(cond, Mapping):
        if cond is None:
            raise ValueError(f"{model} needs cond: the text's embeddings, or a dict with "
                             f"{', '.join(names)}.")  # fmt: skip
        return {"encoder_hidden_states": cond}
    unknown = sorted(set(cond) - set(names))
    if unknown or "encoder_hidden_states" not in cond:
        raise ValueError(
            f"{model}'s cond is a dict with encoder_hidden_states, and of {', '.join(names[1:])} "
            f"those that it takes; got {', '.join(cond)}."
        )
    return dict(cond)


def _sample(output: Any) -> Any:
    """The array of what a model returns."""
    output = output[0] if isinstance(output, tuple) else output
    return getattr(output, "sample", output)


@dataclasses.dataclass(frozen=True)
class _UNet:
    model: Any
    channels_last: bool

    def __call__(self, params, x, index, cond):
        given = _named(cond, _UNET, "the UNet")
        if self.channels_last:
            x = jnp.moveaxis(x, -1, 1)
        steps = jnp.round(index).astype(jnp.int32)  # as its own loops tell it
        output = _sample(self.model.apply({"params": params}, x, steps, **given))
        return jnp.moveaxis(output, 1, -1) if self.channels_last else output


def unet(
    model: Any,
    params: Any,
    *,
    process: Process | None = None,
    prediction: str = "eps",
    channels_last: bool = False,
) -> Denoiser:
    """Its `FlaxUNet2DConditionModel`, of Stable Diffusion 1, 2 or XL, as a denoiser.

    The UNet is (batch, channels, height, width) in and out. guidejax cares for the first axis
    alone, so the state may be that, or with the channels last where a mask, a number a channel or
    the VAE is. It is told whole indices of the table: a time in between is rounded, so take the
    grid of `process.times(indices)`, or `uniform_times(n)` where n divides the table.

    The condition is the text's embeddings (batch, tokens, width), or a dict of them as
    "encoder_hidden_states" and, for SDXL, "added_cond_kwargs": {"text_embeds": (batch, width),
    "time_ids": (batch, 6)}.

    Args:
        model: The linen module.
        params: Its parameters, `state.params`, without the "params" around them.
        process: Of its `alphas_cumprod`; None is Stable Diffusion's table, which XL has too.
        prediction: "eps", or "v" of Stable Diffusion 2's 768 model.
        channels_last: Whether the state has its channels last.

    Returns:
        A `Denoiser`.

    Raises:
        ValueError: At a call, if a part of the condition is missing or unknown.

    Example:
        >>> class Model:  # a stand-in with its signature
        ...     def apply(self, variables, sample, timesteps, encoder_hidden_states):
        ...         return (sample * variables["params"],)
        >>> denoise = unet(Model(), 0.0)
        >>> denoise(jnp.ones((1, 4, 8, 8)), 1.0, jnp.ones((1, 7, 16))).shape
        (1, 4, 8, 8)

    Source: `maxdiffusion/models/unet_2d_condition_flax.py`, `generate.py`, `generate_sdxl.py`.
    """
    network = _UNet(model, channels_last)
    table = scaled_linear() if process is None else process
    return denoiser(network, table, prediction, time="index", params=params)


@dataclasses.dataclass(frozen=True)
class _Flux:
    model: Any

    def __call__(self, params, x, t, cond):
        given = _named(cond, _FLUX, "Flux")
        # Its `guidance` is an input that the distilled model embeds, no weight of a combination.
        given["guidance"] = given.pop("distilled_guidance", None)
        output = self.model.apply(
            {"params": params["params"]},
            hidden_states=x,
            timestep=t.astype(x.dtype),
            img_ids=params["img_ids"],
            txt_ids=params["txt_ids"],
            **given,
        )
        return _sample(output)


def flux(model: Any, params: Any, *, img_ids: Any, txt_ids: Any) -> Denoiser:
    """Its `FluxTransformer2DModel` as a denoiser of packed latents (batch, patches, 64).

    Two things are called guidance there, and both may be used at once:

    * `distilled_guidance`, in the condition, (batch,): the number that FLUX.1-dev was distilled to
      take as an input, in one pass. It is the model's own argument `guidance`, and no ω.
    * the guidance of `gj.sample`, which combines a conditional and an unconditional pass: "true
      CFG". Give both conditions their `distilled_guidance`.

    Args:
        model: The linen module.
        params: Its parameters, without the "params" around them.
        img_ids: Positions of the patches, (patches, 3). Traced, with the parameters.
        txt_ids: Positions of the text's tokens, (tokens, 3).

    The condition is a dict: "encoder_hidden_states" (batch, tokens, width), "pooled_projections"
    (batch, width) and, of dev, "distilled_guidance". The model is told t in the latents' dtype, as
    upstream: in bfloat16 t keeps three digits at most, which float32 latents keep whole.

    Returns:
        A `Denoiser` of `rectified_flow`, whose shift by resolution is a matter of the grid:
        `gj.processes.shifted`, or shifted `times`.

    Raises:
        ValueError: At a call, if a part of the condition is missing or unknown.

    Example:
        >>> class Model:  # a stand-in with its signature
        ...     def apply(self, variables, *, hidden_states, timestep, img_ids, txt_ids,
        ...               encoder_hidden_states, pooled_projections, guidance):
        ...         return (hidden_states * guidance[:, None, None],)
        >>> cond = {"encoder_hidden_states": jnp.ones((1, 5, 8)),
        ...         "pooled_projections": jnp.ones((1, 8)), "distilled_guidance": jnp.full(1, 3.5)}
        >>> denoise = flux(Model(), {}, img_ids=jnp.zeros((4, 3)), txt_ids=jnp.zeros((5, 3)))
        >>> float(denoise(jnp.ones((1, 4, 64)), 0.5, cond)[0, 0, 0])
        -0.75

    Source: `maxdiffusion/models/flux/transformers/transformer_flux_flax.py`, `generate_flux.py`.
    """
    held = {"params": params, "img_ids": jnp.asarray(img_ids), "txt_ids": jnp.asarray(txt_ids)}
    return denoiser(_Flux(model), rectified_flow(), "velocity", params=held)


def _thousand(t: Array) -> Array:
    return 1000 * t


def _call_wan(module, x, steps, cond):
    given = _named(cond, _WAN, "Wan")
    return _sample(module(hidden_states=x, timestep=steps, **given))


def wan(model: Any) -> Denoiser:
    """Its NNX `WanModel` as a denoiser of latents (batch, channels, frames, height, width).

    Wan 2.2 has one transformer for high noise and one for low; make a denoiser of each.

    Args:
        model: The NNX module, in eval mode; its parameters are taken as they are now.

    The condition is the text's embeddings, or a dict of them as "encoder_hidden_states" with
    "encoder_hidden_states_image" and "encoder_attention_mask" where the model takes them.

    Returns:
        A `Denoiser` of `rectified_flow`; its scheduler's shift is a matter of the grid:
        `gj.processes.shifted`, or shifted `times`.

    Raises:
        ValueError: If the model is no NNX module, or changes its own state as it is called.

    Example:
        >>> from flax import nnx
        >>> class Model(nnx.Module):  # a stand-in with its signature
        ...     def __call__(self, hidden_states, timestep, encoder_hidden_states):
        ...         return 0 * hidden_states + timestep[:, None, None, None, None] / 1000
        >>> denoise = wan(Model())
        >>> float(denoise(jnp.ones((1, 4, 2, 8, 8)), 0.5, jnp.ones((1, 7, 16)))[0, 0, 0, 0, 0])
        0.75

    Source: `maxdiffusion/models/wan/transformers/transformer_wan.py`, `pipelines/wan`.
    """
    network, params = split(model, _call_wan)
    return denoiser(network, rectified_flow(), "velocity", time=_thousand, params=params)


def combine(guidance: Guidance, noise_pred: Tree, *, first: str, **where: Any) -> Any:
    """The line that guides in its loops: the two halves of a prediction in, the guided one out.

    In place of `uncond + guidance_scale * (cond - uncond)`; the scale is a leaf of the guidance,
    traced. Its Wan functions have `guidance_scale` among their static arguments, and compile for
    every value; ask them for the raw prediction, `do_classifier_free_guidance=False`, and combine
    after.

    Args:
        guidance: From `guidejax.guidance`, of "cond" and "uncond"; `gj.guidance(gj.cfg, scale - 1)`
            is their line.
        noise_pred: The network's output on the doubled batch, (2 batch, ...).
        first: Which half is first: "uncond" in `generate.py` and `generate_sdxl.py`, "cond" in its
            Wan pipelines.
        **where: What the guidance uses of x, t, s, condition, process, prediction, times and state,
            as in `Guidance.combine`; x and the condition of the undoubled batch. t and s are times
            in [0, 1], 1 being noise, and not the timesteps of its loops: timestep i of 1000 is
            (i + 1)/1000 on its tables; of its flow models, whose timesteps are 1000 σ, it is σ.

    Returns:
        The guided prediction, (batch, ...); with `state`, a pair of it and the next state.

    Raises:
        ValueError: If `first` is neither, or the batch is odd.

    Example:
        >>> import guidejax as gj
        >>> scale = 7.5
        >>> halves = jnp.array([[1.0], [2.0]])
        >>> combine(gj.guidance(gj.cfg, omega=scale - 1), halves, first="uncond").tolist()
        [[8.5]]

    Source: `loop_body` of `generate.py`; `transformer_forward_pass` of `wan_pipeline.py`.
    """
    if first not in ("cond", "uncond"):
        raise ValueError(
            f"first must be 'cond' or 'uncond', which half comes first; got {first!r}."
        )

    def half(number: int) -> Tree:
        def cut(leaf: Array) -> Array:
            if len(leaf) % 2:
                raise ValueError(
                    f"expected a doubled batch, (2 batch, ...); got shape {leaf.shape}."
                )
            return leaf[: len(leaf) // 2] if number == 0 else leaf[len(leaf) // 2 :]

        return tree_map(cut, noise_pred)

    names = ("cond", "uncond") if first == "cond" else ("uncond", "cond")
    return guidance.combine({name: half(i) for i, name in enumerate(names)}, **where)
