"""What CLIP and SigLIP share: two transformers of one kind of layer, and what they return."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from guidejax._arrays import Array, is_concrete
from guidejax.models import _files
from guidejax.models._files import From, Params, Rules, Shapes, Tensors
from guidejax.models._layers import (
    attend,
    conv,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
    rows,
)
from guidejax.models._network import automatic
from guidejax.models.preprocess import Preprocess
from guidejax.models.tokenizer import Tokenizer

# Heads and hidden units of a layer over "model": one sum of all devices after each of its halves.
RULES: Rules = {
    r"(q_proj|k_proj|v_proj|mlp\.fc1)\.weight$": PartitionSpec("model", None),
    r"(q_proj|k_proj|v_proj|mlp\.fc1)\.bias$": PartitionSpec("model"),
    r"(self_attn\.out_proj|mlp\.fc2)\.weight$": PartitionSpec(None, "model"),
    r"token_embedding\.weight$": PartitionSpec(None, "model"),
}

# Buffers that older files hold: 0, 1, 2, ...
IGNORED = ("*.position_ids",)

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class TextOutput(NamedTuple):
    """What a text tower makes of tokens, in the dtype of its parameters.

    Attributes:
        hidden: After the last layer and the final norm, (batch, length, width).
        penultimate: After the last layer but one, before any norm, likewise; what SDXL looks at.
        pooled: The state that stands for the text, (batch, width).
        embedding: What is compared with images, (batch, dimension), not normalised; None where
            the checkpoint has no projection.
    """

    hidden: Array
    penultimate: Array
    pooled: Array
    embedding: Array | None


class ImageOutput(NamedTuple):
    """What an image tower makes of pixels, in the dtype of its parameters.

    Attributes:
        pooled: Features of the image, (batch, width).
        embedding: What is compared with texts, (batch, dimension), not normalised; None where the
            checkpoint has no projection.
    """

    pooled: Array
    embedding: Array | None


def encoder_shapes(prefix: str, width: int, hidden: int, layers: int) -> Shapes:
    """Keys and shapes of the layers of a tower."""
    one: dict[str, tuple[int, ...]] = {}
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        one |= linear_shapes(f"self_attn.{name}", width, width)
    one |= norm_shapes("layer_norm1", width) | norm_shapes("layer_norm2", width)
    one |= linear_shapes("mlp.fc1", hidden, width) | linear_shapes("mlp.fc2", width, hidden)
    return {f"{prefix}.{n}.{key}": shape for n in range(layers) for key, shape in one.items()}


def encode(
    params: Mapping[str, Array], prefix: str, x: Array, config: Any, mask: Array | None = None
) -> tuple[Array, Array]:
    """x after all layers, and after all but the last; x itself where there is one layer only."""
    before = x
    for n in range(config.layers):
        before, name = x, f"{prefix}.{n}"
        y = layer_norm(params, f"{name}.layer_norm1", x, config.eps)
        q, k, v = (linear(params, f"{name}.self_attn.{c}_proj", y) for c in "qkv")
        y = attend(q, k, v, config.heads, mask)
        x = x + linear(params, f"{name}.self_attn.out_proj", y)
        x = x + mlp(params, f"{name}.mlp", layer_norm(params, f"{name}.layer_norm2", x, config.eps),
                    config.activation)  # fmt: skip
    return x, before


def mlp(params: Mapping[str, Array], name: str, x: Array, activation: str) -> Array:
    """Two linear layers with the activation between them."""
    return linear(params, f"{name}.fc2", ACTIVATIONS[activation](linear(params, f"{name}.fc1", x)))


def checked_tokens(tokens: Any, vocabulary: int) -> Array:
    """Tokens as an array (batch, length); `ValueError` where they are no tokens."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.ndim != 2:
        raise ValueError(
            f"tokens have dtype {tokens.dtype} and shape {tokens.shape}; expected integers of "
            "shape (batch, length), as a tokenizer makes them."
        )
    if is_concrete(tokens) and tokens.is_fully_addressable and tokens.size:
        values = np.asarray(tokens)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"tokens run from {low} to {high}; this text tower's vocabulary has {vocabulary}: "
                "they are of another tokenizer."
            )
    return tokens


def embed_tokens(params: Mapping[str, Array], tokens: Any, config: Any) -> tuple[Array, Array]:
    """The tokens as an array, and their vectors with those of their places."""
    tokens = checked_tokens(tokens, config.vocabulary)
    if not 1 <= tokens.shape[1] <= config.length:
        raise ValueError(
            f"tokens have length {tokens.shape[1]}; this text tower has places for 1 to "
            f"{config.length}."
        )
    table = params["text_model.embeddings.token_embedding.weight"]
    places = params["text_model.embeddings.position_embedding.weight"]
    return tokens, rows(table, tokens) + places[: tokens.shape[1]]


