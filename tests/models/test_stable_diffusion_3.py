"""Stable Diffusion 3: text to image from a checkpoint's folder, equal to diffusers' pipeline."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import guidejax as gj
from experiments.parity import stable_diffusion_3 as parity
from guidejax.models import stable_diffusion_3

from .common import close, reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    about = reference("stable_diffusion_3")[1]
    return parity.write(tmp_path_factory.mktemp("checkpoint") / "sd", about)


@pytest.fixture(scope="module")
def sd(folder):
    return stable_diffusion_3.load(folder, length=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_text_to_image(folder, dtype):
    sd = stable_diffusion_3.load(folder, dtype=dtype, length=12)
    cond = sd.prompt(["a cat", "a dog"])
    assert {leaf.dtype for leaf in cond.values()} == {jnp.dtype(dtype)}
    latents = gj.sample(
        jax.random.key(0), sd.denoise, sd.noise(jax.random.key(1), 2, (16, 12)),
        times=sd.times(3), cond=cond, uncond=sd.uncond, solver=gj.euler(),
        guidance=gj.guidance(gj.apg, gj.from_scale(4.0)),
    )  # fmt: skip
    assert latents.dtype == jnp.float32
    images = sd.decode(latents)
    assert images.shape == (2, 16, 12, 3)
    assert bool(jnp.all(jnp.isfinite(images)))
    assert np.abs(images[0] - images[1]).max() > 1e-2


@pytest.mark.slow
def test_in_float16_what_overflows_stays_wider(folder):
    sd = stable_diffusion_3.load(folder, dtype=jnp.float16)
    for params, dtype in (
        (sd.denoise.params, jnp.float16), (sd.t5.params, jnp.bfloat16), (sd.vae.params, jnp.float32)
    ):  # fmt: skip
        assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_conditions_have_one_structure(sd):
    cond, null = sd.prompt(["a cat", "dog"]), sd.uncond
    assert {key: leaf.shape for key, leaf in cond.items()} == {
        "text": (2, 77 + 12, 40), "pooled": (2, 32),
    }  # fmt: skip
    assert jax.tree.structure(cond) == jax.tree.structure(null)
    # Not zeros, but what "" is.
    assert np.abs(null["text"][:, 77:]).min(axis=(0, 2)).max() > 0
    assert not np.any(cond["text"][:, :77, 32:])
    with pytest.raises(ValueError, match="expected a list of strings"):
        sd.prompt("a cat")


@pytest.mark.slow
def test_without_t5_zeros_stand_for_it(folder, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    shutil.rmtree(place / "text_encoder_3")
    absent = stable_diffusion_3.load(place, length=5)
    left_out = stable_diffusion_3.load(folder, with_t5=False, length=5)
    for sd in (absent, left_out):
        assert sd.t5 is None
        text = sd.prompt(["a cat"])["text"]
        assert text.shape == (1, 82, 40)
        assert not np.any(text[:, 77:])


def test_noise_and_times(sd):
    assert sd.size == (16, 16)
    keys = jax.random.split(jax.random.key(0), 2)
    both = sd.noise(keys, 2, (16, 12))
    assert both.shape == (2, 8, 6, 16)
    assert sd.noise(keys[0], 3).shape == (3, 8, 8, 16)
    np.testing.assert_array_equal(both[1:], sd.noise(keys[1:], 1, (16, 12)))
    with pytest.raises(ValueError, match="16 × 14 pixels; expected multiples of 4"):
        sd.noise(keys[0], 1, (16, 14))
    assert sd.times(7).shape == (8,)
    np.testing.assert_allclose(sd.times(3, 1.0), [1, 0.5005, 0.001, 0], atol=1e-6)


def test_what_a_scheduler_says():
    read = stable_diffusion_3.shift_from
    assert read({}) == 1
    assert read({"shift": 5.0, "use_dynamic_shifting": False, "shift_terminal": None}) == 5
    for wrong in ({"use_dynamic_shifting": True}, {"num_train_timesteps": 500},
                  {"shift_terminal": 0.1}, {"use_karras_sigmas": True}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read(wrong)


def test_another_scheduler_s_shift_is_not_read_as_1():
    read = stable_diffusion_3.shift_from
    for wrong in ({"_class_name": "DDIMScheduler"}, {"flow_shift": 3.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read(wrong)
    assert read({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 2.0}) == 2


def copy(folder, tmp_path, part, **changes):
    """A checkpoint with another config of a part, and its tensors."""
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    about = reference("stable_diffusion_3")[1]
    about["parts"] = {part: about["parts"][part] | changes}
    shutil.rmtree(place / part)
    parity.write(tmp_path / "new", about)
    shutil.move(tmp_path / "new" / part, place / part)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        ("text_encoder", {"hidden_size": 32}, "are 48 wide together, but its transformer takes 40"),
        ("text_encoder_2", {"projection_dim": 8}, "24 numbers together.* takes 32"),
        ("text_encoder_3", {"d_model": 24}, "T5 of .* is 24 wide, but its transformer takes 40"),
        ("vae", {"latent_channels": 4}, "the VAE of .* latents of 4 channels.* takes 16"),
    ],
)
def test_parts_of_different_checkpoints_are_told(part, changes, match, folder, tmp_path):
    with pytest.raises(ValueError, match=match):
        stable_diffusion_3.load(copy(folder, tmp_path, part, **changes))


def test_a_folder_of_something_else_is_told(folder, tmp_path):
    (tmp_path / "other" / "unet").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"lacks transformer, vae, .* scheduler of the"):
        stable_diffusion_3.load(tmp_path / "other")
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    config = place / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2}))
    with pytest.raises(ValueError, match=r"are unknown .*its keys look like SD3's transformer"):
        stable_diffusion_3.load(place)
    (place / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks scheduler_config\.json"):
        stable_diffusion_3.load(place)


@pytest.mark.slow
def test_a_checkpoint_without_a_tokenizer_is_told(folder, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    (place / "tokenizer_3" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="without the files of a tokenizer"):
        stable_diffusion_3.load(place).prompt(["a cat"])


@pytest.mark.slow
@pytest.mark.devices
def test_devices_share_a_checkpoint(folder, sd):
    kind = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    placed = stable_diffusion_3.load(folder, length=12, mesh=mesh)
    for params, key in (
        (placed.denoise.params, "transformer_blocks.0.attn.to_q.weight"),
        (placed.towers[1].params, "text_model.encoder.layers.0.self_attn.q_proj.weight"),
        (placed.t5.params, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
    ):
        assert params[key].sharding.spec == PartitionSpec("model", None)
    x = sd.noise(jax.random.key(0), 1)
    program = jax.jit(lambda sd, cond: sd.denoise(x, 0.5, cond))
    ours, theirs = (program(each, each.prompt(["a cat"])) for each in (placed, sd))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
