"""CLIP: equal to transformers', of the files that transformers saves, on one device and on many."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.parity import clip as parity
from experiments.parity.originals.common import layout, value
from guidejax.models import _towers, clip
from guidejax.models.preprocess import Preprocess

from .common import close, reference

TEXT = clip.TextConfig(
    width=16, hidden=32, layers=2, heads=2, embedding=8, vocabulary=20, length=6, end=19
)
VISION = clip.VisionConfig(
    width=24, hidden=32, layers=2, heads=2, embedding=8, image_size=16, patch=8
)
SMALL = clip.Config(TEXT, VISION)
ONLY_TEXT = clip.Config(dataclasses.replace(TEXT, embedding=None), None)
TOKENS = jnp.array([[18, 3, 4, 19, 19, 19], [18, 5, 19, 0, 7, 1]])


def make(config=SMALL):
    """Random parameters."""
    return {key: jnp.asarray(value(key, shape)) for key, shape in clip.shapes(config).items()}


def describe(config=SMALL):
    """A config.json."""
    text, vision = config.text, config.vision
    towers = {
        name: {
            "hidden_size": tower.width, "intermediate_size": tower.hidden,
            "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads,
        }
        for name, tower in (("text_config", text), ("vision_config", vision)) if tower
    }  # fmt: skip
    if text:
        more = {"vocab_size": 20, "max_position_embeddings": 6, "eos_token_id": 19}
        towers["text_config"] |= more
    if not vision:
        kind = "CLIPTextModelWithProjection" if text.embedding else "CLIPTextModel"
        alone = {"model_type": "clip_text_model", "architectures": [kind], "projection_dim": 8}
        return towers["text_config"] | alone
    towers["vision_config"] |= {"image_size": 16, "patch_size": 8}
    return {"model_type": "clip", "projection_dim": 8} | towers


def write(folder, tensors, config=SMALL):
    """A checkpoint as transformers saves it."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    save_file({k: np.asarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(describe(config)))
    return folder


@pytest.fixture
def x0():
    return jax.random.uniform(jax.random.key(0), (2, 20, 24, 3), minval=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip-towers", "clip-legacy", "clip-text"])
def test_it_is_its_original(name):
    close(parity.CASES[name](*reference(name)), 1e-5)


def test_the_small_originals_have_our_keys_and_shapes():
    for name in ("clip-towers", "clip-legacy", "clip-text"):
        about = reference(name)[1]
        assert layout(clip.shapes(clip.config_from(about["config"]))) == about["layout"], name


def test_every_published_size_has_the_keys_and_shapes_of_its_original():
    _, about = reference("clip-layouts")
    assert set(about["layouts"]) == set(parity.LAYOUTS)
    for name, found in about["layouts"].items():
        assert layout(parity.LAYOUTS[name]) == found, name


def test_a_text_sees_what_came_before_only():
    params = make()
    other = TOKENS.at[:, 4:].set(2)
    run = jax.jit(clip.text, static_argnums=2)
    a, b = run(params, TOKENS, TEXT), run(params, other, TEXT)
    np.testing.assert_allclose(a.hidden[:, :4], b.hidden[:, :4], rtol=1e-5)
    np.testing.assert_allclose(a.embedding, b.embedding, rtol=1e-5)
    assert not np.allclose(a.hidden[:, 4:], b.hidden[:, 4:])
    np.testing.assert_allclose(a.pooled[0], a.hidden[0, 3], rtol=1e-5)
    np.testing.assert_allclose(a.pooled[1], a.hidden[1, 2], rtol=1e-5)


def test_an_end_token_of_2_stands_for_the_largest():
    legacy = dataclasses.replace(TEXT, end=2)
    found, usual = (clip.text(make(), TOKENS, config) for config in (legacy, TEXT))
    np.testing.assert_array_equal(found.pooled, usual.pooled)


def test_a_tower_alone_has_no_embedding():
    found = clip.text(make(ONLY_TEXT), TOKENS, ONLY_TEXT.text)
    assert found.embedding is None
    model = clip.Clip(make(ONLY_TEXT), ONLY_TEXT)
    assert model.text(TOKENS).pooled.shape == (2, 16)
    with pytest.raises(ValueError, match="no image tower"):
        model.image(jnp.zeros((1, 16, 16, 3)))
    vision = clip.Config(None, VISION)
    with pytest.raises(ValueError, match="no text tower"):
        clip.Clip(make(vision), vision, Preprocess(16)).text(TOKENS)


def test_configurations_of_published_files():
    # As the repositories of OpenAI and LAION have them.
    large = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    towers = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
              "num_attention_heads": 16, "patch_size": 14}  # fmt: skip
    file = {
        "model_type": "clip", "projection_dim": 768, "text_config": {"eos_token_id": 2},
        "text_config_dict": large, "vision_config": {}, "vision_config_dict": towers,
    }  # fmt: skip
    assert clip.config_from(file) == clip.L_14
    assert clip.config_from(file | {"text_config_dict": None}).text.end == 2
    assert clip.config_from({"model_type": "clip_vision_model"}).vision.embedding is None
    found = clip.config_from(describe(ONLY_TEXT))
    assert found == ONLY_TEXT
    assert hash(found) == hash(ONLY_TEXT)
    with pytest.raises(ValueError, match="model type 'siglip'; expected 'clip'"):
        clip.config_from({"model_type": "siglip"})
    with pytest.raises(ValueError, match="expected a square"):
        clip.config_from({"model_type": "clip", "vision_config": {"image_size": [224, 112]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "3 heads don't divide a width of 16"),
        ({"layers": 0}, "layers is 0; expected a positive integer"),
        ({"activation": "relu"}, "'relu'; expected one of quick_gelu"),
    ],
)
def test_towers_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TEXT, **change)