def embed_patches(params: Mapping[str, Array], pixels: Any, config: Any) -> Array:
    """Vectors of the patches, (batch, patches, width), without those of their places."""
    pixels, size = jnp.asarray(pixels), config.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise ValueError(
            f"pixels have shape {pixels.shape}; expected (batch, {size}, {size}, 3), as the "
            "model's `preprocess` makes them of images in [-1, 1]."
        )
    name = "vision_model.embeddings.patch_embedding"
    x = conv(params, name, pixels.astype(params[f"{name}.weight"].dtype), stride=config.patch)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def check_config(config: Any) -> None:
    """Raise `ValueError` where a tower's numbers make no tower."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "int" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{field.name} is {value!r}; expected a positive integer.")
    if config.width % config.heads:
        raise ValueError(f"{config.heads} heads don't divide a width of {config.width}.")
    if config.activation not in ACTIVATIONS:
        raise ValueError(
            f"the activation is {config.activation!r}; expected one of {', '.join(ACTIVATIONS)}."
        )


def square(what: str, value: Any) -> int:
    """A size that a config.json gives as a number, or as two equal ones."""
    sizes = [value] if isinstance(value, int) else list(value)
    if len(set(sizes)) != 1:
        raise ValueError(f"{what} is {value}; expected a square.")
    return int(sizes[0])


def folder_of(path: pathlib.Path) -> pathlib.Path:
    """Where the other files of a checkpoint are."""
    return path if path.is_dir() else path.parent


def beside(folder: pathlib.Path) -> pathlib.Path | None:
    """Where a pipeline keeps the tokenizer of its text tower: "text_encoder_2", "tokenizer_2"."""
    name = folder.resolve().name
    if not name.startswith("text_encoder"):
        return None
    return folder.resolve().parent / name.replace("text_encoder", "tokenizer")


def config_of(path: pathlib.Path, config_from: Callable[[dict[str, Any]], Any]) -> Any:
    """The configuration beside a checkpoint."""
    found = _files.json_of(folder_of(path), "config.json")
    if not found:
        raise ValueError(
            f"there is no config.json in {folder_of(path)}, which says what size the model is of; "
            "download it too, or give `config`."
        )
    return config_from(found)


def pixels_of(folder: pathlib.Path) -> dict[str, Any]:
    """What a checkpoint says of its pixels; transformers 5 says it within another file."""
    alone = _files.json_of(folder, "preprocessor_config.json")
    return alone or _files.json_of(folder, "processor_config.json").get("image_processor") or {}


def load_params(
    path: pathlib.Path,
    what: str,
    shapes: Shapes,
    towers: Sequence[str],
    *,
    dtype: Any,
    mesh: Mesh | None,
    rules: Rules,
) -> Params:
    """The arrays of a checkpoint, of whose towers those in `towers` are wanted."""
    tensors = Tensors(path)
    layout = dict(_files.plain(shapes))
    # A tower saved alone by recent versions of transformers has no prefix.
    if len(towers) == 1 and not any(key.startswith(f"{towers[0]}.") for key in tensors.shapes):
        bare = {key: From((key.removeprefix(f"{towers[0]}."),)) for key in shapes}
        if {source.keys[0] for source in bare.values()} & set(tensors.shapes):
            layout = bare
    _files.check(what, path, _files.sources(shapes, layout), tensors.shapes, IGNORED)
    return _files.read(tensors, shapes, layout, dtype=dtype, mesh=mesh, rules=rules)


@dataclasses.dataclass(frozen=True)
class Towers:
    """A checkpoint of two towers, or one: its parameters are leaves, all else is static.

    Attributes:
        params: By the keys of the family's `shapes`.
        config: Of its towers.
        preprocess: From images in [-1, 1] to pixels; None without an image tower.
        tokenizer: From texts to tokens; None where the checkpoint came without its files.
    """

    params: Params
    config: Any = dataclasses.field(metadata={"static": True})
    preprocess: Preprocess | None = dataclasses.field(default=None, metadata={"static": True})
    tokenizer: Tokenizer | None = dataclasses.field(default=None, metadata={"static": True})

    # A family's: its name, and the towers as functions (params, pixels or tokens, config).
    name: ClassVar[str]
    of_image: ClassVar[Callable[..., ImageOutput]]
    of_text: ClassVar[Callable[..., TextOutput]]

    def image(self, x0: Any) -> ImageOutput:
        """Features and embedding of images in [-1, 1], (batch, height, width, 3) of any size."""
        config, preprocess = self.config.vision, self.preprocess
        if config is None or preprocess is None:
            raise ValueError(
                f"this {self.name} has no image tower; load a checkpoint that has both."
            )
        run = lambda params, x0: self.of_image(params, preprocess(x0), config)  # noqa: E731
        return automatic(run, self.params, x0)

    def text(self, tokens: Any) -> TextOutput:
        """States and embedding of tokens (batch, length), as `tokenizer` makes them."""
        config = self.config.text
        if config is None:
            raise ValueError(
                f"this {self.name} has no text tower; load a checkpoint that has both."
            )
        run = lambda params, tokens: self.of_text(params, tokens, config)  # noqa: E731
        return automatic(run, self.params, tokens)


def images_only(model: Any) -> Any:
    """The model without its text tower."""
    text = re.compile(r"text_model\.|text_projection\.")
    return dataclasses.replace(
        model,
        params={key: value for key, value in model.params.items() if not text.match(key)},
        config=dataclasses.replace(model.config, text=None),
        tokenizer=None,
    )
