"""MMDiT, the transformer of Stable Diffusion 3 and 3.5, by the weights that diffusers publishes.

diffusers calls it `SD3Transformer2DModel`. Text and image have weights of their own and look at
each other in one attention. The keys, and the layout of each tensor, are diffusers'; latents are
channels last, 16 channels of `guidejax.models.vae.SD3`.

It is written here, not taken from keras-hub: published safetensors load under their own keys, each
key has one rule of placement on a mesh, bfloat16 is the parameters' dtype alone, and Keras need not
be installed.

Weights: Stability AI Community License, which restricts what they may be used for.

References:
    Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis,
    2403.03206.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from guidejax import processes
from guidejax._arrays import Array
from guidejax._denoisers import Denoiser, denoiser
from guidejax.models import _files, _network
from guidejax.models._files import Rules, Shapes
from guidejax.models._layers import (
    Params,
    attend,
    conv,
    conv_shapes,
    layer_norm,
    linear,
    linear_shapes,
    rms_norm,
    sinusoids,
)
from guidejax.models._resnets import option, unknown
from guidejax.models._towers import config_of

# Pairs of projections, the first split by its outputs, the second by its inputs: one all-reduce a
# pair. What the time and the prompt say of each block is split by its outputs.
RULES: Rules = {
    r"\.attn2?\.(to_[qkv]|add_[qkv]_proj)\.weight$": PartitionSpec("model", None),
    r"\.attn2?\.(to_[qkv]|add_[qkv]_proj)\.bias$": PartitionSpec("model"),
    r"\.attn2?\.(to_out\.0|to_add_out)\.weight$": PartitionSpec(None, "model"),
    r"\.ff(_context)?\.net\.0\.proj\.weight$": PartitionSpec("model", None),
    r"\.ff(_context)?\.net\.0\.proj\.bias$": PartitionSpec("model"),
    r"\.ff(_context)?\.net\.2\.weight$": PartitionSpec(None, "model"),
    r"\.norm1(_context)?\.linear\.weight$": PartitionSpec("model", None),
    r"\.norm1(_context)?\.linear\.bias$": PartitionSpec("model"),
}

_OWN = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
# Of all norms.
_EPS = 1e-6
# Width of the sinusoids of the time.
_TIME = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of an MMDiT; `config_from` reads them from a checkpoint's `transformer/config.json`.

    Attributes:
        heads: Of attention.
        head: Width of each.
        depth: Blocks.
        channels: Of the latents.
        patch: Latent pixels a side of a patch.
        text: Width of the text's states.
        pooled: Width of what is known of the whole prompt.
        places: Rows, and columns, of the table of positions, whose middle is used.
        qk_norm: Whether queries and keys are normalised (RMS).
        dual: Blocks with a second attention, of the image alone.
        sample_size: Height and width of the latents that it was trained on.

    Raises:
        ValueError: If `dual` names a block that isn't there.
    """

    heads: int = 24
    head: int = 64
    depth: int = 24
    channels: int = 16
    patch: int = 2
    text: int = 4096
    pooled: int = 2048
    places: int = 192
    qk_norm: bool = False
    dual: tuple[int, ...] = ()
    sample_size: int = 128

    def __post_init__(self):
        wrong = [i for i in self.dual if not 0 <= i < self.depth]
        if wrong:
            raise ValueError(
                f"dual has block {wrong[0]}, but there are {self.depth}; expected 0 to "
                f"{self.depth - 1}."
            )

    @property
    def width(self) -> int:
        """Of the states.

        Example:
            >>> SD35_LARGE.width
            2432
        """
        return self.heads * self.head


SD3_MEDIUM = Config()
SD35_MEDIUM = Config(places=384, qk_norm=True, dual=tuple(range(13)))
SD35_LARGE = Config(heads=38, depth=38, qk_norm=True)

_READ = {
    "attention_head_dim", "caption_projection_dim", "dual_attention_layers", "in_channels",
    "joint_attention_dim", "num_attention_heads", "num_layers", "out_channels", "patch_size",
    "pooled_projection_dim", "pos_embed_max_size", "qk_norm", "sample_size",
}  # fmt: skip


