"""MaxDiffusion: small models of its classes, its scheduler and its loops; takes its checkout."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import guidejax as gj
from experiments.interop.checks.common import KEY, commit, not_run, report

NAME = "MaxDiffusion"


def main(folder: str) -> None:
    """UNets of SD and SDXL, Flux, Wan; each alone where another can't be imported."""
    sys.path.insert(0, os.path.join(folder, "src"))
    version = commit(folder)
    checks = {
        "the UNets": unets,
        "Flux, without distilled guidance": lambda version: flux(version, False),
        "Flux, with distilled guidance": lambda version: flux(version, True),
        "Wan": wan,
        "Wan's loop": scale,
    }
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "tensor"))
    only = os.environ.get("INTEROP_PART", "")
    for what, check in checks.items():
        if only not in what:
            continue
        try:
            with mesh:
                check(version)
        except Exception as error:  # its modules import much that may be missing or too new
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            not_run(NAME, what, reason)


def _draw(seed: int, *shape: int) -> Any:
    return jax.random.normal(jax.random.key(seed), shape)


def _random(tree: Any) -> Any:
    """Parameters of a size that counts: those that begin at 0 as well."""
    leaves, treedef = jax.tree.flatten(tree)
    noise = [leaf + 0.05 * _draw(i, *jnp.shape(leaf)) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, noise)


def unets(version: str) -> None:
    """The loop of generate.py and generate_sdxl.py, with its DDIM, against `gj.sample`."""
    from maxdiffusion.models.unet_2d_condition_flax import FlaxUNet2DConditionModel
    from maxdiffusion.schedulers.scheduling_ddim_flax import FlaxDDIMScheduler

    common = {
        "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1,
        "cross_attention_dim": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4,
    }  # fmt: skip
    xl = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    }  # fmt: skip
    scheduler = FlaxDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        set_alpha_to_one=True,
    )  # fmt: skip
    state = scheduler.set_timesteps(scheduler.create_state(), 10, (2, 4, 8, 8))
    process = gj.processes.scaled_linear()
    times = np.append(process.times(np.asarray(state.timesteps)), 0)
    models: tuple[tuple[str, dict[str, Any]], ...] = (("SD", {}), ("SDXL", xl))
    for what, extra in models:
        model = FlaxUNet2DConditionModel(**common, **extra)
        params = _random(nnx_free(model.init_weights(KEY)))
        noise, text, null = _draw(1, 2, 4, 8, 8), _draw(2, 2, 7, 16), jnp.zeros((2, 7, 16))
        cond: Any = text
        uncond: Any = null
        both: dict[str, Any] = {"encoder_hidden_states": jnp.concatenate([null, text])}
        if extra:
            added = {"text_embeds": _draw(3, 2, 16), "time_ids": jnp.full((2, 6), 8.0)}
            zeros = {**added, "text_embeds": jnp.zeros((2, 16))}
            cond = {"encoder_hidden_states": text, "added_cond_kwargs": added}
            uncond = {"encoder_hidden_states": null, "added_cond_kwargs": zeros}
            halves = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), zeros, added)
            both["added_cond_kwargs"] = halves
        for rule in (gj.cfg, gj.adg):
            guide = gj.guidance(rule, omega=gj.from_scale(4.0))

            @jax.jit
            def theirs(guide, params, latents, model=model, state=state, both=both):
                grid = jnp.asarray(times, jnp.float32)

                def step(i, carry):
                    latents, carried = carry
                    t = carried.timesteps[i]
                    doubled = jnp.concatenate([latents] * 2)
                    told = jnp.full(4, t, jnp.int32)
                    output = model.apply({"params": params}, doubled, told, **both).sample
                    output = gj.interop.maxdiffusion.combine(
                        guide, output, first="uncond", prediction="eps",
                        x=latents, t=grid[i], s=grid[i + 1], process=process,
                    )  # fmt: skip
                    result = scheduler.step(carried, output, t, latents)
                    return result.prev_sample, result.state

                return jax.lax.fori_loop(0, len(grid) - 1, step, (latents, state))[0]

            denoise = gj.interop.maxdiffusion.unet(model, params, process=process)
            options: dict[str, Any] = {"cond": cond, "uncond": uncond, "guidance": guide}
            ours = gj.sample(KEY, denoise, noise, times=times, solver=gj.ddim(), **options)
            name = guide.links[0].rule.name
            got = theirs(guide, params, noise)
            report(NAME, version, f"the UNet of {what}, its loop and scheduler, {name}", got, ours)


def nnx_free(params: Any) -> Any:
    """Its parameters without the boxes of logical partitioning."""
    from flax.core import meta

    return meta.unbox(params)


