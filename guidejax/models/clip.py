"""CLIP: a text and an image tower whose embeddings point the same way where they belong together.

Parameters have the keys of transformers' `CLIPModel`, of both towers or of one. Published weights
that load: OpenAI's B/32, B/16 and L/14 (MIT licence), LAION's B/32, H/14 and bigG/14 (MIT licence),
and the text towers within Stable Diffusion 1.x, 2.x and XL (under those models' own licences).

    model = gj.models.clip.load("openai/clip-vit-large-patch14")
    tokens = model.tokenizer(["a photograph of an astronaut riding a horse"])
    text, image = model.text(tokens).embedding, model.image(x0).embedding

References:
    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021;
    Cherti et al., Reproducible Scaling Laws for Contrastive Language-Image Learning, 2023.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from guidejax._arrays import Array, is_concrete
from guidejax.models import _files, _towers
from guidejax.models import tokenizer as _tokenizer
from guidejax.models._files import Rules, Shapes
from guidejax.models._layers import layer_norm, linear, norm_shapes
from guidejax.models._towers import ImageOutput as ImageOutput
from guidejax.models._towers import TextOutput as TextOutput
from guidejax.models.preprocess import Preprocess, preprocess_from

RULES = _towers.RULES


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Of a text tower.

    Attributes:
        width: Of its vectors.
        hidden: Of its layers' hidden units.
        layers: How many.
        heads: Of attention.
        embedding: Dimension of the projection; None for a tower without one.
        activation: "quick_gelu", x σ(1.702 x), "gelu" or "gelu_pytorch_tanh".
        vocabulary: How many tokens there are.
        length: The most places.
        end: The end token, whose first place gives the pooled state. 2, as older files have it,
            is a mistake that stands for the largest token of a row.
        eps: Of the norms.

    Raises:
        ValueError: Where they make no tower.
    """

    width: int = 512
    hidden: int = 2048
    layers: int = 12
    heads: int = 8
    embedding: int | None = 512
    activation: str = "quick_gelu"
    vocabulary: int = 49408
    length: int = 77
    end: int = 49407
    eps: float = 1e-5

    def __post_init__(self):
        _towers.check_config(self)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Of an image tower.

    Attributes:
        width: Of its vectors.
        hidden: Of its layers' hidden units.
        layers: How many.
        heads: Of attention.
        embedding: Dimension of the projection; None for a tower without one.
        activation: "quick_gelu", x σ(1.702 x), "gelu" or "gelu_pytorch_tanh".
        image_size: Height and width in pixels.
        patch: Height and width of a patch in pixels.
        eps: Of the norms.

    Raises:
        ValueError: Where they make no tower.
    """

    width: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    embedding: int | None = 512
    activation: str = "quick_gelu"
    image_size: int = 224
    patch: int = 32
    eps: float = 1e-5

    def __post_init__(self):
        _towers.check_config(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """Of a checkpoint: of both towers, or of the one that it has."""

    text: TextConfig | None
    vision: VisionConfig | None

    def __post_init__(self):
        if self.text is None and self.vision is None:
            raise ValueError("got neither a text nor an image tower; expected one or both.")


B_32 = Config(TextConfig(), VisionConfig())
B_16 = Config(TextConfig(), VisionConfig(patch=16))
L_14 = Config(
    TextConfig(width=768, hidden=3072, heads=12, embedding=768),
    VisionConfig(width=1024, hidden=4096, layers=24, heads=16, embedding=768, patch=14),
)
H_14 = Config(
    TextConfig(width=1024, hidden=4096, layers=24, heads=16, embedding=1024, activation="gelu"),
    VisionConfig(
        width=1280, hidden=5120, layers=32, heads=16, embedding=1024, activation="gelu", patch=14
    ),
)
# The second text tower of SDXL.
BIG_G_TEXT = Config(
    TextConfig(width=1280, hidden=5120, layers=32, heads=20, embedding=1280, activation="gelu"),
    None,
)


def config_from(config: Mapping[str, Any]) -> Config:
    """The configuration that a checkpoint's config.json describes.

    What it doesn't say has transformers' defaults, those of B/32.

    Args:
        config: The file's contents.

    Raises:
        ValueError: For another model's configuration.

    Example:
        >>> config_from({"model_type": "clip", "projection_dim": 512}) == B_32
        True
    """
    kind = config.get("model_type")
    if kind == "clip":
        # Files of 2022 say it twice; what holds then is "..._dict".
        text = config.get("text_config_dict") or config.get("text_config") or {}
        vision = config.get("vision_config_dict") or config.get("vision_config") or {}
        shared = config.get("projection_dim", 512)
        return Config(_text_from(text, shared), _vision_from(vision, shared))
    alone = " ".join(config.get("architectures") or [])
    if kind == "clip_text_model":
        projection = config.get("projection_dim", 512) if "Projection" in alone else None
        return Config(_text_from(config, projection), None)
    if kind == "clip_vision_model":
        projection = config.get("projection_dim", 512) if "Projection" in alone else None
        return Config(None, _vision_from(config, projection))
    raise ValueError(
        f"the configuration is of the model type {kind!r}; expected 'clip', 'clip_text_model' or "
        "'clip_vision_model'."
    )


def _text_from(given: Mapping[str, Any], projection: int | None) -> TextConfig:
    end = given.get("eos_token_id", 49407)
    return TextConfig(
        width=given.get("hidden_size", 512),
        hidden=given.get("intermediate_size", 2048),
        layers=given.get("num_hidden_layers", 12),
        heads=given.get("num_attention_heads", 8),
        embedding=projection,
        activation=given.get("hidden_act", "quick_gelu"),
        vocabulary=given.get("vocab_size", 49408),
        length=given.get("max_position_embeddings", 77),
        end=end[0] if isinstance(end, list) else end,
        eps=given.get("layer_norm_eps", 1e-5),
    )


def _vision_from(given: Mapping[str, Any], projection: int | None) -> VisionConfig:
    return VisionConfig(
        width=given.get("hidden_size", 768),
        hidden=given.get("intermediate_size", 3072),
        layers=given.get("num_hidden_layers", 12),
        heads=given.get("num_attention_heads", 12),
        embedding=projection,
        activation=given.get("hidden_act", "quick_gelu"),
        image_size=_towers.square("image_size", given.get("image_size", 224)),
        patch=_towers.square("patch_size", given.get("patch_size", 32)),
        eps=given.get("layer_norm_eps", 1e-5),
    )


def shapes(config: Config) -> Shapes:
    """Every key of a checkpoint with its shape.

    Args:
        config: Of the checkpoint.

    Example:
        >>> shapes(B_32)["visual_projection.weight"]
        (512, 768)
    """
    found: dict[str, tuple[int, ...]] = {}
    text, vision = config.text, config.vision
    if text is not None:
        name = "text_model"
        found[f"{name}.embeddings.token_embedding.weight"] = (text.vocabulary, text.width)
        found[f"{name}.embeddings.position_embedding.weight"] = (text.length, text.width)
        found |= _towers.encoder_shapes(
            f"{name}.encoder.layers", text.width, text.hidden, text.layers
        )
        found |= norm_shapes(f"{name}.final_layer_norm", text.width)
        if text.embedding is not None:
            found["text_projection.weight"] = (text.embedding, text.width)
    if vision is not None:
        name, side = "vision_model", vision.image_size // vision.patch
        found[f"{name}.embeddings.class_embedding"] = (vision.width,)
        found[f"{name}.embeddings.patch_embedding.weight"] = (
            vision.width, 3, vision.patch, vision.patch,
        )  # fmt: skip
        found[f"{name}.embeddings.position_embedding.weight"] = (side**2 + 1, vision.width)
        # So spelled in the original.
        found |= norm_shapes(f"{name}.pre_layrnorm", vision.width)
        found |= _towers.encoder_shapes(
            f"{name}.encoder.layers", vision.width, vision.hidden, vision.layers
        )
        found |= norm_shapes(f"{name}.post_layernorm", vision.width)
        if vision.embedding is not None:
            found["visual_projection.weight"] = (vision.embedding, vision.width)
    if text is not None and vision is not None:
        found["logit_scale"] = ()
    return found


def text(params: Mapping[str, Array], tokens: Any, config: TextConfig) -> TextOutput:
    """What the text tower makes of tokens.

    A causal transformer: each state sees the tokens up to its own. The pooled state is that of the
    first end token, which has seen the whole text.

    Args:
        params: By the keys of `shapes`.
        tokens: Integers (batch, length), length at most `config.length`; each row has the end
            token.
        config: Of the tower.

    Raises:
        ValueError: For tokens of another shape or dtype, for those beyond the vocabulary, and for
            rows without the end token, where they are known.

    Example:
        >>> import jax.numpy as jnp
        >>> tower = TextConfig(8, 16, 1, 2, embedding=4, vocabulary=10, length=5, end=9)
        >>> params = {key: jnp.ones(s) for key, s in shapes(Config(tower, None)).items()}
        >>> text(params, jnp.array([[8, 3, 9, 9]]), tower).embedding.shape
        (1, 4)
    """
    tokens, x = _towers.embed_tokens(params, tokens, config)
    _check_end(tokens, config)
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
    x, before = _towers.encode(params, "text_model.encoder.layers", x, config, mask)
    hidden = layer_norm(params, "text_model.final_layer_norm", x, config.eps)
    marks = tokens if config.end == 2 else (tokens == config.end).astype(jnp.int32)
    # The sum picks one row; a gather would want a sharding of its own on explicit meshes.
    place = jax.nn.one_hot(jnp.argmax(marks, axis=-1), hidden.shape[1], dtype=hidden.dtype)
    pooled = jnp.sum(hidden * place[:, :, None], axis=1)
    projected = None if config.embedding is None else linear(params, "text_projection", pooled)
    return TextOutput(hidden, before, pooled, projected)


def _check_end(tokens: Array, config: TextConfig) -> None:
    """Raise `ValueError` for a row without an end token; 2 stands for the row's largest."""
    if config.end == 2 or not (is_concrete(tokens) and tokens.is_fully_addressable):
        return
    without = ~np.any(np.asarray(tokens) == config.end, axis=1)
    if np.any(without):
        raise ValueError(
            f"row {int(np.argmax(without))} of the tokens lacks the end token {config.end}, whose "
            "state stands for the text: it was cut off, or is of another tokenizer; make rows with "
            "the model's `tokenizer`."
        )


