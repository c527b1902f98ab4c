"""Stable Diffusion's VAE: equal to diffusers' own, in its published configurations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity import vae as parity
from experiments.parity.originals.common import layout, value
from guidejax.models import vae

from .common import close, reference

TINY = vae.Config(channels=(32, 64), layers=1)


@pytest.fixture(scope="module")
def params():
    return {key: jnp.asarray(value(key, shape)) for key, shape in vae.shapes(TINY).items()}


@pytest.fixture(scope="module")
def pixels():
    return jax.random.uniform(jax.random.key(0), (2, 8, 4, 3), minval=-1, maxval=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-5)


def test_every_published_size_has_the_keys_and_shapes_of_its_original():
    _, about = reference("vae-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    for name, found in about["layouts"].items():
        assert layout(parity.LAYOUTS[name]) == found, name
        assert vae.config_from(about["configs"][name]) == getattr(vae, name)


@pytest.mark.slow
def test_latents_are_shifted_scaled_and_drawn(params, pixels):
    config = vae.Config(channels=(32, 64), layers=1, shift=0.5, scaling=2.0)
    mean, logvar = vae.encode(params, pixels, config)
    np.testing.assert_allclose(
        vae.latents(params, pixels, config), (mean - 0.5) * 2, rtol=1e-5, atol=1e-5
    )
    key = jax.random.key(3)
    drawn = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    found = vae.latents(params, pixels, config, key)
    np.testing.assert_allclose(found, (drawn - 0.5) * 2, rtol=1e-5, atol=1e-5)
    images = vae.images(params, found, config)
    np.testing.assert_allclose(images, vae.decode(params, drawn, config), atol=1e-4)


@pytest.mark.slow
def test_bfloat16_stays(params, pixels):
    half = {key: leaf.astype(jnp.bfloat16) for key, leaf in params.items()}
    model, whole = vae.Vae(half, TINY), vae.Vae(params, TINY)
    low = model.encode(pixels.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), whole.encode(pixels), atol=0.05)
    images = model.decode(low)
    assert images.dtype == jnp.bfloat16
    assert bool(jnp.all(jnp.isfinite(images)))
    assert model.decode(low.astype(jnp.float32)).dtype == jnp.float32


def test_the_decoder_is_a_pytree_that_compiles_once(params):
    traces = []

    @jax.jit
    def run(decode, z):
        traces.append(None)
        return decode(z)

    z = jnp.zeros((1, 2, 2, 4))
    first = run(vae.Vae(params, TINY).decode, z)
    again = run(vae.Vae(params, vae.Config(**vars(TINY))).decode, z)
    np.testing.assert_array_equal(first, again)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"latents_mean": [0.1]}, r"latents_mean=\[0.1\]"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"in_channels": 4, "out_channels": 3}, "out_channels=3"),
        ({"something_new": 3}, "something_new=3"),
    ],
)
def test_an_unsupported_option_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        vae.config_from(changes)


def test_wrong_input_is_told(params, pixels):
    with pytest.raises(ValueError, match=r"images of shape .*channels last"):
        vae.encode(params, pixels.transpose(0, 3, 1, 2), TINY)
    with pytest.raises(ValueError, match="7 × 4 pixels; expected multiples of 2"):
        vae.encode(params, pixels[:, :7], TINY)
    with pytest.raises(ValueError, match=r"latents of shape .* 4\), channels last"):
        vae.decode(params, pixels, TINY)


@pytest.mark.parametrize("kind", ["new", "old", "convolutions"])
def test_files_of_each_age_are_the_same(kind, tmp_path, params):
    from safetensors.numpy import save_file

    olds = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, leaf in params.items():
        name, leaf = key, np.asarray(leaf)
        for new, old in olds.items():
            if kind != "new" and f"attentions.0.{new}." in key:
                name = key.replace(new, old)
                leaf = leaf[..., None, None] if kind == "convolutions" and leaf.ndim > 1 else leaf
        tensors[name] = leaf
    config = reference("vae-SD15")[1]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    found = vae.load(tmp_path)
    assert found.config == TINY
    assert found.params.keys() == params.keys()
    for key, leaf in params.items():
        np.testing.assert_array_equal(found.params[key], leaf)


def test_a_wrong_file_says_which_keys_differ(tmp_path, params):
    from safetensors.numpy import save_file

    tensors = {key: np.asarray(leaf) for key, leaf in params.items() if "quant" not in key}
    path = tmp_path / "vae.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"4 of its .* missing .*quant_conv.* Diffusion's VAE"):
        vae.load(path, config=TINY)
    with pytest.raises(ValueError, match=r"no config\.json"):
        vae.load(path)