def flux(version: str, distilled: bool) -> None:
    """The loop of generate_flux.py, Euler's: without CFG as it stands there, and with it."""
    from maxdiffusion.models.flux.transformers.transformer_flux_flax import FluxTransformer2DModel

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "tensor"))
    model = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=12,
        guidance_embeds=distilled, axes_dims_rope=(4, 6, 6), mesh=mesh,
    )  # fmt: skip
    noise, text, pooled = _draw(1, 2, 4, 16), _draw(2, 2, 5, 24), _draw(3, 2, 12)
    img_ids = jnp.asarray([[0, i, j] for i in range(2) for j in range(2)], jnp.float32)
    txt_ids = jnp.zeros((5, 3))
    fixed = {"img_ids": img_ids, "txt_ids": txt_ids}
    number = jnp.full(2, 3.5)
    given = {"encoder_hidden_states": text, "pooled_projections": pooled}
    params = _random(nnx_free(model.init(
        KEY, hidden_states=noise, timestep=jnp.zeros(2), guidance=number, **given, **fixed
    )["params"]))  # fmt: skip
    times = gj.uniform_times(8)

    # Under jit, as theirs is: its embedding of the time is in bfloat16, and of times up to 1000 a
    # rounding more or less is another time.
    @jax.jit
    def ask(x: Any, t: Any, cond: Any) -> Any:
        told = jnp.full(2, t, x.dtype)
        output = model.apply(
            {"params": params}, hidden_states=x, timestep=told, guidance=number, **cond, **fixed
        )
        return output.sample

    def loop(scale: Any) -> Any:
        x = noise
        for t, s in itertools.pairwise(times):
            pred = ask(x, t, given)
            if scale != 1:
                null = ask(x, t, jax.tree.map(jnp.zeros_like, given))
                pred = null + scale * (pred - null)
            x = x + (s - t) * pred
        return x

    denoise = gj.interop.maxdiffusion.flux(model, params, **fixed)
    cond = {**given, "distilled_guidance": number}
    uncond = {**jax.tree.map(jnp.zeros_like, given), "distilled_guidance": number}
    kind = "distilled guidance, " if distilled else ""
    for scale, what in ((1.0, f"{kind}no CFG"), (2.0, f"{kind}true CFG")):
        guide = gj.guidance(gj.cfg, omega=gj.from_scale(scale))
        options: dict[str, Any] = {"cond": cond, "uncond": uncond, "guidance": guide}
        ours = gj.sample(KEY, denoise, noise, times=times, solver=gj.euler(), **options)
        report(NAME, version, f"Flux, the loop of generate_flux.py, {what}", loop(scale), ours)


def _wan() -> Any:
    from maxdiffusion.models.wan.transformers.transformer_wan import WanModel

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "tensor"))
    model = WanModel(
        nnx.Rngs(0), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=8, ffn_dim=32, num_layers=1, mesh=mesh, scan_layers=False,
    )  # fmt: skip
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, _random(state))


def wan(version: str) -> None:
    """x̂0 of its transformer."""
    model = _wan()
    x, text = _draw(1, 2, 4, 2, 8, 8), _draw(2, 2, 5, 16)
    denoise = gj.interop.maxdiffusion.wan(model)
    theirs = x - 0.6 * model(
        hidden_states=x, timestep=jnp.full(2, 600.0), encoder_hidden_states=text
    )
    got = jax.jit(lambda denoise, x: denoise(x, 0.6, text))(denoise, x)
    report(NAME, version, "Wan, x̂0 of its transformer", theirs, got)


def scale(version: str) -> None:
    """`transformer_forward_pass` with the scale static, and with ours traced beside it."""
    from maxdiffusion.pipelines.wan.wan_pipeline import transformer_forward_pass

    model = _wan()
    x, text = _draw(1, 1, 4, 2, 8, 8), _draw(2, 1, 5, 16)
    parts = nnx.split(model, nnx.Param, ...)
    doubled = jnp.concatenate([x, x])
    embeds = jnp.concatenate([text, jnp.zeros_like(text)])  # conditional first there
    arguments = (*parts, doubled, jnp.full(2, 600.0), embeds)
    theirs, _ = transformer_forward_pass(*arguments, True, 5.0)
    traces = []

    @jax.jit
    def combine(scale: Any, raw: Any) -> Any:
        traces.append(1)
        guide = gj.guidance(gj.cfg, omega=gj.from_scale(scale))
        return gj.interop.maxdiffusion.combine(guide, raw, first="cond")

    raw, _ = transformer_forward_pass(*arguments, False, 1.0)
    ours = combine(5.0, raw)
    report(NAME, version, "Wan, transformer_forward_pass with scale 5, and combine", theirs, ours)
    combine(6.0, raw)
    report(NAME, version, "Wan, programs that combine compiles for two scales", len(traces), 1)


if __name__ == "__main__":
    main(sys.argv[1])
