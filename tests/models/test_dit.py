"""DiT, SiT, REPA and LightningDiT: equal to their originals, each with its own time and output."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import guidejax as gj
from experiments.parity import dit as parity
from experiments.parity.originals.common import layout, value
from guidejax.models import _files, dit

from .common import close, reference


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-3 if "sampling" in name else 1e-5)


def test_every_published_size_has_the_keys_and_shapes_of_its_original():
    _, about = reference("dit-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    for name, found in about["layouts"].items():
        assert layout(parity.LAYOUTS[name]) == found, name


def small(family="sit", **changes):
    net = dit.Config(family=family, width=24, depth=1, heads=2, side=4, classes=3, **changes)
    return net, {key: jnp.asarray(value(key, shape)) for key, shape in dit.shapes(net).items()}


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 4, 4, 4))


@pytest.mark.slow
def test_sit_has_data_at_its_time_1(x):
    net, params = small("sit")
    classes, t = jnp.array([0, 3]), 0.3
    output = dit.network(params, x, jnp.full(2, 1 - t), classes, net)
    # Its velocity is data − noise: x_t = (1 − t) x0 + t ε, so x0 = x_t + t (x0 − ε).
    np.testing.assert_allclose(dit.ready(net, params)(x, t, classes), x + t * output, rtol=1e-5)


@pytest.mark.slow
def test_repa_has_data_at_time_0(x):
    net, params = small("repa", learn_sigma=False)
    classes, t = jnp.array([0, 3]), 0.3
    output = dit.network(params, x, jnp.full(2, t), classes, net)
    np.testing.assert_allclose(dit.ready(net, params)(x, t, classes), x - t * output, rtol=1e-5)


def test_dit_is_told_a_row_of_its_table_and_predicts_noise(x):
    net, params = small("dit")
    denoise, classes = dit.ready(net, params), jnp.array([0, 3])
    t = 0.25
    alpha, sigma = denoise.process.alpha(t), denoise.process.sigma(t)
    eps = dit.network(params, x, jnp.full(2, denoise.process.index(t)), classes, net)
    np.testing.assert_allclose(denoise(x, t, classes), (x - sigma * eps) / alpha, rtol=1e-4)
    betas = np.linspace(1e-4, 0.02, 1000)  # The original's table.
    at = denoise.process.alpha(jnp.arange(1, 1001) / 1000) ** 2
    np.testing.assert_allclose(at, np.cumprod(1 - betas), rtol=1e-4)


@pytest.mark.parametrize("family", ["dit", "sit"])
def test_a_variance_doubles_the_output_and_is_left_out(family, x):
    net, params = small(family)
    assert params["final_layer.linear.weight"].shape[0] == 2 * 4 * 4
    whole = dit.network(params, x, jnp.ones(2), jnp.array([0, 3]), net)
    assert whole.shape == x.shape
    # Pixel (0, 0) of the first patch holds the first 4 of its 8 channels.
    params["final_layer.linear.bias"] = params["final_layer.linear.bias"].at[4:8].add(1.0)
    np.testing.assert_array_equal(
        dit.network(params, x, jnp.ones(2), jnp.array([0, 3]), net), whole
    )


def test_a_class_that_is_none_is_nan_and_a_wrong_shape_is_told(x):
    net, params = small()
    run = jax.jit(lambda cond: dit.network(params, x, jnp.ones(2), cond, net))
    for none in (4, -1):
        found = np.asarray(run(jnp.array([0, none])))
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all()
    with pytest.raises(ValueError, match=r"shape \(2, 4, 4, 3\); expected \(batch, 4, 4, 4\)"):
        dit.network(params, x[..., :3], jnp.ones(2), jnp.array([0, 1]), net)
    for wrong in (jnp.array([0.0, 1.0]), jnp.array([[0], [1]])):
        with pytest.raises(ValueError, match=r"expected classes \(2,\), integers from 0 to 3"):
            dit.network(params, x, jnp.ones(2), wrong, net)


def test_guidance_of_three_channels_is_the_originals(x):
    net, params = small("dit")
    denoise, classes, null = dit.ready(net, params), jnp.array([0, 1]), jnp.array([3, 3])
    guide = gj.guidance(gj.cfg, gj.from_scale(1.5), mask=jnp.arange(4) < 3)
    t, predict = (
        0.4,
        lambda c: dit.network(params, x, jnp.full(2, denoise.process.index(0.4)), c, net),
    )
    cond, uncond = predict(classes), predict(null)
    theirs = jnp.concatenate(
        [uncond[..., :3] + 1.5 * (cond - uncond)[..., :3], cond[..., 3:]], axis=-1
    )
    field = gj.guided(denoise, guide, cond=classes, uncond=3)
    np.testing.assert_allclose(field.eps(x, t), theirs, atol=2e-5)


@pytest.mark.slow
def test_bfloat16_stays_and_is_near(x):
    net, params = small()
    half = {key: leaf.astype(jnp.bfloat16) for key, leaf in params.items()}
    args = jnp.ones(2), jnp.array([0, 3]), net
    whole, low = dit.network(params, x, *args), dit.network(half, x, *args)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), whole, atol=0.15)
    assert dit.ready(net, half)(x, 0.5, jnp.array([0, 3])).dtype == x.dtype


def test_equal_configurations_share_a_program(x):
    net, params = small()
    traces = []

    @jax.jit
    def run(denoise):
        traces.append(None)
        return denoise(x, 0.5, jnp.array([0, 3]))

    run(dit.ready(net, params))
    run(dit.ready(dit.Config(**vars(net)), params))
    assert len(traces) == 1


def test_positions_are_made_where_a_file_has_none(tmp_path):
    """diffusers' copies leave them out; they are those of every original (checked by parity)."""
    from safetensors.numpy import save_file

    net, params = small("lightning", learn_sigma=False, modern=True)
    kept = {k: np.asarray(v) for k, v in params.items() if "pos" not in k and "rope" not in k}
    save_file(kept, tmp_path / "model.safetensors")
    found = dit.load(tmp_path, net).params
    assert found["pos_embed"].shape == (1, 4, 24)
    first = found["pos_embed"][0, 0]
    np.testing.assert_array_equal(first, np.tile(np.repeat([0.0, 1.0], 6), 2))
    square = found["feat_rope.freqs_cos"] ** 2 + found["feat_rope.freqs_sin"] ** 2
    np.testing.assert_allclose(square, 1, rtol=1e-6)


