"""SigLIP and SigLIP 2 of fixed resolution: two towers trained by a sigmoid for each pair.

Parameters have the keys of transformers' `SiglipModel`. Published weights that load: Google's
SigLIP and SigLIP 2 of patch 14 and 16 at one resolution (Apache-2.0 licence); not those of the
"naflex" kind, which take images of any aspect.

    model = gj.models.siglip.load("google/siglip2-base-patch16-224")
    tokens = model.tokenizer(["a red apple"])
    text, image = model.text(tokens).embedding, model.image(x0).embedding

A pair's logit is exp(`logit_scale`) times the cosine of its embeddings, plus `logit_bias`.

References:
    Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; Tschannen et al., SigLIP 2:
    Multilingual Vision-Language Encoders with Improved Semantic Understanding, 2025.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from guidejax._arrays import Array
from guidejax.models import _files, _towers
from guidejax.models import tokenizer as _tokenizer
from guidejax.models._files import Rules, Shapes
from guidejax.models._layers import attend, layer_norm, linear, linear_shapes, norm_shapes
from guidejax.models._towers import ImageOutput as ImageOutput
from guidejax.models._towers import TextOutput as TextOutput
from guidejax.models.preprocess import SIGLIP_MEAN, SIGLIP_STD, Preprocess, preprocess_from

RULES = _towers.RULES


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Of a text tower.

    Attributes:
        width: Of its vectors.
        hidden: Of its layers' hidden units.
        layers: How many.
        heads: Of attention.
        embedding: Dimension of the head.
        activation: "gelu_pytorch_tanh", "gelu" or "quick_gelu".
        vocabulary: How many tokens there are: 256000 in SigLIP 2, 32000 in SigLIP.
        length: The most places.
        eps: Of the norms.

    Raises:
        ValueError: Where they make no tower.
    """

    width: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    embedding: int = 768
    activation: str = "gelu_pytorch_tanh"
    vocabulary: int = 256000
    length: int = 64
    eps: float = 1e-6

    def __post_init__(self):
        _towers.check_config(self)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Of an image tower, whose embedding is as wide as its vectors.

    Attributes:
        width: Of its vectors.
        hidden: Of its layers' hidden units.
        layers: How many.
        heads: Of attention.
        activation: "gelu_pytorch_tanh", "gelu" or "quick_gelu".
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
    activation: str = "gelu_pytorch_tanh"
    image_size: int = 224
    patch: int = 16
    eps: float = 1e-6

    def __post_init__(self):
        _towers.check_config(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """Of a checkpoint: of both towers; one is None where it was dropped."""

    text: TextConfig | None
    vision: VisionConfig | None

    def __post_init__(self):
        if self.text is None and self.vision is None:
            raise ValueError("got neither a text nor an image tower; expected one or both.")


# SigLIP 2.
BASE_16_224 = Config(TextConfig(), VisionConfig())
SO400M_14_384 = Config(
    TextConfig(width=1152, hidden=4304, layers=27, heads=16, embedding=1152),
    VisionConfig(width=1152, hidden=4304, layers=27, heads=16, image_size=384, patch=14),
)


def config_from(config: Mapping[str, Any]) -> Config:
    """The configuration that a checkpoint's config.json describes.

    What it doesn't say has transformers' defaults, those of SigLIP's base size with patch 16.

    Args:
        config: The file's contents.

    Raises:
        ValueError: For another model's configuration.

    Example:
        >>> text = {"vocab_size": 256000}
        >>> config_from({"model_type": "siglip", "text_config": text}) == BASE_16_224
        True
    """
    if config.get("model_type") != "siglip":
        raise ValueError(
            f"the configuration is of the model type {config.get('model_type')!r}; expected "
            "'siglip' (SigLIP 2 of the naflex kind, 'siglip2', isn't supported)."
        )
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    if not vision.get("vision_use_head", True):
        raise ValueError("the image tower has no pooling head; expected one with it.")
    width = text.get("hidden_size", 768)
    return Config(
        TextConfig(
            width=width,
            hidden=text.get("intermediate_size", 3072),
            layers=text.get("num_hidden_layers", 12),
            heads=text.get("num_attention_heads", 12),
            embedding=text.get("projection_size") or width,
            activation=text.get("hidden_act", "gelu_pytorch_tanh"),
            vocabulary=text.get("vocab_size", 32000),
            length=text.get("max_position_embeddings", 64),
            eps=text.get("layer_norm_eps", 1e-6),
        ),
        VisionConfig(
            width=vision.get("hidden_size", 768),
            hidden=vision.get("intermediate_size", 3072),
            layers=vision.get("num_hidden_layers", 12),
            heads=vision.get("num_attention_heads", 12),
            activation=vision.get("hidden_act", "gelu_pytorch_tanh"),
            image_size=_towers.square("image_size", vision.get("image_size", 224)),
            patch=_towers.square("patch_size", vision.get("patch_size", 16)),
            eps=vision.get("layer_norm_eps", 1e-6),
        ),
    )


def shapes(config: Config) -> Shapes:
    """Every key of a checkpoint with its shape.

    Args:
        config: Of the checkpoint.

    Example:
        >>> shapes(BASE_16_224)["vision_model.head.attention.in_proj_weight"]
        (2304, 768)
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
        found |= linear_shapes(f"{name}.head", text.embedding, text.width)
    if vision is not None:
        name, width, side = "vision_model", vision.width, vision.image_size // vision.patch
        found[f"{name}.embeddings.patch_embedding.weight"] = (width, 3, vision.patch, vision.patch)
        found[f"{name}.embeddings.patch_embedding.bias"] = (width,)
        found[f"{name}.embeddings.position_embedding.weight"] = (side**2, width)
        found |= _towers.encoder_shapes(
            f"{name}.encoder.layers", width, vision.hidden, vision.layers
        )
        found |= norm_shapes(f"{name}.post_layernorm", width)
        found[f"{name}.head.probe"] = (1, 1, width)
        found[f"{name}.head.attention.in_proj_weight"] = (3 * width, width)
        found[f"{name}.head.attention.in_proj_bias"] = (3 * width,)
        found |= linear_shapes(f"{name}.head.attention.out_proj", width, width)
        found |= norm_shapes(f"{name}.head.layernorm", width)
        found |= linear_shapes(f"{name}.head.mlp.fc1", vision.hidden, width)
        found |= linear_shapes(f"{name}.head.mlp.fc2", width, vision.hidden)
    if text is not None and vision is not None:
        found |= {"logit_scale": (1,), "logit_bias": (1,)}
    return found


def text(params: Mapping[str, Array], tokens: Any, config: TextConfig) -> TextOutput:
    """What the text tower makes of tokens.

    Each state sees all tokens, padding too, as it did in training: give rows of `config.length`
    tokens. The pooled state is the last one, whatever its token.

    Args:
        params: By the keys of `shapes`.
        tokens: Integers (batch, length), length at most `config.length`.
        config: Of the tower.

    Raises:
        ValueError: For tokens of another shape or dtype, and for those beyond the vocabulary.

    Example:
        >>> import jax.numpy as jnp
        >>> tower = TextConfig(8, 16, 1, 2, embedding=4, vocabulary=10, length=5)
        >>> params = {key: jnp.ones(s) for key, s in shapes(Config(tower, None)).items()}
        >>> text(params, jnp.array([[8, 3, 1, 0, 0]]), tower).embedding.shape
        (1, 4)
    """
    tokens, x = _towers.embed_tokens(params, tokens, config)
    if tokens.shape[1] != config.length:
        warnings.warn(
            f"tokens have length {tokens.shape[1]}, and SigLIP's text tower was trained on rows of "
            f"{config.length}, padding seen as well: pad them to that, as the model's `tokenizer` "
            "does.",
            stacklevel=2,
        )
    x, before = _towers.encode(params, "text_model.encoder.layers", x, config)
    hidden = layer_norm(params, "text_model.final_layer_norm", x, config.eps)
    pooled = hidden[:, -1]
    return TextOutput(hidden, before, pooled, linear(params, "text_model.head", pooled))


def image(params: Mapping[str, Array], pixels: Any, config: VisionConfig) -> ImageOutput:
    """What the image tower makes of pixels.

    A transformer over patches; a learned query attends to its normalised states, h, and the
    embedding is h + MLP(norm(h)). It is the pooled state as well.

    Args:
        params: By the keys of `shapes`.
        pixels: (batch, image_size, image_size, 3), normalised as `Preprocess` does.
        config: Of the tower.

    Raises:
        ValueError: For pixels of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> tower = VisionConfig(8, 16, 1, 2, image_size=8, patch=4)
        >>> params = {key: jnp.ones(s) for key, s in shapes(Config(None, tower)).items()}
        >>> image(params, jnp.zeros((3, 8, 8, 3)), tower).embedding.shape
        (3, 8)
    """
    name = "vision_model"
    x = _towers.embed_patches(params, pixels, config)
    x = x + params[f"{name}.embeddings.position_embedding.weight"]
    x, _ = _towers.encode(params, f"{name}.encoder.layers", x, config)
    x = layer_norm(params, f"{name}.post_layernorm", x, config.eps)
    name = f"{name}.head"
    # Queries', keys' and values' layers are packed into one.
    weights = jnp.split(params[f"{name}.attention.in_proj_weight"], 3)
    biases = jnp.split(params[f"{name}.attention.in_proj_bias"], 3)
    query = jnp.broadcast_to(params[f"{name}.probe"].astype(x.dtype), (len(x), 1, config.width))
    q, k, v = (
        linear({"in.weight": weight, "in.bias": bias}, "in", y)
        for weight, bias, y in zip(weights, biases, (query, x, x), strict=True)
    )
    h = linear(params, f"{name}.attention.out_proj", attend(q, k, v, config.heads))
    z = layer_norm(params, f"{name}.layernorm", h, config.eps)
    h = h + _towers.mlp(params, f"{name}.mlp", z, config.activation)
    return ImageOutput(h[:, 0], h[:, 0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Siglip(_towers.Towers):
    """SigLIP by its published weights: `params` by the keys of `shapes`, `config`, `preprocess`
    from images to pixels, `tokenizer` from texts to tokens; None where the checkpoint lacks it.
    """

    name = "SigLIP"
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
) -> Siglip:
    """A published SigLIP or SigLIP 2.

    Args:
        path_or_repo: A folder with config.json and safetensors files, as transformers saves; a
            safetensors file; or a repository of the Hugging Face hub.
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
    params = _towers.load_params(
        path, "a SigLIP with both towers" if len(towers) == 2 else f"SigLIP's {towers[0]} tower",
        shapes(config), [f"{n}_model" for n in towers], dtype=dtype, mesh=mesh, rules=rules,
    )  # fmt: skip
    folder, preprocess, tokenizer = _towers.folder_of(path), None, None
    if config.vision is not None:
        size = config.vision.image_size
        usual = Preprocess(size, SIGLIP_MEAN, SIGLIP_STD, crop=False)
        preprocess = preprocess_from(_towers.pixels_of(folder), size, usual)
    if config.text is not None and (folder / "tokenizer.json").is_file():
        tokenizer = _tokenizer.load_siglip(folder, config.text.length)
    return Siglip(params, config, preprocess, tokenizer)
