"""Stable Diffusion's VAE: images to latents and back, by the weights that diffusers publishes.

diffusers calls it `AutoencoderKL`. One network serves 1.x, 2.x, XL, SD3 and Flux by its sizes.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2112.10752.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from guidejax._arrays import Array
from guidejax.models import _files
from guidejax.models._files import From, Layout, Rules, Shapes
from guidejax.models._layers import (
    attend,
    conv,
    conv_shapes,
    group_norm,
    linear,
    linear_shapes,
    norm_shapes,
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

# See `guidejax.models.unet.RULES`.
RULES: Rules = {
    r"resnets\.\d+\.conv1\.(weight|bias)$": PartitionSpec("model"),
    r"resnets\.\d+\.norm2\.(weight|bias)$": PartitionSpec("model"),
    r"resnets\.\d+\.conv2\.weight$": PartitionSpec(None, "model"),
}
_EPS = 1e-6
# What diffusers called the attention's layers until 0.17; many files still do.
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a VAE; `config_from` reads them from a checkpoint's `vae/config.json`.

    Attributes:
        channels: Of each level, from the finest; each but the last halves the image.
        layers: Resnets of each level of the encoder; the decoder has one more.
        latent_channels: Of the latents.
        image_channels: Of the images.
        groups: Of group norms.
        scaling: What latents are multiplied by, so that their variance is about 1.
        shift: What is subtracted from them before.
        quant: Whether there is a 1 × 1 convolution between encoder and latents.
        post_quant: Whether there is one between latents and decoder.
        attention: Whether the middle has attention.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    groups: int = 32
    scaling: float = 0.18215
    shift: float = 0.0
    quant: bool = True
    post_quant: bool = True
    attention: bool = True

    @property
    def factor(self) -> int:
        """Pixels of an image per latent, along an axis.

        Example:
            >>> SD15.factor
            8
        """
        return 2 ** (len(self.channels) - 1)


SD15 = Config()
SDXL = Config(scaling=0.13025)
SD3 = Config(latent_channels=16, scaling=1.5305, shift=0.0609, quant=False, post_quant=False)

# `sample_size` and `force_upcast` say nothing of what the network computes.
_READ = {
    "block_out_channels", "down_block_types", "force_upcast", "in_channels", "latent_channels",
    "layers_per_block", "mid_block_add_attention", "norm_num_groups", "out_channels", "sample_size",
    "scaling_factor", "shift_factor", "up_block_types", "use_post_quant_conv", "use_quant_conv",
}  # fmt: skip
_FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}


def config_from(config: Mapping[str, Any]) -> Config:
    """The sizes that a checkpoint's `vae/config.json` tells.

    Args:
        config: The file's content, `json.loads(path.read_text())`.

    Raises:
        ValueError: If an option isn't supported; the message names it.

    Example:
        >>> config_from({"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}) == SD15
        True
    """
    for name, only in _FIXED.items():
        option(config, name, only, "VAE")
    unknown(config, {*_FIXED, *_READ}, "VAE")
    get = lambda name, default: default if config.get(name) is None else config[name]  # noqa: E731
    channels = tuple(get("block_out_channels", (64,)))
    for name, only in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        option(config, name, [only] * len(channels), "VAE")
    if get("in_channels", 3) != get("out_channels", 3):
        raise ValueError(
            f"the VAE's config has out_channels={config['out_channels']}, other than in_channels, "
            "which isn't supported."
        )
    return Config(
        channels=channels,
        layers=get("layers_per_block", 1),
        latent_channels=get("latent_channels", 4),
        image_channels=get("in_channels", 3),
        groups=get("norm_num_groups", 32),
        scaling=get("scaling_factor", 0.18215),
        shift=get("shift_factor", 0.0),
        quant=get("use_quant_conv", True),
        post_quant=get("use_post_quant_conv", True),
        attention=get("mid_block_add_attention", True),
    )


def shapes(config: Config) -> Shapes:
    """The shape of each tensor by its key, as diffusers writes them today.

    Example:
        >>> shapes(SD15)["decoder.mid_block.attentions.0.to_q.weight"]
        (512, 512)
        >>> len(shapes(SD15))
        248
    """
    channels, latents = config.channels, config.latent_channels
    found: dict[str, tuple[int, ...]] = {}
    for half, ends in (
        ("encoder", (config.image_channels, 2 * latents)),
        ("decoder", (latents, config.image_channels)),
    ):
        down = half == "encoder"
        order = channels if down else channels[::-1]
        width = order[0]
        found |= conv_shapes(f"{half}.conv_in", width, ends[0])
        for i, out in enumerate(order):
            block = f"{half}.{'down' if down else 'up'}_blocks.{i}"
            for j in range(config.layers + (not down)):
                found |= resnet_shapes(f"{block}.resnets.{j}", width, out, None)
                width = out
            if i < len(order) - 1:
                sampler = "downsamplers" if down else "upsamplers"
                found |= conv_shapes(f"{block}.{sampler}.0.conv", out, out)
        middle, wide = f"{half}.mid_block", channels[-1]
        for j in (0, 1):
            found |= resnet_shapes(f"{middle}.resnets.{j}", wide, wide, None)
        if config.attention:
            found |= norm_shapes(f"{middle}.attentions.0.group_norm", wide)
            for part in _OLD:
                found |= linear_shapes(f"{middle}.attentions.0.{part}", wide, wide)
        found |= norm_shapes(f"{half}.conv_norm_out", order[-1])
        found |= conv_shapes(f"{half}.conv_out", ends[1], order[-1])
    if config.quant:
        found |= conv_shapes("quant_conv", 2 * latents, 2 * latents, 1)
    if config.post_quant:
        found |= conv_shapes("post_quant_conv", latents, latents, 1)
    return found


def layout(config: Config, found: Shapes) -> Layout:
    """Which tensor of a file each of `shapes(config)` is, under today's names or the older ones.

    The older ones are "attentions.0.query" and the like; some files have them as 1 × 1
    convolutions, which is the same numbers.

    Args:
        config: Sizes.
        found: Shapes of the file's tensors.

    Example:
        >>> name = "decoder.mid_block.attentions.0"
        >>> layout(SD15, {f"{name}.query.weight": (512, 512)})[f"{name}.to_q.weight"].keys
        ('decoder.mid_block.attentions.0.query.weight',)
    """
    sources = {}
    for key, shape in shapes(config).items():
        source = key
        for new, old in _OLD.items():
            older = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
            if key not in found and older in found:
                source = older
        square = (*shape, 1, 1)
        sources[key] = From((source,), square if found.get(source) == square else None)
    return sources


def _middle(params: Params, name: str, x: Array, config: Config) -> Array:
    x = resnet(params, f"{name}.resnets.0", x, None, _EPS, config.groups)
    if config.attention:
        inner = f"{name}.attentions.0"
        h = group_norm(params, f"{inner}.group_norm", x, _EPS, config.groups)
        h = h.reshape(x.shape[0], -1, x.shape[-1])
        q, k, v = (linear(params, f"{inner}.{part}", h) for part in ("to_q", "to_k", "to_v"))
        x = x + linear(params, f"{inner}.to_out.0", attend(q, k, v, 1)).reshape(x.shape)
    return resnet(params, f"{name}.resnets.1", x, None, _EPS, config.groups)


def _out(params: Params, half: str, x: Array, config: Config) -> Array:
    x = jax.nn.silu(group_norm(params, f"{half}.conv_norm_out", x, _EPS, config.groups))
    return conv(params, f"{half}.conv_out", x, padding=1)


def encode(params: Params, images: Array, config: Config) -> tuple[Array, Array]:
    """The distribution of an image's latents, before scaling: (mean, log of the variance).

    Args:
        params: By key, of the shapes of `shapes(config)`.
        images: (batch, height, width, 3) in [−1, 1]; height and width multiples of
            `config.factor`.
        config: Sizes.

    Returns:
        Both (batch, height/factor, width/factor, latent_channels), in the dtype of the images; the
        second within [−30, 20]. `latents` makes of them what a diffusion model takes.

    Raises:
        ValueError: If the images' shape is another.

    Example:
        >>> tiny = Config(channels=(32, 64), layers=1)
        >>> params = {key: jnp.zeros(shape) for key, shape in shapes(tiny).items()}
        >>> encode(params, jnp.zeros((1, 8, 8, 3)), tiny)[0].shape
        (1, 4, 4, 4)
    """
    _check("images", images, config.image_channels)
    if images.shape[1] % config.factor or images.shape[2] % config.factor:
        raise ValueError(
            f"images of {images.shape[1]} × {images.shape[2]} pixels; expected multiples of "
            f"{config.factor}."
        )
    x = images.astype(params["encoder.conv_in.weight"].dtype)
    x = conv(params, "encoder.conv_in", x, padding=1)
    for level in range(len(config.channels)):
        block = f"encoder.down_blocks.{level}"
        for j in range(config.layers):
            x = resnet(params, f"{block}.resnets.{j}", x, None, _EPS, config.groups)
        if level < len(config.channels) - 1:
            # Padded at the far sides alone.
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
            x = conv(params, f"{block}.downsamplers.0.conv", x, stride=2)
    x = _out(params, "encoder", _middle(params, "encoder.mid_block", x, config), config)
    if config.quant:
        x = conv(params, "quant_conv", x)
    mean, logvar = jnp.split(x.astype(images.dtype), 2, axis=-1)
    return mean, jnp.clip(logvar, -30, 20)


def decode(params: Params, latents: Array, config: Config) -> Array:
    """The image of latents as the encoder makes them, before scaling.

    Args:
        params: By key, of the shapes of `shapes(config)`.
        latents: (batch, height, width, latent_channels); see `images`, which takes scaled ones.
        config: Sizes.

    Returns:
        (batch, height · factor, width · factor, 3), about [−1, 1] but not clipped, in the dtype of
        the latents.

    Raises:
        ValueError: If the latents' shape is another.

    Example:
        >>> tiny = Config(channels=(32, 64), layers=1)
        >>> params = {key: jnp.zeros(shape) for key, shape in shapes(tiny).items()}
        >>> decode(params, jnp.zeros((1, 4, 4, 4)), tiny).shape
        (1, 8, 8, 3)
    """
    _check("latents", latents, config.latent_channels)
    x = latents.astype(params["decoder.conv_in.weight"].dtype)
    if config.post_quant:
        x = conv(params, "post_quant_conv", x)
    x = _middle(params, "decoder.mid_block", conv(params, "decoder.conv_in", x, padding=1), config)
    for i in range(len(config.channels)):
        block = f"decoder.up_blocks.{i}"
        for j in range(config.layers + 1):
            x = resnet(params, f"{block}.resnets.{j}", x, None, _EPS, config.groups)
        if i < len(config.channels) - 1:
            x = conv(params, f"{block}.upsamplers.0.conv", twice(x), padding=1)
    return _out(params, "decoder", x, config).astype(latents.dtype)


def latents(params: Params, images: Array, config: Config, key: Array | None = None) -> Array:
    """Latents as a diffusion model takes them, (z − shift) · scaling.

    Args:
        params: By key.
        images: (batch, height, width, 3) in [−1, 1].
        config: Sizes.
        key: z is drawn from the encoder's normal distribution; its mean without a key.

    Example:
        >>> tiny = Config(channels=(32, 64), layers=1)
        >>> params = {key: jnp.zeros(shape) for key, shape in shapes(tiny).items()}
        >>> latents(params, jnp.zeros((1, 8, 8, 3)), tiny).shape
        (1, 4, 4, 4)
    """
    z, logvar = encode(params, images, config)
    if key is not None:
        z = z + jnp.exp(logvar / 2) * jax.random.normal(key, z.shape, z.dtype)
    return (z - config.shift) * config.scaling


def images(params: Params, latents: Array, config: Config) -> Array:
    """The images of a diffusion model's latents: `decode` of latents/scaling + shift.

    Args:
        params: By key.
        latents: (batch, height, width, latent_channels), of variance about 1.
        config: Sizes.

    Example:
        >>> tiny = Config(channels=(32, 64), layers=1)
        >>> params = {key: jnp.zeros(shape) for key, shape in shapes(tiny).items()}
        >>> images(params, jnp.zeros((1, 4, 4, 4)), tiny).shape
        (1, 8, 8, 3)
    """
    return decode(params, latents / config.scaling + config.shift, config)


def _check(what: str, x: Array, channels: int) -> None:
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(
            f"the VAE got {what} of shape {x.shape}; expected (batch, height, width, {channels}), "
            "channels last."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"the VAE got {what} of {x.dtype}; expected floating point numbers, pictures within "
            "[-1, 1]: x / 127.5 - 1 of 8 bits."
        )


_latents = jax.jit(latents, static_argnames=("config",))
_images = jax.jit(images, static_argnames=("config",))


@dataclasses.dataclass(frozen=True)
class _Decode:
    """`images` of a configuration; of equal ones it is equal."""

    config: Config

    def __call__(self, params: Params, latents: Array) -> Array:
        return _images(params, latents, self.config)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config"])
@dataclasses.dataclass(frozen=True)
class Vae:
    """A VAE and its parameters; a pytree whose leaves they are.

    Attributes:
        params: By the keys of `shapes(config)`.
        config: Sizes.

    Example:
        >>> tiny = Config(channels=(32, 64), layers=1)
        >>> vae = Vae({key: jnp.zeros(shape) for key, shape in shapes(tiny).items()}, tiny)
        >>> vae.decode(vae.encode(jnp.zeros((1, 8, 8, 3)))).shape
        (1, 8, 8, 3)
    """

    params: Params
    config: Config

    def encode(self, images: Array, key: Array | None = None) -> Array:
        """The scaled latents of images in [−1, 1]; drawn with a key, else the mean: `latents`."""
        return _latents(self.params, images, self.config, key)

    @property
    def decode(self) -> jax.tree_util.Partial:
        """`decode(latents)`, the images of scaled latents; itself a pytree, as rewards take it."""
        return jax.tree_util.Partial(_Decode(self.config), self.params)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    config: Config | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    download: bool = False,
) -> Vae:
    """A published VAE.

    Args:
        path_or_repo: The folder "vae" of a checkpoint in diffusers' layout, the checkpoint itself,
            a safetensors file, or a repository of the Hugging Face hub, such as
            "stabilityai/sd-vae-ft-mse", whose latents DiT and SiT take.
        config: Sizes; read from config.json by default.
        dtype: Of the parameters, in which the network computes. SDXL's overflows in float16.
        mesh: Devices to split them over.
        rules: How; over an axis "model" by default.
        download: Whether a repository may be downloaded.

    Raises:
        FileNotFoundError: Where there is no such folder.
        ValueError: Where the files are of another model, damaged, or of an unsupported option.
    """
    wanted = ("config.json", "diffusion_pytorch_model.safetensors")
    only = (*wanted, *(f"vae/{name}" for name in wanted))
    path = _files.find(path_or_repo, download=download, only=only)
    path = path / "vae" if (path / "vae").is_dir() else path
    config = config_of(path, config_from) if config is None else config
    tensors, expected = _files.Tensors(path), shapes(config)
    where = layout(config, tensors.shapes)
    what = f"a VAE of {config.channels} channels and {config.latent_channels} in its latents"
    _files.check(what, path, _files.sources(expected, where), tensors.shapes)
    params = _files.read(tensors, expected, where, dtype=dtype, mesh=mesh, rules=rules)
    return Vae(params, config)
