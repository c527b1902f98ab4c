"""T5 1.1's encoder, the third text tower of Stable Diffusion 3.

Parameters have the keys of transformers' `T5EncoderModel`. Published weights that load: Google's
T5 1.1 of all sizes (Apache 2.0 licence), whose decoders are left out, and the folder
"text_encoder_3" of Stable Diffusion 3 and 3.5, which is XXL.

    model = gj.models.t5.load("checkpoint/text_encoder_3", dtype=jnp.bfloat16)
    states = model.text(model.tokenizer(["a lighthouse in a storm"]))

References:
    Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer, 1910.10683; Shazeer, GLU Variants Improve Transformer, 2002.05202.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from guidejax._arrays import Array
from guidejax.models import _files, _towers
from guidejax.models import tokenizer as _tokenizer
from guidejax.models._files import From, Layout, Params, Rules, Shapes
from guidejax.models._layers import linear, rms_norm, rows
from guidejax.models._network import automatic
from guidejax.models.tokenizer import Tokenizer

# Heads and hidden units of a layer over "model": one sum of all devices after each of its halves.
RULES: Rules = {
    r"SelfAttention\.[qkv]\.weight$": PartitionSpec("model", None),
    r"SelfAttention\.o\.weight$": PartitionSpec(None, "model"),
    r"relative_attention_bias\.weight$": PartitionSpec(None, "model"),
    r"DenseReluDense\.wi_[01]\.weight$": PartitionSpec("model", None),
    r"DenseReluDense\.wo\.weight$": PartitionSpec(None, "model"),
    r"^shared\.weight$": PartitionSpec(None, "model"),
}

# Files have the table under either name, or both; those of a whole T5 have its decoder too.
_TABLE, _ALIAS = "shared.weight", "encoder.embed_tokens.weight"
_IGNORED = (_ALIAS, "decoder.*", "lm_head.weight")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of an encoder; XXL's by default.

    Attributes:
        width: Of its vectors.
        hidden: Of its layers' hidden units.
        layers: How many.
        heads: Of attention.
        head: Width of each.
        vocabulary: How many tokens there are.
        buckets: How many numbers a head has for distances, half of them for either direction.
        distance: From which on distances count as one.
        eps: Of the norms.

    Raises:
        ValueError: Where they make no encoder.
    """

    width: int = 4096
    hidden: int = 10240
    layers: int = 24
    heads: int = 64
    head: int = 64
    vocabulary: int = 32128
    buckets: int = 32
    distance: int = 128
    eps: float = 1e-6

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} is {value!r}; expected a positive integer.")
        if self.buckets % 4 or self.distance <= self.buckets // 4:
            raise ValueError(
                f"there are {self.buckets} buckets up to a distance of {self.distance}; expected a "
                "multiple of 4, and a distance beyond a quarter of it."
            )


XXL = Config()