def config_from(config: Mapping[str, Any]) -> Config:
    """The sizes that a checkpoint's `transformer/config.json` tells.

    What it doesn't say has diffusers' defaults.

    Args:
        config: The file's content, `json.loads(path.read_text())`.

    Raises:
        ValueError: If an option isn't supported; the message names it.

    Example:
        >>> config_from({"num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 192,
        ...              "caption_projection_dim": 1536}) == SD3_MEDIUM
        True
    """
    unknown(config, _READ, "transformer")
    get = lambda name, default: default if config.get(name) is None else config[name]  # noqa: E731
    option(config, "qk_norm", "rms_norm", "transformer")
    found = Config(
        heads=get("num_attention_heads", 18),
        head=get("attention_head_dim", 64),
        depth=get("num_layers", 18),
        channels=get("in_channels", 16),
        patch=get("patch_size", 2),
        text=get("joint_attention_dim", 4096),
        pooled=get("pooled_projection_dim", 2048),
        places=get("pos_embed_max_size", 96),
        qk_norm=config.get("qk_norm") is not None,
        dual=tuple(get("dual_attention_layers", ())),
        sample_size=get("sample_size", 128),
    )
    # Text and image are joined, and the prediction is a velocity of the latents.
    for name, default, only in (
        ("caption_projection_dim", 1152, found.width),
        ("out_channels", found.channels, found.channels),
    ):
        if get(name, default) != only:
            raise ValueError(
                f"the transformer's config has {name}={get(name, default)!r}, which isn't "
                f"supported; expected {only}."
            )
    return found


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by its key.

    Example:
        >>> shapes(SD3_MEDIUM)["transformer_blocks.0.attn.add_q_proj.weight"]
        (1536, 1536)
    """
    d = config.width
    found: dict[str, tuple[int, ...]] = {"pos_embed.pos_embed": (1, config.places**2, d)}
    found |= conv_shapes("pos_embed.proj", d, config.channels, config.patch)
    for part, into in (("timestep_embedder", _TIME), ("text_embedder", config.pooled)):
        found |= linear_shapes(f"time_text_embed.{part}.linear_1", d, into)
        found |= linear_shapes(f"time_text_embed.{part}.linear_2", d, d)
    found |= linear_shapes("context_embedder", d, config.text)
    for i in range(config.depth):
        found |= _block_shapes(f"transformer_blocks.{i}", i in config.dual, config,
                               last=i == config.depth - 1)  # fmt: skip
    found |= linear_shapes("norm_out.linear", 2 * d, d)
    found |= linear_shapes("proj_out", config.patch**2 * config.channels, d)
    return found


def _block_shapes(name: str, dual: bool, config: Config, last: bool) -> Shapes:
    d, joint = config.width, [*_OWN, "to_out.0", *_ADDED]
    parts = {"attn": joint if last else [*joint, "to_add_out"]}
    norms = {"attn": ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]}
    if dual:
        parts["attn2"], norms["attn2"] = joint[:4], norms["attn"][:2]
    found: dict[str, tuple[int, ...]] = {}
    for attention in parts:
        for part in parts[attention]:
            found |= linear_shapes(f"{name}.{attention}.{part}", d, d)
        for norm in norms[attention] if config.qk_norm else ():
            found[f"{name}.{attention}.{norm}.weight"] = (config.head,)
    found |= linear_shapes(f"{name}.norm1.linear", (9 if dual else 6) * d, d)
    found |= linear_shapes(f"{name}.norm1_context.linear", (2 if last else 6) * d, d)
    for part in ("ff",) if last else ("ff", "ff_context"):
        found |= linear_shapes(f"{name}.{part}.net.0.proj", 4 * d, d)
        found |= linear_shapes(f"{name}.{part}.net.2", d, 4 * d)
    return found


def network(params: Params, x: Array, t: Array, cond: Mapping[str, Array], config: Config) -> Array:
    """What the original predicts, noise − data.

    Args:
        params: By key, of the shapes of `shapes(config)`.
        x: Latents (batch, height, width, channels); height and width multiples of `config.patch`.
        t: What the original is told of the time, 1000 σ, (batch,).
        cond: {"text": the prompt's states (batch, length, text), "pooled": what is known of all
            of it (batch, pooled)}.
        config: Sizes.

    Returns:
        Of the shape and dtype of `x`.

    Raises:
        ValueError: If a shape is another, or the latents are larger than the table of positions.

    Example:
        >>> tiny = Config(heads=2, head=8, depth=1, text=6, pooled=4, places=4)
        >>> params = {key: jnp.ones(shape) for key, shape in shapes(tiny).items()}
        >>> cond = {"text": jnp.ones((1, 5, 6)), "pooled": jnp.ones((1, 4))}
        >>> network(params, jnp.ones((1, 8, 4, 16)), jnp.ones(1), cond, tiny).shape
        (1, 8, 4, 16)
    """
    _check(x, cond, config)
    dtype = params["pos_embed.proj.weight"].dtype
    z = conv(params, "pos_embed.proj", x.astype(dtype), stride=config.patch)
    rows, columns = z.shape[1:3]
    z = (z + _positions(params["pos_embed.pos_embed"], rows, columns, config)).astype(dtype)
    z = z.reshape(z.shape[0], rows * columns, config.width)
    about = _embedded(params, "timestep_embedder", sinusoids(t, _TIME).astype(dtype))
    about = about + _embedded(params, "text_embedder", cond["pooled"].astype(dtype))
    about = jax.nn.silu(about)[:, None]
    text = linear(params, "context_embedder", cond["text"].astype(dtype))
    for i in range(config.depth):
        last = i == config.depth - 1
        z, text = _block(params, f"transformer_blocks.{i}", z, text, about, i in config.dual, last,
                         config)  # fmt: skip
    scale, shift = jnp.split(linear(params, "norm_out.linear", about), 2, axis=-1)
    z = linear(params, "proj_out", _moved(z, shift, scale))
    z = z.reshape(z.shape[0], rows, columns, config.patch, config.patch, config.channels)
    return z.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape).astype(x.dtype)


def _positions(table: Array, rows: int, columns: int, config: Config) -> Array:
    """The middle of the table, (rows, columns, width)."""
    top, left = (config.places - rows) // 2, (config.places - columns) // 2
    table = table.reshape(config.places, config.places, config.width)
    return table[top : top + rows, left : left + columns]


def _embedded(params: Params, name: str, x: Array) -> Array:
    name = f"time_text_embed.{name}"
    return linear(params, f"{name}.linear_2", jax.nn.silu(linear(params, f"{name}.linear_1", x)))


def _moved(z: Array, shift: Array, scale: Array) -> Array:
    """Normalised, then shifted and scaled by what the time and the prompt say."""
    return layer_norm({}, None, z, _EPS) * (1 + scale) + shift


def _block(
    params: Params, name: str, z: Array, text: Array, about: Array, dual: bool, last: bool,
    config: Config,
) -> tuple[Array, Array]:  # fmt: skip
    """Attention of image and text together, then an MLP each; the last leaves the text as it is."""
    moves = linear(params, f"{name}.norm1.linear", about)
    mine = jnp.split(moves, 9 if dual else 6, axis=-1)
    shift, scale, gate, shift_2, scale_2, gate_2 = mine[:6]
    moves = linear(params, f"{name}.norm1_context.linear", about)
    theirs = jnp.split(moves, 2 if last else 6, axis=-1)
    # Where there are two alone, the scale comes first, as in `norm_out`.
    image, words = _moved(z, shift, scale), _moved(text, *(theirs[::-1] if last else theirs[:2]))
    own = _projected(params, f"{name}.attn", image, _OWN, config)
    added = _projected(params, f"{name}.attn", words, _ADDED, config)
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(own, added, strict=True))
    found = attend(q, k, v, config.heads)
    seen, read = found[:, : z.shape[1]], found[:, z.shape[1] :]
    attended = gate * linear(params, f"{name}.attn.to_out.0", seen)
    if dual:  # Of what came in, beside the other.
        inner = _moved(z, mine[6], mine[7])
        again = attend(*_projected(params, f"{name}.attn2", inner, _OWN, config), config.heads)
        attended = attended + mine[8] * linear(params, f"{name}.attn2.to_out.0", again)
    z = z + attended
    z = z + gate_2 * _mlp(params, f"{name}.ff", _moved(z, shift_2, scale_2))
    if last:
        return z, text
    text = text + theirs[2] * linear(params, f"{name}.attn.to_add_out", read)
    inner = _moved(text, theirs[3], theirs[4])
    return z, text + theirs[5] * _mlp(params, f"{name}.ff_context", inner)


def _projected(
    params: Params, name: str, z: Array, parts: tuple[str, str, str], config: Config
) -> tuple[Array, Array, Array]:
    """Queries, keys and values; the first two normalised head by head where the network does so."""
    q, k, v = (linear(params, f"{name}.{part}", z) for part in parts)
    if config.qk_norm:
        heads = (*z.shape[:2], config.heads, config.head)
        added = "added_" if parts == _ADDED else ""
        q = rms_norm(params, f"{name}.norm_{added}q", q.reshape(heads), _EPS).reshape(q.shape)
        k = rms_norm(params, f"{name}.norm_{added}k", k.reshape(heads), _EPS).reshape(k.shape)
    return q, k, v


def _mlp(params: Params, name: str, z: Array) -> Array:
    inner = jax.nn.gelu(linear(params, f"{name}.net.0.proj", z), approximate=True)
    return linear(params, f"{name}.net.2", inner)


def _check(x: Array, cond: Any, config: Config) -> None:
    patch, most = config.patch, config.patch * config.places
    if x.ndim != 4 or x.shape[-1] != config.channels:
        raise ValueError(
            f"the transformer got latents of shape {x.shape}; expected (batch, height, width, "
            f"{config.channels}), channels last."
        )
    if any(size % patch or not patch <= size <= most for size in x.shape[1:3]):
        raise ValueError(
            f"the transformer got latents of {x.shape[1]} × {x.shape[2]}; expected multiples of "
            f"{patch} from {patch} to {most}."
        )
    if not isinstance(cond, Mapping) or set(cond) != {"text", "pooled"}:
        parts = ", ".join(cond) if isinstance(cond, Mapping) else f"a {type(cond).__name__}"
        raise ValueError(
            f"the transformer's condition is {parts}; expected a dict of ['text', 'pooled']."
        )
    text, pooled = jnp.shape(cond["text"]), jnp.shape(cond["pooled"])
    if len(text) != 3 or (text[0], text[2]) != (x.shape[0], config.text):
        raise ValueError(
            f"the condition's 'text' has shape {text}; expected ({x.shape[0]}, length, "
            f"{config.text})."
        )
    if pooled != (x.shape[0], config.pooled):
        raise ValueError(
            f"the condition's 'pooled' has shape {pooled}; expected "
            f"({x.shape[0]}, {config.pooled})."
        )


# `network` as `gj.denoiser` takes it, by its sizes.
Network = functools.partial(_network.Network, network)


def told(t: Array) -> Array:
    """What the network is told of the time t: 1000 t.

    Example:
        >>> told(0.5)
        500.0
    """
    return 1000 * t


def shifted(t: Any, shift: float) -> Any:
    """The time with `shift` times as much noise over signal: shift · t/(1 + (shift − 1) t).

    Example:
        >>> shifted(0.5, 3.0)
        0.75
    """
    return shift * t / (1 + (shift - 1) * t)


def times(steps: int, shift: float = 3.0) -> np.ndarray:
    """The times of diffusers' flow-matching Euler scheduler, (steps + 1,), from 1 to 0.

    Larger images need more noise to hide as much: t falls evenly, and then is `shifted`. Before
    that the last of `steps` is shifted(1/1000), not 1/1000, as in diffusers. 2403.03206, §5.3.2.

    Args:
        steps: How many.
        shift: 3 for SD3 and SD3.5 at 1024 pixels; 1 leaves times even.

    Raises:
        ValueError: If `steps` is less than 1, or `shift` isn't positive.

    Example:
        >>> [round(float(t), 4) for t in times(3)]
        [1.0, 0.7511, 0.0089, 0.0]
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"expected steps ≥ 1 and shift > 0, got {steps} and {shift}.")
    even = np.linspace(1.0, shifted(1 / 1000, shift), steps)
    found = np.append(shifted(even, shift), 0.0)
    if not np.all(np.diff(found) < 0):
        raise ValueError(f"{steps} steps are too many to tell apart at shift={shift}.")
    return found.astype(jnp.result_type(float))


