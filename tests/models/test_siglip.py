"""SigLIP: equal to transformers', of the files that it saves, on one device and on many."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.parity import siglip as parity
from experiments.parity.originals.common import layout, value
from guidejax.models import clip, siglip
from guidejax.models.preprocess import SIGLIP_MEAN, SIGLIP_STD, Preprocess

from .common import close, reference

TEXT = siglip.TextConfig(
    width=16, hidden=32, layers=2, heads=2, embedding=24, vocabulary=300, length=6
)
VISION = siglip.VisionConfig(width=24, hidden=40, layers=2, heads=2, image_size=17, patch=8)
SMALL = siglip.Config(TEXT, VISION)
TOKENS = jnp.array([[8, 3, 4, 1, 0, 0], [8, 5, 1, 0, 0, 0]])
PIXELS = Preprocess(17, SIGLIP_MEAN, SIGLIP_STD, crop=False)
FILE = {
    "model_type": "siglip",
    "text_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_size": 24, "vocab_size": 300,
        "max_position_embeddings": 6,
    },
    "vision_config": {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 17, "patch_size": 8,
    },
}  # fmt: skip


def make():
    """Random parameters."""
    return {key: jnp.asarray(value(key, shape)) for key, shape in siglip.shapes(SMALL).items()}


def write(folder, tensors):
    """A checkpoint as transformers saves it."""
    from safetensors.numpy import save_file

    save_file({k: np.asarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(FILE))
    return folder


@pytest.fixture
def x0():
    return jax.random.uniform(jax.random.key(0), (2, 20, 24, 3), minval=-1)


@pytest.mark.slow
def test_it_is_its_original():
    arrays, about = reference("siglip-towers")
    close(parity.CASES["siglip-towers"](arrays, about), 1e-5)
    assert layout(siglip.shapes(siglip.config_from(about["config"]))) == about["layout"]


def test_every_published_size_has_the_keys_and_shapes_of_its_original():
    _, about = reference("siglip-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    for name, found in about["layouts"].items():
        assert layout(parity.LAYOUTS[name]) == found, name


def test_a_text_sees_all_of_itself():
    run = jax.jit(siglip.text, static_argnums=2)
    a, b = (run(make(), t, TEXT) for t in (TOKENS, TOKENS.at[:, 4].set(7)))
    assert np.all(np.abs(a.hidden - b.hidden).max(axis=-1) > 0)
    np.testing.assert_allclose(a.pooled, a.hidden[:, -1], rtol=1e-5)


def test_rows_that_are_not_padded_are_told():
    with pytest.warns(UserWarning, match="length 4, .* rows of 6"):
        jax.eval_shape(lambda tokens: siglip.text(make(), tokens, TEXT), TOKENS[:, :4])


@pytest.mark.slow
def test_a_checkpoint_is_what_was_saved(tmp_path, x0):
    params = make()
    folder = write(tmp_path, params)
    size = {"size": {"height": 17, "width": 17}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    (folder / "tokenizer.json").write_text(
        reference("siglip-tokenizer")[1]["file"], encoding="utf-8"
    )
    model = siglip.load(folder)
    assert (model.config, model.preprocess) == (SMALL, PIXELS)
    tokens = model.tokenizer("a cat")
    assert tokens.shape == (1, 6)
    want = siglip.text(params, tokens, TEXT).embedding
    close({"text": (model.text(tokens).embedding, want)}, 1e-5)
    want = siglip.image(params, PIXELS(x0), VISION).embedding
    close({"image": (model.image(x0).embedding, want)}, 1e-5)
    half = siglip.load(folder / "model.safetensors", config=SMALL, dtype=jnp.bfloat16)
    assert half.image(x0).embedding.dtype == jnp.bfloat16


def test_files_of_other_models_are_told(tmp_path):
    params = make()
    key = "vision_model.head.probe"
    rest = {k: v for k, v in params.items() if k != key}
    with pytest.raises(ValueError, match=f"1 of its {len(params)} keys are missing .{key}"):
        siglip.load(write(tmp_path, rest))
    with pytest.raises(ValueError, match=r"logit_bias is \(2,\), expected \(1,\)"):
        siglip.load(write(tmp_path, params | {"logit_bias": np.zeros(2, "f")}))
    other = clip.Config(clip.TextConfig(8, 16, 1, 2), clip.VisionConfig(8, 16, 1, 2))
    found = {key: np.zeros(shape, "f") for key, shape in clip.shapes(other).items()}
    with pytest.raises(ValueError, match=r"not a SigLIP with both towers.*look like CLIP"):
        siglip.load(write(tmp_path, found))
    with pytest.raises(ValueError, match=r"'siglip2', isn't supported"):
        siglip.config_from({"model_type": "siglip2"})
    with pytest.raises(ValueError, match="no pooling head"):
        siglip.config_from({"model_type": "siglip", "vision_config": {"vision_use_head": False}})


@pytest.mark.slow
def test_under_jit_with_gradients_and_in_bfloat16(x0):
    model = siglip.Siglip(make(), SMALL, PIXELS)
    run = jax.jit(lambda model, x0, tokens: (model.image(x0), model.text(tokens)))
    image, text = run(model, x0, TOKENS)
    close({"image": (image.embedding, model.image(x0).embedding)}, 1e-5)
    slope = jax.jit(jax.grad(lambda x0: jnp.sum(model.image(x0).embedding ** 2)))
    for images in (x0, jnp.zeros_like(x0), 30 * x0):
        found = slope(images)
        assert np.all(np.isfinite(found))
        assert np.any(found != 0)
    half = dataclasses.replace(model, params=jax.tree.map(lambda a: a.astype("bfloat16"), make()))
    for found, want in zip(run(half, x0, TOKENS), (image, text), strict=True):
        assert found.embedding.dtype == jnp.bfloat16
        error = np.abs(np.asarray(found.embedding, np.float32) - want.embedding)
        assert error.max() < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.text(jnp.zeros((1, 7), int)), "length 7; .* places for 1 to 6"),
        (lambda m: m.text(TOKENS.at[0, 1].set(300)), "to 300; .* vocabulary has 300"),
        (lambda m: siglip.image(m.params, jnp.zeros((1, 16, 16, 3)), VISION), "17, 17, 3"),
        (lambda m: siglip.Config(None, None), "neither"),
        (lambda m: siglip.Siglip(m.params, siglip.Config(TEXT, None)).image(0), "no image tower"),
        (lambda m: siglip.Siglip(m.params, siglip.Config(None, VISION)).text(0), "no text tower"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(siglip.Siglip(make(), SMALL, PIXELS))


@pytest.mark.slow
@pytest.mark.parametrize("config", [siglip.BASE_16_224, siglip.SO400M_14_384])
def test_published_sizes_run(config):
    """As shapes only: embeddings of both towers are of one dimension."""
    params = {
        key: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for key, shape in siglip.shapes(config).items()
    }
    size = config.vision.image_size
    pixels = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((3, 64), jnp.int32)
    image = jax.eval_shape(lambda p, x: siglip.image(p, x, config.vision), params, pixels)
    text = jax.eval_shape(lambda p, x: siglip.text(p, x, config.text), params, tokens)
    assert image.embedding.shape == (2, config.text.embedding)
    assert text.embedding.shape == (3, config.text.embedding)
    assert text.hidden.shape == text.penultimate.shape == (3, 64, config.text.width)
    assert image.embedding.dtype == text.embedding.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parameters_are_placed_by_the_patterns_of_their_keys(kind, tmp_path, x0):
    folder = write(tmp_path, make())
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    placed, whole = siglip.load(folder, mesh=mesh), siglip.load(folder)
    spec = lambda key: placed.params[key].sharding.spec
    assert spec("vision_model.head.mlp.fc1.weight") == PartitionSpec("model", None)
    assert spec("text_model.embeddings.token_embedding.weight") == PartitionSpec(None, "model")
    assert spec("vision_model.head.attention.in_proj_weight") == PartitionSpec()
    run = jax.jit(lambda model, x0, tokens: (model.image(x0), model.text(tokens)))
    images, tokens = jnp.tile(x0, (4, 1, 1, 1)), jnp.tile(TOKENS, (4, 1))
    split = jax.device_put((images, tokens), NamedSharding(mesh, PartitionSpec("data")))
    want = run(whole, images, tokens)
    for found, expected in zip(run(placed, *split), want, strict=True):
        assert found.embedding.sharding.spec[0] == "data"
        close({"split": (found.embedding, expected.embedding)}, 1e-5)
