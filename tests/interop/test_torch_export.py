"""The lists, and the snippets of docs/interop.md against stand-ins of their callers' protocols."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.interop.snippets.comfyui_function import with_scales
from experiments.interop.snippets.diffusers_callback import Scales
from guidejax.interop.torch_export import to_comfyui, to_diffusers
from guidejax.rules import make_rule
from tests.interop.common import learned

TIMES = gj.uniform_times(4)
FLOW, TABLE = gj.processes.rectified_flow(), gj.processes.scaled_linear()


def _halved(cond, uncond, omega):
    return cond + omega / 2 * (cond - uncond)


@pytest.mark.slow
def test_a_list_is_omega_plus_1_on_the_grid(tmp_path):
    omega = learned()
    guide = gj.guidance(gj.cfg, omega=omega)
    labels = jnp.arange(2)
    scales = to_diffusers(guide, TIMES, TABLE, labels, path=tmp_path / "scales.json")
    want = 1 + omega.table(TIMES, labels, process=TABLE)
    np.testing.assert_allclose(scales, want, rtol=1e-6)
    assert np.shape(to_diffusers(guide, TIMES, TABLE, labels[:1])) == (4,)
    held = json.loads((tmp_path / "scales.json").read_text())
    assert held["guidance_scale"] == scales
    assert held["timesteps"] == [999, 749, 499, 249]
    assert (held["t"][0], held["s"][-1]) == (1.0, 0.0)
    read = gj.schedules.load_table(tmp_path / "scales.json")
    np.testing.assert_allclose(read.params["values"], want - 1, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_guidance_that_is_no_list_of_scales_is_refused():
    with pytest.raises(ValueError, match="the rule adg"):
        to_diffusers(gj.guidance(gj.adg, omega=1.0), TIMES)
    with pytest.raises(ValueError, match="the rule cfg and rescale"):
        to_diffusers(gj.guidance(gj.chain(gj.cfg, gj.rescale.bind(phi=0.5)), omega=1.0), TIMES)
    own = make_rule(_halved, space="x0", name="cfg")
    with pytest.raises(ValueError, match="the rule cfg"):
        to_diffusers(gj.guidance(own, omega=1.0), TIMES)
    with pytest.raises(ValueError, match="a mask"):
        to_diffusers(gj.guidance(gj.cfg, omega=1.0, mask=jnp.ones(3)), TIMES)
    with pytest.raises(ValueError, match="fall"):
        to_diffusers(gj.guidance(gj.cfg, omega=1.0), TIMES[::-1])
    with pytest.raises(ValueError, match=r"\.json"):
        to_diffusers(None, TIMES, path="scales.txt")
    with pytest.raises(ValueError, match="2 values a step"):
        to_comfyui(gj.guidance(gj.cfg, omega=learned()), TIMES, TABLE, jnp.arange(2))
    assert to_diffusers(None, TIMES) == [1.0] * 4


def test_sigma_is_as_comfyui_counts_it():
    guide = gj.guidance(gj.cfg, omega=gj.interval(1.0, lo=0.3, hi=0.8))
    rows = to_comfyui(guide, TIMES, TABLE)
    np.testing.assert_allclose(rows[0]["sigma"], 14.6146, rtol=1e-4)  # Stable Diffusion's largest
    assert [row["cfg"] for row in rows] == [1, 2, 2, 1]
    assert [row["sigma"] for row in to_comfyui(guide, TIMES, FLOW)] == [1.0, 0.75, 0.5, 0.25]


def test_the_snippet_for_diffusers(tmp_path):
    """Their loop's order: the scale decides which embeddings a step uses."""
    guide = gj.guidance(gj.cfg, omega=gj.interval(6.5, lo=0.3, hi=0.8))
    to_diffusers(guide, TIMES, path=tmp_path / "scales.json")
    scales = Scales(tmp_path / "scales.json")

    class Embeddings(str):
        def chunk(self, count):
            return [Embeddings(part) for part in self.split("+")]

    class Pipe:
        _guidance_scale = scales.first

    pipe, embeds, used = Pipe(), Embeddings("uncond+cond"), []
    for step in range(4):
        used.append((round(pipe._guidance_scale, 4), str(embeds)))
        embeds = scales(pipe, step, 0, {"prompt_embeds": embeds})["prompt_embeds"]
    assert used == [
        (1.0, "uncond+cond"), (7.5, "uncond+cond"), (7.5, "uncond+cond"), (1.0, "cond"),
    ]  # fmt: skip


def test_the_snippet_for_comfyui_is_sample(tmp_path):
    """Its protocol: the function gets x − x̂0 of each branch, and sigma; Euler in sigma."""
    guide = gj.guidance(gj.cfg, omega=gj.schedules.linear_ramp(3.0))
    to_comfyui(guide, TIMES, FLOW, path=tmp_path / "scales.json")

    class Model:
        def clone(self):
            return self

        def set_model_sampler_cfg_function(self, function, disable_cfg1_optimization):
            self.function = function
            assert disable_cfg1_optimization

    model = with_scales(Model(), tmp_path / "scales.json")
    network = lambda x, t, cond: jnp.tanh(x + cond[:, None] + t[:, None])
    noise, cond = jax.random.normal(jax.random.key(0), (2, 3)), jnp.ones(2)
    x = noise
    for sigma, after in itertools.pairwise(TIMES):
        found = [x - network(x, jnp.full(2, sigma), c) for c in (cond, 0 * cond)]
        args = {"cond": found[0], "uncond": found[1], "sigma": jnp.full(2, sigma)}
        x0 = x - model.function(args)
        x = x + (after - sigma) / sigma * (x - x0)
    denoise = gj.denoiser(network, FLOW)
    options = {"cond": cond, "uncond": 0 * cond, "guidance": guide, "times": TIMES}
    ours = gj.sample(jax.random.key(0), denoise, noise, solver=gj.ddim(), **options)
    np.testing.assert_allclose(x, ours, rtol=1e-5, atol=1e-5)
