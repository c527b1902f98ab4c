"""Text to image from a checkpoint's folder, equal to diffusers' pipelines."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.parity import stable_diffusion as parity
from guidejax.models import stable_diffusion

from .common import close, reference

# Whole samplings run for longer than they compile where XLA doesn't optimize them.
pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    about = reference("stable_diffusion-pipeline")[1]
    return parity.write(tmp_path_factory.mktemp("checkpoint") / "sd", about)


@pytest.fixture(scope="module")
def sd(folder):
    return stable_diffusion.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-5)


@pytest.mark.slow
def test_text_to_image(sd):
    """By CFG it is its original, above."""
    latents = gj.sample(
        jax.random.key(0), sd.denoise, sd.noise(jax.random.key(1), 2, (16, 16)),
        times=sd.times(4), cond=sd.prompt(["a cat", "a dog"]), uncond=sd.uncond,
        guidance=gj.guidance(gj.adg, gj.from_scale(5.0)),
    )  # fmt: skip
    images = sd.decode(latents)
    assert images.shape == (2, 16, 16, 3)
    assert bool(jnp.all(jnp.isfinite(images)))
    assert np.abs(images[0] - images[1]).max() > 1e-2
    encoded = jax.eval_shape(lambda sd: sd.encode(images), sd)
    assert encoded.shape == latents.shape


@pytest.mark.slow
def test_bfloat16(folder):
    sd = stable_diffusion.load(folder, dtype=jnp.bfloat16)
    cond = sd.prompt(["a cat"])
    assert cond["text"].dtype == jnp.bfloat16
    x = sd.noise(jax.random.key(1), 1, (16, 16))
    x0 = jax.eval_shape(lambda denoise: denoise(x, 0.5, cond), sd.denoise)
    assert x0.dtype == x.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(cond["text"])))
    # Beside float16, which SDXL's VAE overflows, the VAE stays in float32.
    half = stable_diffusion.load(folder, dtype=jnp.float16)
    assert half.denoise.params["conv_in.weight"].dtype == jnp.float16
    assert half.vae.params["decoder.conv_in.weight"].dtype == jnp.float32


def test_times_are_those_of_diffusers():
    schedule = stable_diffusion.Schedule()
    times = schedule.times(20)
    np.testing.assert_array_equal(
        np.round(1000 * times[:-1] - 1), reference("stable_diffusion-SD15")[0]["timesteps"]
    )
    assert times[-1] == 0.001
    assert stable_diffusion.Schedule(to_data=True).times(20)[-1] == 0
    # A last step from the table's first entry to itself is none.
    assert stable_diffusion.Schedule(offset=0).times(4).tolist() == [0.751, 0.501, 0.251, 0.001]
    assert schedule.times(4, "trailing").tolist() == [1.0, 0.75, 0.5, 0.25, 0.001]
    with pytest.raises(ValueError, match="steps=1000 don't fit"):
        schedule.times(1000)
    with pytest.raises(ValueError, match="steps=0 don't fit"):
        schedule.times(0)
    with pytest.raises(ValueError, match="unknown spacing='linspace'"):
        schedule.times(4, "linspace")


def test_what_a_scheduler_says():
    read = stable_diffusion.schedule_from
    found = read({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    assert (found.prediction, found.table, found.to_data) == ("v", "linear", True)
    assert float(found.process().alpha(1.0)) == 0
    for wrong in (
        {"beta_schedule": "laplace"}, {"prediction_type": "flow_prediction"},
        {"clip_sample": True}, {"trained_betas": [0.1]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read(wrong)


def test_a_scheduler_whose_noise_is_no_table_is_refused():
    read = stable_diffusion.schedule_from
    for wrong in (
        {"_class_name": "EDMDPMSolverMultistepScheduler"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {"sigma_data": 0.5}, {"shift": 1.0}, {"use_flow_sigmas": True},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            read(wrong)
    usual = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": False, "flow_shift": 1.0}
    assert read(usual) == read({})


@pytest.mark.slow
def test_conditions_have_one_structure(sd):
    cond, null = sd.prompt(["a cat", "dog"]), sd.uncond
    assert cond["text"].shape == (2, 77, 32)
    assert null["text"].shape == (1, 77, 32)
    with pytest.raises(ValueError, match="expected a list of strings"):
        sd.prompt("a cat")


@pytest.mark.slow
def test_xl_is_told_the_size_and_zeros_are_no_prompt(tmp_path):
    about = reference("stable_diffusion-XL-pipeline")[1]
    folder = parity.write(tmp_path / "xl", about)
    sd = stable_diffusion.load(folder)
    cond, null = sd.prompt(["a cat"] * 2, (16, 24)), sd.unprompted((16, 24))
    assert jax.tree.structure(cond) == jax.tree.structure(null)
    np.testing.assert_array_equal(cond["size"], [[16, 24, 0, 0, 16, 24]] * 2)
    np.testing.assert_array_equal(null["size"], [[16, 24, 0, 0, 16, 24]])
    assert cond["pooled"].shape == (2, 16)
    assert not np.any(null["text"])
    assert not np.any(null["pooled"])
    index = {"force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert np.any(stable_diffusion.load(folder).uncond["text"])
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(FileNotFoundError, match="text_encoder_2"):
        stable_diffusion.load(folder)


@pytest.mark.slow
def test_noise(sd):
    assert sd.size == (128, 128)
    assert sd.noise(jax.random.key(0), 3).shape == (3, 64, 64, 4)
    keys = jax.random.split(jax.random.key(0), 2)
    both = sd.noise(keys, 2, (16, 12))
    assert both.shape == (2, 8, 6, 4)
    np.testing.assert_array_equal(both[1:], sd.noise(keys[1:], 1, (16, 12)))
    with pytest.raises(ValueError, match="15 × 16 pixels; expected multiples of 2"):
        sd.noise(keys[0], 1, (15, 16))


def copy(folder, tmp_path, part, **changes):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    file = next(f for f in (place / part).glob("*config.json") if "token" not in f.name)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return place


def test_a_folder_of_something_else_is_told(folder, tmp_path):
    (tmp_path / "other" / "unet").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="lacks vae, text_encoder, tokenizer, scheduler"):
        stable_diffusion.load(tmp_path / "other")
    place = copy(folder, tmp_path, "unet", cross_attention_dim=48)
    with pytest.raises(ValueError, match="another shape"):
        stable_diffusion.load(place)
    shutil.rmtree(place)
    place = copy(folder, tmp_path, "scheduler", prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="prediction_type='flow_prediction'"):
        stable_diffusion.load(place)
    (place / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks scheduler_config\.json"):
        stable_diffusion.load(place)


@pytest.mark.devices
def test_all_parts_are_split_over_a_mesh(folder, sd):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = stable_diffusion.load(folder, mesh=mesh)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert placed.denoise.params[name].sharding.spec[0] == "model"
    assert placed.vae.params["decoder.mid_block.resnets.0.conv1.weight"].sharding.spec[0] == "model"
    found = placed.prompt(["a cat"])["text"]
    np.testing.assert_allclose(found, sd.prompt(["a cat"])["text"], atol=1e-5)
