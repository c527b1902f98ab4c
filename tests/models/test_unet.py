"""Stable Diffusion's UNet: equal to diffusers' own, in each of its published configurations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity import unet as parity
from experiments.parity.originals.common import layout, value
from guidejax.models import _files, unet

from .common import close, reference

TINY = unet.Config((32, 64), transformers=(1, 0), heads=(2, 2), layers=(1, 1), text=8)


def filled(config):
    return {key: jnp.asarray(value(key, shape)) for key, shape in unet.shapes(config).items()}


@pytest.fixture(scope="module")
def params():
    return filled(TINY)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, 8, 8, 4))


@pytest.fixture(scope="module")
def cond():
    return {"text": jax.random.normal(jax.random.key(1), (2, 5, 8))}


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-5)


def test_every_published_size_has_the_keys_and_shapes_of_its_original():
    _, about = reference("unet-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    for name, found in about["layouts"].items():
        assert layout(parity.LAYOUTS[name]) == found, name
        assert unet.config_from(about["configs"][name]) == getattr(unet, name)


@pytest.mark.slow
def test_jit_and_bfloat16(params, x, cond):
    run = jax.jit(unet.network, static_argnames="config")
    t = jnp.array([500.0, 500.0])
    whole = run(params, x, t, cond, config=TINY)
    half = {key: leaf.astype(jnp.bfloat16) for key, leaf in params.items()}
    low = run(half, x.astype(jnp.bfloat16), t, cond, config=TINY)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), whole, atol=0.15)
    # Parameters in bfloat16, a state in float32: as `gj.sample` has it.
    scalar = lambda x: unet.network(half, x, 500, cond, TINY)
    assert jax.eval_shape(scalar, x).dtype == x.dtype


@pytest.mark.slow
def test_each_sample_is_by_itself(params, x, cond):
    run = jax.jit(unet.network, static_argnames="config")
    t = jnp.array([10.0, 900.0])
    both = run(params, x, t, cond, config=TINY)
    turned = run(params, x[::-1], t[::-1], {"text": cond["text"][::-1]}, config=TINY)
    np.testing.assert_allclose(both, turned[::-1], atol=1e-5)
    assert np.abs(both[0] - run(params, x, t[::-1], cond, config=TINY)[0]).max() > 1e-2


def test_equal_configurations_share_a_program():
    assert unet.Network(TINY) == unet.Network(unet.Config(**vars(TINY)))
    assert hash(unet.Network(TINY)) == hash(unet.Network(unet.Config(**vars(TINY))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type='ip_image_proj'"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim=256"),
        ({"addition_embed_type": "text"}, "addition_embed_type='text'"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "'AttnDownBlock2D'"),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "don't mirror"),
        ({"transformer_layers_per_block": [[1], 1, 1, 1]}, "transformer_layers_per_block"),
        ({"attention_head_dim": [8, 8]}, r"\[8, 8\] for 4 levels"),
        ({"something_new": 3}, "something_new=3"),
    ],
)
def test_an_unsupported_option_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        unet.config_from(changes)


def test_what_changes_nothing_is_let_pass():
    given = {"_class_name": "UNet2DConditionModel", "dropout": 0.0, "upcast_attention": True}
    given |= {"something_new": None, "cross_attention_dim": 768, "class_embed_type": None}
    assert unet.config_from(given) == unet.SD15


def test_wrong_input_is_told(params, x, cond):
    t = jnp.zeros(2)
    with pytest.raises(ValueError, match=r"shape \(2, 4, 8, 8\); expected .*channels last"):
        unet.network(params, x.transpose(0, 3, 1, 2), t, cond, TINY)
    with pytest.raises(ValueError, match=r"condition is an array; expected a dict of \['text'\]"):
        unet.network(params, x, t, cond["text"], TINY)
    with pytest.raises(ValueError, match=r"'text' has shape \(2, 5, 7\); expected \(2, length, 8"):
        unet.network(params, x, t, {"text": cond["text"][..., :7]}, TINY)
    xl = unet.Config((32, 64), (1, 0), 1, (2, 2), (1, 1), text=8, pooled=64, size=8)
    with pytest.raises(ValueError, match=r"condition is text; expected a dict of .*pooled"):
        unet.network(params, x, t, cond, xl)


def test_loading(tmp_path, params):
    from safetensors.numpy import save_file

    folder = tmp_path / "unet"
    folder.mkdir()
    config = reference("unet-SD15")[1]["config"]
    config |= {"cross_attention_dim": 8, "attention_head_dim": 2}
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = {key: np.asarray(leaf) for key, leaf in params.items()}
    save_file(tensors, path)
    found, sizes = unet.load(tmp_path, dtype=jnp.bfloat16)
    assert sizes == TINY
    assert found.keys() == params.keys()
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.bfloat16)}
    save_file({key: leaf for key, leaf in tensors.items() if "mid_block" not in key}, path)
    with pytest.raises(ValueError, match=r"a UNet of .* keys are missing .mid_block"):
        unet.load(folder)
    save_file({"text_model.encoder.layers.0.self_attn.q_proj.weight": np.ones((2, 2))}, path)
    with pytest.raises(ValueError, match="look like CLIP's text tower"):
        unet.load(folder)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="another shape"):
        unet.load(folder, config=unet.Config(**{**vars(TINY), "text": 16}))


@pytest.mark.devices
@pytest.mark.slow
def test_parameters_split_over_a_mesh_give_the_same(params, x, cond):
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
    placed = {
        key: jax.device_put(leaf, _files.placement(key, leaf.shape, mesh, unet.RULES))
        for key, leaf in params.items()
    }
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    split = jax.sharding.PartitionSpec("model", None)
    assert placed[f"{name}.to_q.weight"].sharding.spec == split
    run = jax.jit(unet.network, static_argnames="config")
    t = jnp.zeros(2)
    whole = run(params, x, t, cond, config=TINY)
    np.testing.assert_allclose(run(placed, x, t, cond, config=TINY), whole, atol=1e-5)
