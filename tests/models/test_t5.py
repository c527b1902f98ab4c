"""T5 1.1's encoder: equal to transformers'."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.parity import t5 as parity
from experiments.parity.originals import tiny
from experiments.parity.originals.common import layout
from experiments.parity.unet import filled
from guidejax.models import t5
from guidejax.models.tokenizer import load_t5

from .common import close, reference


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-5)


def test_the_published_size_has_the_keys_and_shapes_of_its_original():
    _, about = reference("t5-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    assert layout(parity.LAYOUTS["XXL"]) == about["layouts"]["XXL"]
    assert t5.config_from(about["configs"]["XXL"]) == t5.XXL


TINY = t5.Config(8, 16, layers=2, heads=2, head=6, vocabulary=len(tiny.PIECES))
FILE = {
    "model_type": "t5", "feed_forward_proj": "gated-gelu", "d_model": 8, "d_ff": 16, "d_kv": 6,
    "num_layers": 2, "num_heads": 2, "vocab_size": len(tiny.PIECES),
}  # fmt: skip
TOKENS = np.array([[5, 9, 12, 1, 0], [7, 1, 0, 0, 0]])

run = jax.jit(t5.encode, static_argnames="config")


@pytest.fixture(scope="module")
def params():
    return filled(t5.shapes(TINY))


def test_what_is_masked_changes_nothing(params):
    mask = TOKENS > 0
    found = run(params, TOKENS, mask, TINY)
    other = run(params, np.where(mask, TOKENS, 3), mask, TINY)
    np.testing.assert_array_equal(found[0, :4], other[0, :4])
    assert np.abs(found - run(params, TOKENS, None, TINY))[1, :2].max() > 1e-3


def test_bfloat16_stays_and_is_near(params):
    half = {key: leaf.astype(jnp.bfloat16) for key, leaf in params.items()}
    whole, low = (run(p, TOKENS, None, TINY) for p in (params, half))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), whole, atol=0.1)


def test_distances_share_buckets():
    found = t5._buckets(300, t5.XXL)
    # By hand: 8 single distances; then 8, 12, 16, 23, ... begin buckets, 16 ahead and 16 behind.
    starts = np.flatnonzero(np.diff(found[0])) + 1
    assert starts.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert found[0, 1] == 17
    assert found[1, 0] == 1
    assert found.max() == 31
    np.testing.assert_array_equal(found[200, :200], found[0, 1:201][::-1] - 16)


def test_wrong_inputs_are_named(params):
    with pytest.raises(ValueError, match=r"expected integers of shape \(batch, length\)"):
        t5.encode(params, np.ones((1, 3)), None, TINY)
    with pytest.raises(ValueError, match="of another tokenizer"):
        t5.encode(params, np.array([[500]]), None, TINY)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\); expected .* \(2, 5\)"):
        t5.encode(params, TOKENS, np.ones((2, 4)), TINY)
    with pytest.raises(ValueError, match="layers is 0; expected a positive integer"):
        t5.Config(layers=0)
    with pytest.raises(ValueError, match="30 buckets"):
        t5.Config(buckets=30)
    with pytest.raises(ValueError, match="'bert'; expected 't5'"):
        t5.config_from({"model_type": "bert"})
    with pytest.raises(ValueError, match="feed_forward_proj='relu'; expected 'gated-gelu'"):
        t5.config_from({"model_type": "t5"})


# Files


def write(folder, tensors):
    from safetensors.numpy import save_file

    place = folder / "text_encoder_3"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(FILE))
    tensors = {key: np.asarray(value) for key, value in tensors.items()}
    save_file(tensors, place / "model.safetensors")
    return place


@pytest.mark.slow
def test_a_checkpoint_is_read_with_the_tokenizer_beside_it(tmp_path, params):
    tiny.pieces(tmp_path / "tokenizer_3")
    model = t5.load(write(tmp_path, params), length=6)
    assert model.config == TINY
    assert model.tokenizer(["the cat", "a dog a dog a dog a dog"]).shape == (2, 6)
    tokens = model.tokenizer(["A cat!"])
    # A is none of its pieces; the end token comes last, then padding.
    assert tokens.tolist() == [[3, 2, 3, 33, 30, 1]]
    found = jax.jit(lambda model: model.text(tokens))(model)
    np.testing.assert_allclose(found, run(params, tokens, None, TINY), atol=1e-6)


def test_the_table_has_either_name_and_a_decoder_is_left_out(tmp_path, params):
    other = {k.replace("shared", "encoder.embed_tokens"): v for k, v in params.items()}
    found = t5.load(write(tmp_path, other))
    assert found.tokenizer is None
    np.testing.assert_array_equal(found.params["shared.weight"], params["shared.weight"])
    rest = {"lm_head.weight": jnp.ones((2, 2)), "decoder.final_layer_norm.weight": jnp.ones(2)}
    assert set(t5.load(write(tmp_path, {**other, **params, **rest})).params) == set(params)


def test_a_wrong_file_says_which_keys_differ(tmp_path, params):
    lacking = {k: v for k, v in params.items() if "wi_1" not in k}
    with pytest.raises(ValueError, match=r"2 of its .* missing .*DenseReluDense.wi_1.*like T5"):
        t5.load(write(tmp_path, lacking))
    place = write(tmp_path, params)
    with pytest.raises(ValueError, match=r"shared.weight is \(37, 8\), expected \(37, 9\)"):
        t5.load(place, config=t5.Config(**{**vars(TINY), "width": 9}))
    with pytest.raises(FileNotFoundError, match=r"expected tokenizer.json"):
        load_t5(place)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parameters_are_placed_by_the_patterns_of_their_keys(kind, tmp_path, params):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    placed = t5.load(write(tmp_path, params), mesh=mesh)
    layer = "encoder.block.0.layer"
    spec = lambda key: placed.params[f"{layer}.{key}.weight"].sharding.spec
    assert spec("0.SelfAttention.q") == PartitionSpec("model", None)
    assert spec("1.DenseReluDense.wo") == PartitionSpec(None, "model")
    assert spec("1.layer_norm") == PartitionSpec()
    found = jax.jit(lambda model: model.text(TOKENS))(placed)
    np.testing.assert_allclose(found, run(params, TOKENS, None, TINY), atol=1e-5)
    split = NamedSharding(mesh, PartitionSpec("data"))
    tokens, mask = (jax.device_put(a, split) for a in (TOKENS, TOKENS > 0))
    masked = jax.jit(lambda model, tokens, mask: model.text(tokens, mask))(placed, tokens, mask)
    np.testing.assert_allclose(masked, run(params, TOKENS, TOKENS > 0, TINY), atol=1e-5)
