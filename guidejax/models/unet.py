"""Stable Diffusion's UNet: 1.x, 2.x and XL, by the weights that diffusers publishes.

diffusers calls it `UNet2DConditionModel`. The keys, and the layout of each tensor, are its own;
images and latents are channels last.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2112.10752.
    Podell et al., SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis,
    2307.01952.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from guidejax._arrays import Array
from guidejax.models import _files, _network
from guidejax.models._files import Rules, Shapes
from guidejax.models._layers import (
    attend,
    conv,
    conv_shapes,
    group_norm,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
    sinusoids,
)
from guidejax.models._resnets import (
    option,
    resnet,
    resnet_shapes,
    twice,
    unknown,
)
from guidejax.models._towers import config_of

Params = Mapping[str, Array]

# Pairs of layers, the first split by what it puts out, the second by what it takes in, so that
# each pair needs one all-reduce. For `_files.read`.
RULES: Rules = {
    r"\.to_[qkv]\.weight$": PartitionSpec("model", None),
    r"\.to_out\.0\.weight$": PartitionSpec(None, "model"),
    r"\.ff\.net\.0\.proj\.weight$": PartitionSpec("model", None),
    r"\.ff\.net\.0\.proj\.bias$": PartitionSpec("model"),
    r"\.ff\.net\.2\.weight$": PartitionSpec(None, "model"),
    r"resnets\.\d+\.(conv1|time_emb_proj)\.weight$": PartitionSpec("model"),
    r"resnets\.\d+\.(conv1|time_emb_proj|norm2)\.(bias|weight)$": PartitionSpec("model"),
    r"resnets\.\d+\.conv2\.weight$": PartitionSpec(None, "model"),
}
# Of the norm before a transformer's blocks, whatever the config says of others.
_TRANSFORMER_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a UNet; `config_from` reads them from a checkpoint's `unet/config.json`.

    Attributes:
        channels: Of each level, from the finest.
        transformers: Blocks of each transformer of a level; 0 where it has none.
        middle: Blocks of the transformer in the middle.
        heads: Of attention, of each level.
        layers: Resnets of each level on the way down; one more on the way up.
        text: Width of the text's embeddings.
        in_channels: Of the latents.
        out_channels: Of what is predicted.
        linear: Whether a transformer begins and ends with a linear layer, not a 1 × 1 convolution:
            the same numbers, of other shapes.
        groups: Of group norms.
        eps: Of group norms.
        pooled: Width of what is known of the whole prompt and the image's size, "pooled" and
            "size" of the condition; None where the network isn't told.
        size: Width of the sinusoids of each number of "size".
        sample_size: Height and width of the latents that it was trained on.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    transformers: tuple[int, ...] = (1, 1, 1, 0)
    middle: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    layers: tuple[int, ...] = (2, 2, 2, 2)
    text: int = 768
    in_channels: int = 4
    out_channels: int = 4
    linear: bool = False
    groups: int = 32
    eps: float = 1e-5
    pooled: int | None = None
    size: int = 256
    sample_size: int = 64


SD15 = Config()
SD21 = Config(heads=(5, 10, 20, 20), text=1024, linear=True, sample_size=96)
SDXL = Config(
    channels=(320, 640, 1280),
    transformers=(0, 2, 10),
    middle=10,
    heads=(5, 10, 20),
    layers=(2, 2, 2),
    text=2048,
    linear=True,
    pooled=2816,
    sample_size=128,
)

# Options of diffusers' config that must have the one value that the published models give them.
_FIXED = {
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
# `dropout` is of training; attention is always summed in float32, what `upcast_attention` asks for.
_READ = {
    "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels",
    "cross_attention_dim", "down_block_types", "dropout", "in_channels", "layers_per_block",
    "norm_eps", "norm_num_groups", "out_channels", "projection_class_embeddings_input_dim",
    "sample_size", "transformer_layers_per_block", "up_block_types", "upcast_attention",
    "use_linear_projection",
}  # fmt: skip
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


def config_from(config: Mapping[str, Any]) -> Config:
    """The sizes that a checkpoint's `unet/config.json` tells.

    What diffusers calls `attention_head_dim` is the number of heads.

    Args:
        config: The file's content, `json.loads(path.read_text())`.

    Raises:
        ValueError: If an option isn't supported; the message names it.

    Example:
        >>> config_from({"cross_attention_dim": 768}) == SD15
        True
    """
    for name, only in _FIXED.items():
        # None is what diffusers writes where an option is not used.
        option(config, name, only, "UNet")
    unknown(config, {*_FIXED, *_READ}, "UNet")
    get = lambda name, default: default if config.get(name) is None else config[name]  # noqa: E731
    channels = tuple(get("block_out_channels", SD15.channels))
    crossed = [True] * (len(channels) - 1) + [False]
    down = _kinds(config, "down_block_types", _DOWN, crossed)
    up = _kinds(config, "up_block_types", _UP, crossed[::-1])
    if len(down) != len(channels) or up != down[::-1]:
        raise ValueError(
            "the UNet's config has up_block_types that don't mirror its down_block_types, one for "
            f"each of the {len(channels)} levels, which isn't supported."
        )
    depth = _each(get("transformer_layers_per_block", 1), len(channels))
    if not all(isinstance(n, int) for n in depth):
        raise ValueError(
            f"the UNet's config has transformer_layers_per_block={list(depth)}, which isn't "
            "supported; expected a number for each level."
        )
    addition = config.get("addition_embed_type")
    if addition not in (None, "text_time"):
        raise ValueError(
            f"the UNet's config has addition_embed_type={addition!r}, which isn't supported; "
            "expected 'text_time' or none."
        )
    text = _each(get("cross_attention_dim", 1280), len(channels))
    sample = get("sample_size", SD15.sample_size)
    if len(set(text)) > 1 or not isinstance(sample, int):
        raise ValueError(
            f"the UNet's config has cross_attention_dim={list(text)} and sample_size={sample}; "
            "expected one number each."
        )
    return Config(
        channels=channels,
        transformers=tuple(n if on else 0 for n, on in zip(depth, down, strict=True)),
        middle=depth[-1],
        heads=_each(get("attention_head_dim", 8), len(channels)),
        layers=_each(get("layers_per_block", 2), len(channels)),
        text=text[0],
        in_channels=get("in_channels", 4),
        out_channels=get("out_channels", 4),
        linear=bool(get("use_linear_projection", False)),
        groups=get("norm_num_groups", 32),
        eps=get("norm_eps", 1e-5),
        pooled=config["projection_class_embeddings_input_dim"] if addition else None,
        size=get("addition_time_embed_dim", SD15.size),
        sample_size=sample,
    )


def _kinds(
    config: Mapping[str, Any], name: str, known: Mapping[str, bool], default: list[bool]
) -> list[bool]:
    """Whether each level has transformers."""
    if config.get(name) is None:
        return default
    for kind in config[name]:
        if kind not in known:
            raise ValueError(
                f"the UNet's config has {kind!r} among {name}, which isn't supported; expected "
                f"{' or '.join(known)}."
            )
    return [known[kind] for kind in config[name]]


def _each(value: Any, count: int) -> tuple[Any, ...]:
    """One for each level."""
    each = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(each) != count:
        raise ValueError(f"the UNet's config has {list(each)} for {count} levels.")
    return each


def _levels_up(config: Config) -> list[tuple[int, int, list[int]]]:
    """(level, channels from below, channels of each skip) of each block on the way up."""
    skips = [config.channels[0]]
    for level, width in enumerate(config.channels):
        skips += [width] * config.layers[level]
        skips += [width] if level < len(config.channels) - 1 else []
    found, below = [], config.channels[-1]
    for level in reversed(range(len(config.channels))):
        own = [skips.pop() for _ in range(config.layers[level] + 1)]
        found.append((level, below, own))
        below = config.channels[level]
    return found


def shapes(config: Config) -> Shapes:
    """The shape of each tensor by its key, as diffusers writes them.

    Example:
        >>> shapes(SD15)["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
        (1280, 768)
        >>> len(shapes(SDXL))
        1680
    """
    first, told = config.channels[0], 4 * config.channels[0]
    found = {
        **conv_shapes("conv_in", first, config.in_channels),
        **linear_shapes("time_embedding.linear_1", told, first),
        **linear_shapes("time_embedding.linear_2", told, told),
    }
    if config.pooled is not None:
        found |= linear_shapes("add_embedding.linear_1", told, config.pooled)
        found |= linear_shapes("add_embedding.linear_2", told, told)
    width = first
    for level, out in enumerate(config.channels):
        name = f"down_blocks.{level}"
        for j in range(config.layers[level]):
            found |= resnet_shapes(f"{name}.resnets.{j}", width, out, told)
            depth = config.transformers[level]
            found |= _transformer_shapes(f"{name}.attentions.{j}", out, depth, config)
            width = out
        if level < len(config.channels) - 1:
            found |= conv_shapes(f"{name}.downsamplers.0.conv", out, out)
    found |= resnet_shapes("mid_block.resnets.0", width, width, told)
    found |= _transformer_shapes("mid_block.attentions.0", width, config.middle, config)
    found |= resnet_shapes("mid_block.resnets.1", width, width, told)
    for i, (level, below, skips) in enumerate(_levels_up(config)):
        name, out, width = f"up_blocks.{i}", config.channels[level], below
        for j, skip in enumerate(skips):
            found |= resnet_shapes(f"{name}.resnets.{j}", width + skip, out, told)
            depth = config.transformers[level]
            found |= _transformer_shapes(f"{name}.attentions.{j}", out, depth, config)
            width = out
        if level > 0:
            found |= conv_shapes(f"{name}.upsamplers.0.conv", out, out)
    found |= norm_shapes("conv_norm_out", first)
    found |= conv_shapes("conv_out", config.out_channels, first)
    return found


def _transformer_shapes(name: str, width: int, depth: int, config: Config) -> Shapes:
    if not depth:
        return {}
    found = dict(norm_shapes(f"{name}.norm", width))
    for end in (f"{name}.proj_in", f"{name}.proj_out"):
        found |= (
            linear_shapes(end, width, width) if config.linear else conv_shapes(end, width, width, 1)
        )
    for k in range(depth):
        block = f"{name}.transformer_blocks.{k}"
        for number, source in ((1, width), (2, config.text)):
            found |= norm_shapes(f"{block}.norm{number}", width)
            for part, into in (("to_q", width), ("to_k", source), ("to_v", source)):
                found |= linear_shapes(f"{block}.attn{number}.{part}", width, into, bias=False)
            found |= linear_shapes(f"{block}.attn{number}.to_out.0", width, width)
        found |= norm_shapes(f"{block}.norm3", width)
        found |= linear_shapes(f"{block}.ff.net.0.proj", 8 * width, width)
        found |= linear_shapes(f"{block}.ff.net.2", width, 4 * width)
    return found


def _embed(params: Params, name: str, x: Array) -> Array:
    hidden = jax.nn.silu(linear(params, f"{name}.linear_1", x))
    return linear(params, f"{name}.linear_2", hidden)


def _attention(params: Params, name: str, x: Array, other: Array, heads: int) -> Array:
    q = linear(params, f"{name}.to_q", x)
    k, v = (linear(params, f"{name}.{part}", other) for part in ("to_k", "to_v"))
    return linear(params, f"{name}.to_out.0", attend(q, k, v, heads))


def _transformer(
    params: Params, name: str, x: Array, text: Array, heads: int, depth: int, config: Config
) -> Array:
    """x, plus blocks of attention to the image, attention to the text, and GEGLU."""
    batch, height, width, channels = x.shape
    h = group_norm(params, f"{name}.norm", x, _TRANSFORMER_EPS, config.groups)
    between = linear if config.linear else conv
    h = between(params, f"{name}.proj_in", h).reshape(batch, height * width, channels)
    for k in range(depth):
        block = f"{name}.transformer_blocks.{k}"
        normed = lambda i, h, block=block: layer_norm(params, f"{block}.norm{i}", h, 1e-5)  # noqa: E731
        own = normed(1, h)
        h = h + _attention(params, f"{block}.attn1", own, own, heads)
        h = h + _attention(params, f"{block}.attn2", normed(2, h), text, heads)
        wide = linear(params, f"{block}.ff.net.0.proj", normed(3, h))
        value, gate = jnp.split(wide, 2, axis=-1)
        h = h + linear(params, f"{block}.ff.net.2", value * jax.nn.gelu(gate, approximate=False))
    return x + between(params, f"{name}.proj_out", h.reshape(x.shape))


def network(params: Params, x: Array, t: Array, cond: Mapping[str, Array], config: Config) -> Array:
    """What the UNet predicts, ε or v, as its checkpoint's scheduler says.

    It computes in the dtype of its parameters; norms and softmax in float32.

    Args:
        params: By key, of the shapes of `shapes(config)`.
        x: Latents (batch, height, width, in_channels), α x0 + σ ε.
        t: Index of the noise level, 0 to 999, (batch,) or a scalar; may be a fraction.
        cond: {"text": embeddings (batch, length, width)}; for SDXL also "pooled", the embedding of
            the whole prompt (batch, width), and "size" (batch, 6): height and width of the original
            image, top and left of the crop, height and width of the target, in pixels.
        config: Sizes.

    Returns:
        (batch, height, width, out_channels) in the dtype of x.

    Raises:
        ValueError: If x has other channels, the condition lacks a part, or a width is another.

    Example:
        >>> tiny = Config((32,), transformers=(1,), heads=(2,), layers=(1,), text=8)
        >>> params = {key: jnp.zeros(shape) for key, shape in shapes(tiny).items()}
        >>> cond = {"text": jnp.zeros((1, 77, 8))}
        >>> network(params, jnp.ones((1, 8, 8, 4)), jnp.array([500.0]), cond, tiny).shape
        (1, 8, 8, 4)
    """
    _check(x, cond, config)
    dtype = params["conv_in.weight"].dtype
    text = jnp.asarray(cond["text"]).astype(dtype)
    t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])
    told = _embed(params, "time_embedding", sinusoids(t, config.channels[0]).astype(dtype))
    if config.pooled is not None:
        numbers = jnp.asarray(cond["size"])
        size = sinusoids(numbers.reshape(-1), config.size).reshape(x.shape[0], -1)
        whole = [jnp.asarray(cond["pooled"]).astype(dtype), size.astype(dtype)]
        told = told + _embed(params, "add_embedding", jnp.concatenate(whole, axis=-1))
    told = jax.nn.silu(told)
    levels = len(config.channels)

    def layer(h: Array, block: str, j: int, level: int) -> Array:
        h = resnet(params, f"{block}.resnets.{j}", h, told, config.eps, config.groups)
        depth = config.transformers[level]
        if not depth:
            return h
        name = f"{block}.attentions.{j}"
        return _transformer(params, name, h, text, config.heads[level], depth, config)

    h = conv(params, "conv_in", x.astype(dtype), padding=1)
    skips = [h]
    for level in range(levels):
        for j in range(config.layers[level]):
            h = layer(h, f"down_blocks.{level}", j, level)
            skips.append(h)
        if level < levels - 1:
            h = conv(params, f"down_blocks.{level}.downsamplers.0.conv", h, stride=2, padding=1)
            skips.append(h)
    h = resnet(params, "mid_block.resnets.0", h, told, config.eps, config.groups)
    if config.middle:
        name, heads = "mid_block.attentions.0", config.heads[-1]
        h = _transformer(params, name, h, text, heads, config.middle, config)
    h = resnet(params, "mid_block.resnets.1", h, told, config.eps, config.groups)
    for i in range(levels):
        level = levels - 1 - i
        for j in range(config.layers[level] + 1):
            h = layer(jnp.concatenate([h, skips.pop()], axis=-1), f"up_blocks.{i}", j, level)
        if level > 0:
            h = twice(h, (skips[-1].shape[1], skips[-1].shape[2]))
            h = conv(params, f"up_blocks.{i}.upsamplers.0.conv", h, padding=1)
    h = jax.nn.silu(group_norm(params, "conv_norm_out", h, config.eps, config.groups))
    return conv(params, "conv_out", h, padding=1).astype(x.dtype)


def _check(x: Array, cond: Any, config: Config) -> None:
    if x.ndim != 4 or x.shape[-1] != config.in_channels:
        raise ValueError(
            f"the UNet got latents of shape {x.shape}; expected (batch, height, width, "
            f"{config.in_channels}), channels last."
        )
    wanted: dict[str, tuple[int | None, ...]] = {"text": (x.shape[0], None, config.text)}
    if config.pooled is not None:
        wanted |= {
            "pooled": (x.shape[0], config.pooled - 6 * config.size),
            "size": (x.shape[0], 6),
        }
    # What else is known of a sample, as a reward's tokens, is none of the network's business.
    if not isinstance(cond, Mapping) or not set(wanted) <= set(cond):
        parts = ", ".join(cond) if isinstance(cond, Mapping) else "an array"
        raise ValueError(f"the UNet's condition is {parts}; expected a dict of {list(wanted)}.")
    for name, shape in wanted.items():
        got = jnp.shape(cond[name])
        like = len(got) == len(shape) and all(
            b in (None, a) for a, b in zip(got, shape, strict=True)
        )
        if not like:
            expected = ", ".join("length" if n is None else str(n) for n in shape)
            raise ValueError(f"the condition's {name!r} has shape {got}; expected ({expected}).")


# `network` as `gj.denoiser` takes it, by its sizes.
Network = functools.partial(_network.Network, network)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    config: Config | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    download: bool = False,
) -> tuple[_files.Params, Config]:
    """A published UNet: (parameters, sizes).

    Args:
        path_or_repo: The folder "unet" of a checkpoint in diffusers' layout, the checkpoint itself,
            a safetensors file, or a repository of the Hugging Face hub.
        config: Sizes; read from config.json by default.
        dtype: Of the parameters, in which the network computes.
        mesh: Devices to split them over.
        rules: How; over an axis "model" by default.
        download: Whether a repository may be downloaded.

    Raises:
        FileNotFoundError: Where there is no such folder.
        ValueError: Where the files are of another model, damaged, or of an unsupported option.
    """
    wanted = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors")
    path = _files.find(path_or_repo, download=download, only=wanted)
    path = path / "unet" if (path / "unet").is_dir() else path
    config = config_of(path, config_from) if config is None else config
    tensors, expected = _files.Tensors(path), shapes(config)
    what = f"a UNet of {config.channels} channels and text of width {config.text}"
    _files.check(what, path, expected, tensors.shapes)
    layout = _files.plain(expected)
    return _files.read(tensors, expected, layout, dtype=dtype, mesh=mesh, rules=rules), config