def config_from(config: Mapping[str, Any]) -> Config:
    """The configuration that a checkpoint's config.json describes.

    Args:
        config: The file's contents.

    Raises:
        ValueError: For another model's configuration, and for the first T5, whose layers differ.

    Example:
        >>> config_from({"model_type": "t5", "feed_forward_proj": "gated-gelu", "d_model": 4096,
        ...              "d_ff": 10240, "num_layers": 24, "num_heads": 64}) == XXL
        True
    """
    if config.get("model_type") != "t5":
        raise ValueError(
            f"the configuration is of the model type {config.get('model_type')!r}; expected 't5'."
        )
    if config.get("feed_forward_proj", "relu") != "gated-gelu":
        raise ValueError(
            f"the configuration has feed_forward_proj={config.get('feed_forward_proj', 'relu')!r}; "
            "expected 'gated-gelu', which T5 1.1 has."
        )
    return Config(
        width=config.get("d_model", 512),
        hidden=config.get("d_ff", 2048),
        layers=config.get("num_layers", 6),
        heads=config.get("num_heads", 8),
        head=config.get("d_kv", 64),
        vocabulary=config.get("vocab_size", 32128),
        buckets=config.get("relative_attention_num_buckets", 32),
        distance=config.get("relative_attention_max_distance", 128),
        eps=config.get("layer_norm_epsilon", 1e-6),
    )


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by its key; that of the tokens once, as "shared.weight".

    Example:
        >>> shapes(XXL)["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]
        (10240, 4096)
    """
    d, inner = config.width, config.heads * config.head
    found: dict[str, tuple[int, ...]] = {_TABLE: (config.vocabulary, d)}
    for i in range(config.layers):
        attention, mlp = (f"encoder.block.{i}.layer.{part}" for part in (0, 1))
        for part in "qkv":
            found[f"{attention}.SelfAttention.{part}.weight"] = (inner, d)
        found[f"{attention}.SelfAttention.o.weight"] = (d, inner)
        found[f"{mlp}.DenseReluDense.wi_0.weight"] = (config.hidden, d)
        found[f"{mlp}.DenseReluDense.wi_1.weight"] = (config.hidden, d)
        found[f"{mlp}.DenseReluDense.wo.weight"] = (d, config.hidden)
        for layer in (attention, mlp):
            found[f"{layer}.layer_norm.weight"] = (d,)
    found[_BIAS] = (config.buckets, config.heads)
    found["encoder.final_layer_norm.weight"] = (d,)
    return found


# The first block's serves all.
_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def encode(params: Mapping[str, Array], tokens: Any, mask: Any, config: Config) -> Array:
    """The states of tokens after the last layer and its norm.

    softmax(q kᵀ + b) v, without a scale, where b is a number of each head for the distance between
    two places; then W_o (gelu(W_0 x) · W_1 x).

    Args:
        params: By the keys of `shapes`.
        tokens: Integers (batch, length), as `load_t5` makes them.
        mask: True at tokens that others see, (batch, length); None for all, padding too, as SD3
            was trained.
        config: Of the encoder.

    Returns:
        (batch, length, width), in the dtype of the parameters. float16 overflows; bfloat16 doesn't.

    Raises:
        ValueError: For tokens or a mask of another shape, and for tokens beyond the vocabulary.

    Example:
        >>> tiny = Config(8, 16, layers=1, heads=2, head=4, vocabulary=10)
        >>> params = {key: jnp.ones(shape) for key, shape in shapes(tiny).items()}
        >>> encode(params, jnp.array([[3, 1, 0]]), None, tiny).shape
        (1, 3, 8)
    """
    tokens = _towers.checked_tokens(tokens, config.vocabulary)
    seen = None
    if mask is not None:
        if jnp.shape(mask) != tokens.shape:
            raise ValueError(
                f"the mask has shape {jnp.shape(mask)}; expected that of the tokens, "
                f"{tokens.shape}."
            )
        seen = jnp.asarray(mask, bool)[:, None, None]
    # (1, heads, length, length); in float32, in which logits are summed.
    bias = params[_BIAS].astype(jnp.float32)[_buckets(tokens.shape[1], config)]
    bias = bias.transpose(2, 0, 1)[None]
    x = rows(params[_TABLE], tokens)
    heads = (*tokens.shape, config.heads, config.head)
    for i in range(config.layers):
        name = f"encoder.block.{i}.layer.0"
        y = rms_norm(params, f"{name}.layer_norm", x, config.eps)
        q, k, v = (linear(params, f"{name}.SelfAttention.{c}", y).reshape(heads) for c in "qkv")
        y = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=seen, scale=1.0)
        x = x + linear(params, f"{name}.SelfAttention.o", y.reshape(*tokens.shape, -1))
        name = f"encoder.block.{i}.layer.1"
        x = x + _mlp(params, f"{name}.DenseReluDense",
                     rms_norm(params, f"{name}.layer_norm", x, config.eps))  # fmt: skip
    return rms_norm(params, "encoder.final_layer_norm", x, config.eps)


def _mlp(params: Mapping[str, Array], name: str, x: Array) -> Array:
    gate = jax.nn.gelu(linear(params, f"{name}.wi_0", x), approximate=True)
    return linear(params, f"{name}.wo", gate * linear(params, f"{name}.wi_1", x))


def _buckets(length: int, config: Config) -> np.ndarray:
    """Which of the buckets the distance of each place (column) from each other (row) is in.

    Half of them are for places behind. Of a half, half again are single distances, and the rest
    grow by a constant factor up to `config.distance`.
    """
    half, exact = config.buckets // 2, config.buckets // 4
    ahead = np.arange(length) - np.arange(length)[:, None]
    far = np.abs(ahead)
    growth = np.log(np.maximum(far, exact) / exact) / math.log(config.distance / exact)
    # Distances at which a bucket begins mustn't be rounded into the one before.
    grown = exact + np.floor(growth * (half - exact) + 1e-6).astype(int)
    return np.where(ahead > 0, half, 0) + np.where(far < exact, far, np.minimum(grown, half - 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class T5:
    """A checkpoint: its parameters are leaves, all else is static.

    Attributes:
        params: By the keys of `shapes`.
        config: Sizes.
        tokenizer: From texts to tokens; None where the checkpoint came without its files.
    """

    params: Params
    config: Config = dataclasses.field(metadata={"static": True})
    tokenizer: Tokenizer | None = dataclasses.field(default=None, metadata={"static": True})

    def text(self, tokens: Any, mask: Any = None) -> Array:
        """States of tokens (batch, length): `encode`."""
        run = lambda params, tokens, mask: encode(params, tokens, mask, self.config)  # noqa: E731
        return automatic(run, self.params, tokens, None if mask is None else jnp.asarray(mask))


def layout(config: Config, found: Shapes) -> Layout:
    """Which tensor of a file each of `shapes(config)` is.

    Args:
        config: Sizes.
        found: Shapes of the file's tensors.

    Example:
        >>> layout(XXL, {"encoder.embed_tokens.weight": (32128, 4096)})["shared.weight"].keys
        ('encoder.embed_tokens.weight',)
    """
    sources = dict(_files.plain(shapes(config)))
    if _TABLE not in found and _ALIAS in found:
        sources[_TABLE] = From((_ALIAS,))
    return sources


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    config: Config | None = None,
    length: int = 256,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    download: bool = False,
) -> T5:
    """A published T5's encoder.

    Args:
        path_or_repo: A folder with config.json and safetensors files, as transformers saves; the
            folder "text_encoder_3" of a pipeline, whose tokenizer is found in "tokenizer_3" beside
            it; a safetensors file; or a repository of the Hugging Face hub.
        config: Sizes; read from its config.json by default.
        length: Of the tokenizer's rows.
        dtype: Of the parameters, in which the encoder computes: bfloat16 for half of the memory,
            not float16, in which it overflows.
        mesh: Devices to split them over.
        rules: How; heads and hidden units over an axis "model" by default.
        download: Whether a repository may be downloaded.

    Raises:
        FileNotFoundError: Where there is no such folder.
        ValueError: Where the files are of another model, or damaged.
    """
    only = ("*.json", "model.safetensors", "model-*.safetensors")
    path = _files.find(path_or_repo, download=download, only=only)
    if config is None:
        config = _towers.config_of(path, config_from)
    tensors, expected = _files.Tensors(path), shapes(config)
    where = layout(config, tensors.shapes)
    what = f"T5's encoder of width {config.width} and {config.layers} layers"
    _files.check(what, path, _files.sources(expected, where), tensors.shapes, _IGNORED)
    params = _files.read(tensors, expected, where, dtype=dtype, mesh=mesh, rules=rules)
    folder, found = _towers.folder_of(path), None
    for place in (folder, _towers.beside(folder)):
        if found is None and place is not None and (place / "tokenizer.json").is_file():
            found = _tokenizer.load_t5(place, length)
    return T5(params, config, found)