def ready(config: Config, params: Mapping[str, Array]) -> Denoiser:
    """The denoiser of an MMDiT: rectified flow, whose velocity it predicts, told 1000 t.

    SD3's shift is a matter of the grid, `times`, not of the process.

    Args:
        config: Sizes.
        params: By key.

    Example:
        >>> tiny = Config(heads=2, head=8, depth=1, text=6, pooled=4, places=4)
        >>> params = {key: jnp.zeros(shape) for key, shape in shapes(tiny).items()}
        >>> ready(tiny, params).prediction
        'velocity'
    """
    net, process = Network(config), processes.rectified_flow()
    return denoiser(net, process, "velocity", time=told, params=dict(params))


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    config: Config | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    download: bool = False,
) -> tuple[_files.Params, Config]:
    """A published MMDiT: (parameters, sizes).

    Args:
        path_or_repo: The folder "transformer" of a checkpoint in diffusers' layout, the checkpoint
            itself, a safetensors file, or a repository of the Hugging Face hub.
        config: Sizes; read from config.json by default.
        dtype: Of the parameters, in which the network computes.
        mesh: Devices to split them over.
        rules: How; over an axis "model" by default.
        download: Whether a repository may be downloaded.

    Raises:
        FileNotFoundError: Where there is no such folder.
        ValueError: Where the files are of another model, damaged, or of an unsupported option.
    """
    part = "transformer/diffusion_pytorch_model"
    wanted = (f"{part}.safetensors", f"{part}-*.safetensors", f"{part}.safetensors.index.json")
    only = ("transformer/config.json", *wanted)
    path = _files.find(path_or_repo, download=download, only=only)
    path = path / "transformer" if (path / "transformer").is_dir() else path
    config = config_of(path, config_from) if config is None else config
    tensors, expected = _files.Tensors(path), shapes(config)
    what = f"an MMDiT of width {config.width} and depth {config.depth}"
    _files.check(what, path, expected, tensors.shapes)
    layout = _files.plain(expected)
    return _files.read(tensors, expected, layout, dtype=dtype, mesh=mesh, rules=rules), config