def image(params: Mapping[str, Array], pixels: Any, config: VisionConfig) -> ImageOutput:
    """What the image tower makes of pixels.

    A transformer over patches and one more state, whose last value, normalised, is the pooled one.

    Args:
        params: By the keys of `shapes`.
        pixels: (batch, image_size, image_size, 3), normalised as `Preprocess` does.
        config: Of the tower.

    Raises:
        ValueError: For pixels of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> tower = VisionConfig(8, 16, 1, 2, embedding=4, image_size=8, patch=4)
        >>> params = {key: jnp.ones(s) for key, s in shapes(Config(None, tower)).items()}
        >>> image(params, jnp.zeros((3, 8, 8, 3)), tower).embedding.shape
        (3, 4)
    """
    name = "vision_model"
    x = _towers.embed_patches(params, pixels, config)
    first = params[f"{name}.embeddings.class_embedding"].astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, x.shape[2])), x], axis=1)
    x = x + params[f"{name}.embeddings.position_embedding.weight"]
    x = layer_norm(params, f"{name}.pre_layrnorm", x, config.eps)
    x, _ = _towers.encode(params, f"{name}.encoder.layers", x, config)
    pooled = layer_norm(params, f"{name}.post_layernorm", x[:, 0], config.eps)
    projected = None if config.embedding is None else linear(params, "visual_projection", pooled)
    return ImageOutput(pooled, projected)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clip(_towers.Towers):
    """CLIP by its published weights: `params` by the keys of `shapes`, `config`, `preprocess` from
    images to pixels, `tokenizer` from texts to tokens; None where the checkpoint lacks it.
    """

    name = "CLIP"
    of_image = staticmethod(image)
    of_text = staticmethod(text)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    config: Config | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    download: bool = False,
) -> Clip:
    """A published CLIP, or a text tower of Stable Diffusion.

    Args:
        path_or_repo: A folder with config.json and safetensors files, as transformers saves; the
            folder "text_encoder" of a pipeline, whose tokenizer is found in "tokenizer" beside it;
            a safetensors file; or a repository of the Hugging Face hub.
        config: Of the checkpoint; read from its config.json by default.
        dtype: Of the parameters, in which the towers compute.
        mesh: Devices to place the parameters on.
        rules: How they are split there, by patterns of their keys; heads and hidden units over an
            axis "model" by default.
        download: Whether a repository may be downloaded.

    Raises:
        FileNotFoundError: Where there is no such folder.
        ValueError: Where the files are of another model, or damaged.
    """
    path = _files.find(path_or_repo, download=download)
    if config is None:
        config = _towers.config_of(path, config_from)
    towers = [n for n in ("text", "vision") if getattr(config, n) is not None]
    what = "a CLIP with both towers" if len(towers) == 2 else f"CLIP's {towers[0]} tower"
    params = _towers.load_params(
        path, what, shapes(config), [f"{n}_model" for n in towers],
        dtype=dtype, mesh=mesh, rules=rules,
    )  # fmt: skip
    folder, preprocess, tokenizer = _towers.folder_of(path), None, None
    if config.vision is not None:
        size = config.vision.image_size
        preprocess = preprocess_from(_towers.pixels_of(folder), size, Preprocess(size))
    if config.text is not None:
        for place in (folder, _towers.beside(folder)):
            if tokenizer is None and place is not None and _tokenizer.has_vocabulary(place):
                tokenizer = _tokenizer.load_clip(place, config.text.length)
    return Clip(params, config, preprocess, tokenizer)
