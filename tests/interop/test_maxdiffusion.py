"""Stand-ins with the call signatures of MaxDiffusion's models."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import guidejax as gj
from guidejax.interop import maxdiffusion
from tests.interop.common import KEY

draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
TEXT = draw(2, 2, 7, 16)


@dataclasses.dataclass
class Output:
    sample: Any


@dataclasses.dataclass(frozen=True)
class UNet:
    """Their UNet's `apply`: keeps what it was told."""

    def apply(self, variables, sample, timesteps, encoder_hidden_states, added_cond_kwargs=None):
        assert timesteps.dtype == jnp.int32
        assert sample.shape[1] == 4
        shift = encoder_hidden_states.mean((1, 2)) + timesteps / 1000
        if added_cond_kwargs is not None:
            shift = shift + added_cond_kwargs["text_embeds"].mean(1)
        channel = jnp.arange(4.0)[:, None, None]
        gain = variables["params"]["gain"]
        return Output(jnp.tanh(gain * sample + channel + shift[:, None, None, None]))


PARAMS = {"gain": jnp.float32(0.5)}
ADDED = {"text_embeds": draw(3, 2, 8), "time_ids": jnp.ones((2, 6))}


@pytest.mark.slow
@pytest.mark.parametrize("xl", [False, True])
def test_a_unet_s_own_loop_is_sample(xl):
    """generate.py: the doubled batch, the unconditional half first, DDIM in NumPy's indices."""
    process = gj.processes.scaled_linear()
    indices = np.arange(900, -1, -100)
    times = np.append(process.times(indices), 0)
    null = jnp.zeros_like(TEXT)
    cond, uncond = TEXT, null
    both = {"encoder_hidden_states": jnp.concatenate([null, TEXT])}
    if xl:
        zeros = jax.tree.map(jnp.zeros_like, ADDED)
        cond = {"encoder_hidden_states": TEXT, "added_cond_kwargs": ADDED}
        uncond = {"encoder_hidden_states": null, "added_cond_kwargs": zeros}
        both["added_cond_kwargs"] = jax.tree.map(lambda *a: jnp.concatenate(a), zeros, ADDED)
    traces = []

    @jax.jit
    def loop(scale, x):
        traces.append(1)
        for i, index in enumerate(indices):
            told = jnp.full(4, index, jnp.int32)
            output = UNet().apply({"params": PARAMS}, jnp.concatenate([x] * 2), told, **both).sample
            guide = gj.guidance(gj.cfg, omega=scale - 1)
            eps = maxdiffusion.combine(guide, output, first="uncond")
            x0 = (x - process.sigma(times[i]) * eps) / process.alpha(times[i])
            x = process.alpha(times[i + 1]) * x0 + process.sigma(times[i + 1]) * eps
        return x

    noise = draw(1, 2, 4, 6, 6)
    denoise = maxdiffusion.unet(UNet(), PARAMS)
    for scale in (3.0, 5.0):
        ours = gj.sample(
            KEY, denoise, noise, cond=cond, uncond=uncond, times=times, solver=gj.ddim(),
            guidance=gj.guidance(gj.cfg, omega=gj.from_scale(scale)),
        )  # fmt: skip
        np.testing.assert_allclose(loop(scale, noise), ours, rtol=2e-3, atol=2e-3)
    assert len(traces) == 1


