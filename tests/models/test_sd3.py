"""MMDiT: equal to diffusers', with SD3's times."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import guidejax as gj
from experiments.parity import sd3 as parity
from experiments.parity.originals.common import layout
from experiments.parity.unet import filled
from guidejax.models import sd3

from .common import close, reference


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-3 if "sampling" in name else 1e-5)


def test_every_published_size_has_the_keys_and_shapes_of_its_original():
    _, about = reference("sd3-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    for name, found in about["layouts"].items():
        assert layout(parity.LAYOUTS[name]) == found, name
        assert sd3.config_from(about["configs"][name]) == getattr(sd3, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.LAYOUTS)
def test_a_published_size_takes_1024_pixels_and_three_towers(name):
    config, shape = getattr(sd3, name), jax.ShapeDtypeStruct
    half = {key: shape(size, jnp.bfloat16) for key, size in parity.LAYOUTS[name].items()}
    cond = {"text": shape((2, 333, 4096), jnp.bfloat16), "pooled": shape((2, 2048), jnp.bfloat16)}
    x, t = shape((2, 128, 128, 16), jnp.float32), shape((2,), jnp.float32)
    found = jax.eval_shape(lambda *args: sd3.network(*args, config), half, x, t, cond)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)


TINY = sd3.Config(
    heads=2, head=8, depth=2, channels=4, text=6, pooled=4, places=4, qk_norm=True, dual=(0,)
)


@pytest.fixture(scope="module")
def params():
    return filled(sd3.shapes(TINY))


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, 4, 6, 4), (2, 3, 6), (2, 4))
    x, text, pooled = (jax.random.normal(*each) for each in zip(keys, shapes, strict=True))
    return x, {"text": text, "pooled": pooled}


run = jax.jit(sd3.network, static_argnames="config")


@pytest.mark.slow
def test_it_has_data_at_time_0_and_is_told_a_thousandfold(params, inputs):
    x, cond = inputs
    output = run(params, x, jnp.full(2, 300.0), cond, TINY)
    found = jax.jit(lambda denoise: denoise(x, 0.3, cond))(sd3.ready(TINY, params))
    np.testing.assert_allclose(found, x - 0.3 * output, atol=1e-5)


@pytest.mark.slow
def test_equal_configurations_share_a_program(params, inputs):
    x, cond = inputs
    traces = []

    @jax.jit
    def program(denoise):
        traces.append(None)
        return denoise(x, 0.5, cond)

    program(sd3.ready(TINY, params))
    program(sd3.ready(sd3.Config(**vars(TINY)), params))
    assert len(traces) == 1


@pytest.mark.slow
def test_bfloat16_stays_and_is_near(params, inputs):
    x, cond = inputs
    half = {key: leaf.astype(jnp.bfloat16) for key, leaf in params.items()}
    whole, low = (run(p, x, jnp.full(2, 300.0), cond, TINY) for p in (params, half))
    assert low.dtype == x.dtype
    np.testing.assert_allclose(low, whole, atol=0.15)
    # No product takes float32, which would be slow; attention's logits are summed in it.
    fn = functools.partial(sd3.network, config=TINY)
    equations = jax.make_jaxpr(fn)(half, x, jnp.full(2, 300.0), cond).eqns
    products = [each for each in equations if each.primitive.name == "dot_general"]
    assert {v.aval.dtype for each in products for v in each.invars} == {jnp.dtype(jnp.bfloat16)}


def test_positions_are_the_middle_of_the_table(params, inputs):
    x, cond = inputs
    table = params["pos_embed.pos_embed"].reshape(1, 4, 4, 16)
    # Latents of 2 × 3 patches use rows 1 and 2 and columns 0 to 2.
    edge = table.at[:, [0, 3]].set(9.0).at[:, :, 3].set(9.0).reshape(1, 16, 16)
    t = jnp.full(2, 300.0)
    same = run({**params, "pos_embed.pos_embed": edge}, x, t, cond, TINY)
    np.testing.assert_array_equal(same, run(params, x, t, cond, TINY))


def test_times_are_those_of_the_paper_s_shift():
    np.testing.assert_allclose(sd3.times(4, 1.0), [1, 0.667, 0.334, 0.001, 0], atol=1e-6)
    found = sd3.times(20)
    assert found.shape == (21,)
    assert (found[0], found[-1]) == (1, 0)
    # A shift of 3 makes noise over signal three times as much.
    even = np.linspace(1, sd3.shifted(0.001, 3.0), 20)[1:]
    odds = lambda t: t / (1 - t)
    np.testing.assert_allclose(odds(found[1:-1]), 3 * odds(even), rtol=1e-4)
    for wrong in ((0, 3.0), (4, 0.0)):
        with pytest.raises(ValueError, match="expected steps ≥ 1 and shift > 0"):
            sd3.times(*wrong)


def test_wrong_inputs_are_named(params, inputs):
    x, cond = inputs
    call = lambda x, cond: sd3.network(params, x, jnp.ones(2), cond, TINY)
    with pytest.raises(ValueError, match=r"expected \(batch, height, width, 4\)"):
        call(x.transpose(0, 3, 1, 2), cond)
    for size in ((3, 4), (4, 10)):
        with pytest.raises(ValueError, match="expected multiples of 2 from 2 to 8"):
            call(jnp.ones((2, *size, 4)), cond)
    with pytest.raises(ValueError, match=r"condition is text; expected a dict"):
        call(x, {"text": cond["text"]})
    with pytest.raises(ValueError, match=r"'text' has shape \(2, 4\); expected \(2, length, 6\)"):
        call(x, {**cond, "text": cond["pooled"]})
    with pytest.raises(ValueError, match=r"'pooled' has shape \(2, 3\); expected \(2, 4\)"):
        call(x, {**cond, "pooled": jnp.ones((2, 3))})


def test_options_that_aren_t_supported_are_named():
    _, about = reference("sd3-layouts")
    config = about["configs"]["SD35_MEDIUM"]
    for name, value in (("qk_norm", "layer_norm"), ("caption_projection_dim", 7),
                        ("out_channels", 32), ("image_rotary", True)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            sd3.config_from({**config, name: value})
    with pytest.raises(ValueError, match="dual has block 24"):
        sd3.config_from({**config, "dual_attention_layers": [24]})


# Files

FILE = {
    "attention_head_dim": 8, "caption_projection_dim": 16, "dual_attention_layers": [0],
    "in_channels": 4, "joint_attention_dim": 6, "num_attention_heads": 2, "num_layers": 2,
    "out_channels": 4, "patch_size": 2, "pooled_projection_dim": 4, "pos_embed_max_size": 4,
    "qk_norm": "rms_norm", "_class_name": "SD3Transformer2DModel",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, params):
    write(tmp_path / "transformer", params)
    return tmp_path


def write(folder, tensors):
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(FILE))
    tensors = {key: np.asarray(value) for key, value in tensors.items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_a_checkpoint_is_read(folder, params):
    found, config = sd3.load(folder)
    assert config == TINY
    assert set(found) == set(params)
    assert all(np.array_equal(found[key], params[key]) for key in params)
    assert sd3.load(folder, dtype=jnp.bfloat16)[0]["proj_out.weight"].dtype == jnp.bfloat16


def test_a_wrong_file_says_which_keys_differ(folder, params):
    place = folder / "transformer"
    with pytest.raises(ValueError, match=r"keys are missing.*look like SD3's transformer"):
        sd3.load(place, config=sd3.Config(**{**vars(TINY), "depth": 3}))
    with pytest.raises(ValueError, match=r"another shape \(context_embedder.weight is \(16, 6\)"):
        sd3.load(place, config=sd3.Config(**{**vars(TINY), "text": 5}))
    write(place, {k: v for k, v in params.items() if "attn2.norm" not in k})
    with pytest.raises(ValueError, match=r"2 of its .* keys are missing .*attn2.norm_k"):
        sd3.load(place)
    (place / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json"):
        sd3.load(place)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parameters_are_placed_by_the_patterns_of_their_keys(kind, folder, inputs):
    x, cond = inputs
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    placed, config = sd3.load(folder, mesh=mesh)
    block = "transformer_blocks.0"
    spec = lambda key: placed[f"{block}.{key}"].sharding.spec
    assert spec("attn.add_q_proj.weight") == PartitionSpec("model", None)
    assert spec("attn2.to_out.0.weight") == PartitionSpec(None, "model")
    assert spec("ff_context.net.2.weight") == PartitionSpec(None, "model")
    assert spec("attn.norm_q.weight") == PartitionSpec()
    program = jax.jit(lambda denoise, x: denoise(x, 0.5, cond))
    whole = program(sd3.ready(*sd3.load(folder)[::-1]), x)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    found = program(sd3.ready(config, placed), split)
    assert found.sharding.spec[0] == "data"
    np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.slow
def test_a_guided_run_has_finite_gradients(params, inputs):
    x, cond = inputs
    denoise = sd3.ready(TINY, params)

    @jax.jit
    def loss(text):
        found = gj.sample(
            jax.random.key(0), denoise, x, cond={**cond, "text": text},
            uncond=jax.tree.map(lambda leaf: 0 * leaf[:1], cond), times=sd3.times(3),
            guidance=gj.guidance(gj.cfg, gj.from_scale(4.0)),
        )  # fmt: skip
        return jnp.sum(found**2)

    slope = jax.grad(loss)(cond["text"])
    assert 0 < float(jnp.abs(slope).max()) < np.inf