@pytest.mark.slow
def test_a_checkpoint_is_what_was_saved(tmp_path, x0):
    params = make()
    # Older files hold these too.
    ids = {f"{t}_model.embeddings.position_ids": np.arange(6)[None] for t in ("text", "vision")}
    folder = write(tmp_path / "clip", params | ids)
    given = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": 16, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    model = clip.load(folder)
    assert (model.config, model.tokenizer) == (SMALL, None)
    assert set(model.params) == set(params)
    assert model.preprocess == Preprocess(16, (0.5,) * 3, (0.25,) * 3)
    want = clip.image(params, model.preprocess(x0), VISION)
    close({"image": (model.image(x0).embedding, want.embedding)}, 1e-5)
    # A file without a folder's config.json needs to be told.
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json .*give `config`"):
        clip.load(folder / "model.safetensors")
    half = clip.load(folder / "model.safetensors", config=SMALL, dtype=jnp.bfloat16)
    assert {value.dtype for value in half.params.values()} == {jnp.dtype(jnp.bfloat16)}


def test_pixels_are_described_in_either_of_two_files(tmp_path):
    """transformers 5 writes the image processor within processor_config.json."""
    assert _towers.pixels_of(tmp_path) == {}
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"processor_class": "CLIPProcessor", "image_processor": {"resample": 2}})
    )
    assert _towers.pixels_of(tmp_path) == {"resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 3}))
    assert _towers.pixels_of(tmp_path) == {"resample": 3}


def test_tokens_without_an_end_are_told():
    cut = TOKENS.at[1, 2].set(6)
    with pytest.raises(ValueError, match="row 1 of the tokens lacks the end token 19"):
        clip.text(make(), cut, TEXT)


def test_a_text_tower_of_a_pipeline_finds_its_tokenizer(tmp_path):
    folder = write(tmp_path / "text_encoder_2", make(ONLY_TEXT), ONLY_TEXT)
    about = reference("clip-tokenizer")[1]
    (tmp_path / "tokenizer_2").mkdir()
    parity.write_vocabulary(tmp_path / "tokenizer_2", about, "!")
    model = clip.load(folder)
    assert model.config == ONLY_TEXT
    tokens = model.tokenizer(["the cat"])
    assert tokens.shape == (1, 6)
    assert tokens[0, -1] == 0
    # Recent versions of transformers save a tower alone without its prefix.
    bare = {key.removeprefix("text_model."): value for key, value in make(ONLY_TEXT).items()}
    found = clip.load(write(tmp_path / "bare", bare, ONLY_TEXT))
    np.testing.assert_array_equal(found.text(TOKENS).hidden, model.text(TOKENS).hidden)


def test_files_of_other_models_are_told(tmp_path):
    params = make()
    key = "vision_model.post_layernorm.bias"
    rest = {k: v for k, v in params.items() if k != key}
    with pytest.raises(ValueError, match=f"1 of its {len(params)} keys are missing .{key}"):
        clip.load(write(tmp_path, rest))
    with pytest.raises(ValueError, match=r"text_projection.weight is \(9, 16\), expected \(8, 16"):
        clip.load(write(tmp_path, params | {"text_projection.weight": np.zeros((9, 16), "f")}))
    with pytest.raises(ValueError, match=r"1 are unknown \(more\)"):
        clip.load(write(tmp_path, params | {"more": np.zeros(3, "f")}))
    other = {"encoder.block.0.layer.0.SelfAttention.q.weight": np.zeros((4, 4), "f")}
    with pytest.raises(ValueError, match=r"is not CLIP's text tower.*look like T5"):
        clip.load(write(tmp_path, other, ONLY_TEXT))
    with pytest.raises(ValueError, match=r"is not CLIP's text tower.*look like CLIP, both towers"):
        clip.load(write(tmp_path, params, ONLY_TEXT))


@pytest.mark.slow
def test_under_jit_with_gradients_and_in_bfloat16(x0):
    model = clip.Clip(make(), SMALL, Preprocess(16))
    run = jax.jit(lambda model, x0, tokens: (model.image(x0), model.text(tokens)))
    image, text = run(model, x0, TOKENS)
    close({"image": (image.embedding, model.image(x0).embedding)}, 1e-5)
    close({"text": (text.embedding, model.text(TOKENS).embedding)}, 1e-5)
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
        (lambda m: m.text(jnp.zeros((2, 3))), "dtype float32 .* expected integers"),
        (lambda m: m.text(TOKENS[0]), r"shape \(6,\); expected integers of shape \(batch, length"),
        (lambda m: m.text(jnp.zeros((1, 7), int)), "length 7; .* places for 1 to 6"),
        (lambda m: m.text(TOKENS.at[0, 1].set(20)), "to 20; this text tower's vocabulary has 20"),
        (lambda m: m.image(jnp.zeros((1, 16, 16, 4))), "expected images .* Latents need"),
        (lambda m: m.image(jnp.zeros((16, 16, 3))), "expected floating-point images"),
        (
            lambda m: clip.image(m.params, jnp.zeros((1, 16, 8, 3)), VISION),
            r"expected \(batch, 16, 16, 3\)",
        ),
        (lambda m: clip.Config(None, None), "neither"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(clip.Clip(make(), SMALL, Preprocess(16)))


@pytest.mark.slow
@pytest.mark.parametrize("config", [clip.B_32, clip.B_16, clip.L_14, clip.H_14])
def test_published_sizes_run(config):
    """As shapes only: embeddings of both towers are of one dimension."""
    params = {
        key: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for key, shape in clip.shapes(config).items()
    }
    size = config.vision.image_size
    pixels = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((3, 77), jnp.int32)
    image = jax.eval_shape(lambda p, x: clip.image(p, x, config.vision), params, pixels)
    text = jax.eval_shape(lambda p, x: clip.text(p, x, config.text), params, tokens)
    assert image.embedding.shape == (2, config.text.embedding)
    assert text.embedding.shape == (3, config.text.embedding)
    assert text.hidden.shape == text.penultimate.shape == (3, 77, config.text.width)
    assert image.embedding.dtype == text.embedding.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parameters_are_placed_by_the_patterns_of_their_keys(kind, tmp_path, x0):
    folder = write(tmp_path, make())
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    placed, whole = clip.load(folder, mesh=mesh), clip.load(folder)
    spec = lambda key: placed.params[key].sharding.spec
    layer = "vision_model.encoder.layers.1"
    assert spec(f"{layer}.self_attn.q_proj.weight") == PartitionSpec("model", None)
    assert spec(f"{layer}.self_attn.q_proj.bias") == PartitionSpec("model")
    assert spec(f"{layer}.mlp.fc2.weight") == PartitionSpec(None, "model")
    assert spec("visual_projection.weight") == PartitionSpec()
    run = jax.jit(lambda model, x0, tokens: (model.image(x0), model.text(tokens)))
    images, tokens = jnp.tile(x0, (4, 1, 1, 1)), jnp.tile(TOKENS, (4, 1))
    want = run(whole, images, tokens)
    for found, expected in zip(run(placed, images, tokens), want, strict=True):
        close({"whole": (found.embedding, expected.embedding)}, 1e-5)
    split = jax.device_put((images, tokens), NamedSharding(mesh, PartitionSpec("data")))
    for found, expected in zip(run(placed, *split), want, strict=True):
        assert found.embedding.sharding.spec[0] == "data"
        close({"split": (found.embedding, expected.embedding)}, 1e-5)
    slope = jax.jit(jax.grad(lambda x0, model: jnp.sum(model.image(x0).embedding ** 2)))
    close({"gradient": (slope(split[0], placed), slope(images, whole))}, 1e-5)