def test_channels_last_is_the_same_unet():
    x = draw(1, 2, 4, 6, 6)
    first = maxdiffusion.unet(UNet(), PARAMS)(x, 0.5, TEXT)
    last = maxdiffusion.unet(UNet(), PARAMS, channels_last=True)(jnp.moveaxis(x, 1, -1), 0.5, TEXT)
    np.testing.assert_allclose(jnp.moveaxis(last, -1, 1), first, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class FluxModel:
    def apply(
        self, variables, hidden_states, encoder_hidden_states, pooled_projections, timestep,
        img_ids, txt_ids, guidance, return_dict=True, train=False,
    ):  # fmt: skip
        shift = encoder_hidden_states.mean((1, 2)) + pooled_projections.mean(1) + timestep
        if guidance is not None:
            shift = shift + guidance / 10
        place = img_ids.sum(-1)[None, :, None] + txt_ids.sum()
        return Output(jnp.tanh(variables["params"] * hidden_states + shift[:, None, None] + place))


IDS = {"img_ids": draw(5, 3, 3), "txt_ids": draw(6, 7, 3)}


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_distilled_guidance_is_an_input_beside_true_cfg(scale):
    noise, times = draw(1, 2, 3, 8), gj.uniform_times(5)
    given = {"encoder_hidden_states": TEXT, "pooled_projections": draw(4, 2, 8)}
    null = jax.tree.map(jnp.zeros_like, given)
    number = jnp.full(2, 3.5)
    x = noise
    for t, s in itertools.pairwise(times):
        ask = lambda c, x=x, t=t: (
            FluxModel()
            .apply({"params": 0.5}, x, timestep=jnp.full(2, t), guidance=number, **c, **IDS)
            .sample
        )
        x = x + (s - t) * (ask(null) + scale * (ask(given) - ask(null)))
    ours = gj.sample(
        KEY, maxdiffusion.flux(FluxModel(), 0.5, **IDS), noise,
        cond={**given, "distilled_guidance": number},
        uncond={**null, "distilled_guidance": number},
        guidance=gj.guidance(gj.cfg, omega=gj.from_scale(scale)), times=times, solver=gj.euler(),
    )  # fmt: skip
    np.testing.assert_allclose(x, ours, rtol=1e-5, atol=1e-5)


class Wan(nnx.Module):
    def __init__(self, rngs=None):
        self.gain = nnx.Param(jnp.float32(0.5))
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if rngs else None

    def __call__(self, hidden_states, timestep, encoder_hidden_states):
        shift = timestep / 1000 + encoder_hidden_states.mean((1, 2))
        out = jnp.tanh(self.gain[...] * hidden_states + shift[:, None, None, None, None])
        return self.dropout(out) if self.dropout else out


def test_wan_is_told_a_thousand_times_t_under_jit():
    x = draw(1, 2, 4, 2, 6, 6)
    denoise = maxdiffusion.wan(Wan())
    want = x - 0.6 * Wan()(x, jnp.full(2, 600.0), TEXT)
    got = jax.jit(lambda denoise, x: denoise(x, 0.6, TEXT))(denoise, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    named = denoise(x, 0.6, {"encoder_hidden_states": TEXT})
    np.testing.assert_allclose(named, want, rtol=1e-5, atol=1e-5)


def test_which_half_is_first():
    halves = jnp.array([[1.0], [2.0]])
    guide = gj.guidance(gj.cfg, omega=1.0)
    assert maxdiffusion.combine(guide, halves, first="uncond").tolist() == [[3.0]]
    assert maxdiffusion.combine(guide, halves, first="cond").tolist() == [[0.0]]


def test_what_is_wrong_is_said():
    guide, x = gj.guidance(gj.cfg, omega=1.0), draw(1, 2, 4, 6, 6)
    with pytest.raises(ValueError, match="first must be"):
        maxdiffusion.combine(guide, x, first="text")
    with pytest.raises(ValueError, match="doubled batch"):
        maxdiffusion.combine(guide, jnp.ones((3, 1)), first="cond")
    unet = maxdiffusion.unet(UNet(), PARAMS)
    with pytest.raises(ValueError, match="needs cond"):
        unet(x, 0.5)
    with pytest.raises(ValueError, match="got prompt_embeds"):
        unet(x, 0.5, {"prompt_embeds": TEXT})
    with pytest.raises(ValueError, match="NNX module"):
        maxdiffusion.wan(UNet())
    with pytest.raises(ValueError, match=r"module.eval\(\)"):
        maxdiffusion.wan(Wan(nnx.Rngs(0)))(draw(1, 2, 4, 2, 6, 6), 0.5, TEXT)