# Files


def write(folder, tensors, name="model.safetensors"):
    from safetensors.numpy import save_file

    save_file({key: np.asarray(value) for key, value in tensors.items()}, folder / name)
    return folder / name


def test_a_wrong_file_says_which_keys_differ(tmp_path):
    net, params = small()
    path = write(tmp_path, params)
    with pytest.raises(ValueError, match=r"another shape \(.*expected \(48, 4, 2, 2\)") as error:
        dit.load(path, dit.Config(**{**vars(net), "width": 48}))
    assert "keys look like DiT or SiT" in str(error.value)
    lacking = {k: v for k, v in params.items() if "mlp.fc2" not in k}
    with pytest.raises(ValueError, match=r"2 of its .* keys are missing \(blocks.0.mlp.fc2.bias"):
        dit.load(write(tmp_path, lacking), net)
    with pytest.raises(ValueError, match="1 are unknown"):
        dit.load(write(tmp_path, {**params, "other": jnp.ones(1)}), net)
    keys = {"text_model.encoder.layers.0.self_attn.q_proj.weight": jnp.ones((2, 2))}
    path = write(tmp_path, keys)
    with pytest.raises(ValueError, match="look like CLIP's text tower"):
        dit.load(path, net)


def test_half_a_file_a_pickle_and_nothing_are_named(tmp_path):
    net, params = small()
    path = write(tmp_path, params)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut off or damaged"):
        dit.load(path, net)
    path.unlink()
    (tmp_path / "SiT.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"python -m guidejax.models.convert .*SiT.pt"):
        dit.load(tmp_path / "SiT.pt", net)
    with pytest.raises(ValueError, match=r"models.convert .*SiT.pt"):
        dit.load(tmp_path, net)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        dit.load(tmp_path / "none.safetensors", net)


def test_a_model_in_parts_is_one_and_says_which_part_is_missing(tmp_path):
    net, params = small()
    keys = sorted(params)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for name, part in parts.items():
        write(tmp_path, {key: params[key] for key in part}, name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = dit.load(tmp_path, net).params
    assert all(np.array_equal(found[key], params[key]) for key in params)
    write(tmp_path, {key: params[key] for key in keys[3::2]}, "b.safetensors")
    with pytest.raises(ValueError, match=f"lacks {keys[1]}"):
        dit.load(tmp_path, net)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks b.safetensors of the 2 files"):
        dit.load(tmp_path, net)


def test_sizes_that_no_shape_shows_are_those_of_diffusers_config(tmp_path):
    net, params = small("dit")
    place = tmp_path / "transformer"
    place.mkdir()
    layout = dit._of_diffusers(dit.shapes(net))
    theirs = {}
    for key, source in layout.items():
        if key != "pos_embed":  # Computed there.
            parts = np.split(np.asarray(params[key]), len(source.keys))
            theirs |= dict(zip(source.keys, parts, strict=True))
    write(place, theirs, "diffusion_pytorch_model.safetensors")
    says = {"sample_size": 4, "patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 12,
            "num_layers": 1}  # fmt: skip
    (place / "config.json").write_text(json.dumps(says))
    found = dit.load(tmp_path, net).params
    np.testing.assert_array_equal(found["blocks.0.attn.qkv.bias"], params["blocks.0.attn.qkv.bias"])
    for change, match in (({"side": 8}, "sample_size=4"), ({"heads": 4}, "num_attention_heads=2")):
        with pytest.raises(ValueError, match=match):
            dit.load(tmp_path, dit.Config(**{**vars(net), **change}))


@pytest.mark.devices
def test_an_axis_may_be_split_by_several_names():
    mesh = jax.make_mesh((2, 4), ("fsdp", "model"))
    spec = lambda rule, shape: _files.placement("w", shape, mesh, {"w": PartitionSpec(*rule)}).spec
    both = ("fsdp", "model")
    assert spec((both, None), (8, 3)) == PartitionSpec(both, None)
    assert spec((both, None), (4, 3)) == PartitionSpec(None, None)  # 8 devices don't divide it
    assert spec((("data", "model"), None), (4, 3)) == PartitionSpec("model", None)


@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parameters_are_placed_by_the_patterns_of_their_keys(kind, tmp_path, x):
    net, params = small()
    path = write(tmp_path, params)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    placed = dit.load(path, net, mesh=mesh)
    spec = lambda key: placed.params[key].sharding.spec
    assert spec("blocks.0.mlp.fc1.weight") == PartitionSpec("model", None)
    assert spec("blocks.0.mlp.fc2.weight") == PartitionSpec(None, "model")
    assert spec("pos_embed") == PartitionSpec()
    whole = dit.load(path, net)
    run = jax.jit(lambda denoise: denoise(x, 0.5, jnp.array([0, 3])))
    np.testing.assert_allclose(run(placed), run(whole), atol=1e-5)
    split = jax.device_put(jnp.tile(x, (2, 1, 1, 1)), NamedSharding(mesh, PartitionSpec("data")))
    classes = jnp.array([0, 3, 0, 3])
    found = jax.jit(lambda denoise, x: denoise(x, 0.5, classes))(placed, split)
    assert found.sharding.spec[0] == "data"
    np.testing.assert_allclose(np.asarray(found)[:2], run(whole), atol=1e-5)
    # Whole where the devices don't divide it, or the mesh has no such axis.
    other = _files.placement("blocks.0.mlp.fc1.weight", (3, 24), mesh, dit.RULES)
    assert other.spec == PartitionSpec(None, None)
    alone = jax.make_mesh((8,), ("data",))
    assert dit.load(path, net, mesh=alone).params["pos_embed"].sharding.is_fully_replicated


def test_a_name_that_is_none_is_told(tmp_path):
    with pytest.raises(ValueError, match="unknown network 'SiT-M/2'"):
        dit.config("SiT-M/2")
    with pytest.raises(FileNotFoundError, match=r"huggingface_hub|hasn't been downloaded"):
        dit.load("owner/name-that-is-nowhere", small()[0])
