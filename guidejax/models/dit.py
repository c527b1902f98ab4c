"""Diffusion transformers on latents, conditioned on a class: DiT, SiT, REPA, LightningDiT.

One network, four families of weights, which differ in what they predict and in how they count
time. Latents are (batch, side, side, channels), as Stable Diffusion's VAE makes them of 256 and 512
pixels (`guidejax.models.vae`; LightningDiT has a VAE of its own, which isn't here).

- DiT (Peebles & Xie 2212.09748): ε on a linear table of 1000 steps, and a variance, which doubles
  the output and is left out here. Weights CC-BY-NC 4.0.
- SiT (Ma et al. 2401.08740): velocity on rectified flow; their time runs from noise at 0 to data at
  1, against guidejax's. Weights MIT.
- REPA (Yu et al. 2410.06940): SiT's network and process with guidejax's time. Weights MIT.
- LightningDiT (Yao et al. 2501.01423): rotary positions, RMS norms and SwiGLU; SiT's time. Latents
  are normalised channel by channel. Weights MIT.

DiT's and SiT's published numbers guide the first 3 of 4 channels (DiT: FID 2.27 at w = 1.5; 2.23
at 1.375 on all four): `gj.guidance(gj.cfg, gj.from_scale(1.5), mask=jnp.arange(4) < 3)`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from guidejax import processes
from guidejax._arrays import Array
from guidejax._denoisers import Denoiser, denoiser
from guidejax.models import _files, _network
from guidejax.models._layers import (
    Params,
    attend,
    conv,
    conv_shapes,
    layer_norm,
    linear,
    linear_shapes,
    rms_norm,
    rows,
    sinusoids,
)

Family = Literal["dit", "sit", "repa", "lightning"]

# Width, depth and heads of each published size.
SIZES = {
    "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24), "1p6B": (1792, 28, 28),
}  # fmt: skip

# Each pair of projections is split over the mesh axis "model", the first by its outputs, the
# second by its inputs: one all-reduce a pair. What is made of the condition is split by its inputs:
# were it split by its outputs, the gates would split the width of all tokens, which would have to
# be gathered before each pair.
RULES: _files.Rules = {
    r"(attn\.qkv|mlp\.fc1|mlp\.w12)\.weight": PartitionSpec("model", None),
    r"(attn\.qkv|mlp\.fc1|mlp\.w12)\.bias": PartitionSpec("model"),
    r"(attn\.proj|mlp\.fc2|mlp\.w3|adaLN_modulation\.1)\.weight": PartitionSpec(None, "model"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A network of these families.

    Attributes:
        family: Whose weights: what is predicted, and how time runs.
        width: Width.
        depth: Blocks.
        heads: Attention heads.
        patch: Latent pixels a side of a patch.
        side: Latent pixels a side.
        channels: Of the latents.
        classes: How many; the one after them is no class.
        learn_sigma: Whether the network has a second output, a variance, which is left out.
        qk_norm: Whether queries and keys are normalised.
        modern: LightningDiT's rotary positions, RMS norms and SwiGLU.
    """

    family: Family = "sit"
    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch: int = 2
    side: int = 32
    channels: int = 4
    classes: int = 1000
    learn_sigma: bool = True
    qk_norm: bool = False
    modern: bool = False

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of SwiGLU."""
        return int(2 / 3 * 4 * self.width)


def config(name: str, **changes: Any) -> Config:
    """A published network by its name.

    Args:
        name: Family, size and patch: "DiT-XL/2", "SiT-B/4", "REPA-XL/2", "LightningDiT-XL/1".
        **changes: Fields of `Config` that differ, such as `side=64` for 512 pixels.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> config("SiT-B/4").depth, config("LightningDiT-XL/1").channels
        (12, 32)
    """
    families: dict[str, dict[str, Any]] = {
        "DiT": {"family": "dit"},
        "SiT": {"family": "sit"},
        "REPA": {"family": "repa", "learn_sigma": False},
        "LightningDiT": {
            "family": "lightning", "learn_sigma": False, "modern": True, "channels": 32, "side": 16,
        },
    }  # fmt: skip
    family, _, rest = name.partition("-")
    size, _, patch = rest.partition("/")
    if family not in families or size not in SIZES or not patch.isdigit():
        raise ValueError(
            f"unknown network {name!r}; expected a family ({', '.join(families)}), a size "
            f"({', '.join(SIZES)}) and a patch, as in DiT-XL/2."
        )
    width, depth, heads = SIZES[size]
    known = {"width": width, "depth": depth, "heads": heads, "patch": int(patch)}
    return Config(**{**known, **families[family], **changes})


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the original, by its key."""
    d, inner = config.width, 4 * config.width
    tokens = (config.side // config.patch) ** 2
    out = config.channels * (2 if config.learn_sigma else 1)

    found: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, d),
        **conv_shapes("x_embedder.proj", d, config.channels, config.patch),
        **linear_shapes("t_embedder.mlp.0", d, 256),
        **linear_shapes("t_embedder.mlp.2", d, d),
        "y_embedder.embedding_table.weight": (config.classes + 1, d),
    }
    if config.modern:
        found |= dict.fromkeys(("feat_rope.freqs_cos", "feat_rope.freqs_sin"),
                               (tokens, d // config.heads))  # fmt: skip
    for i in range(config.depth):
        block = f"blocks.{i}"
        found |= linear_shapes(f"{block}.attn.qkv", 3 * d, d) | linear_shapes(
            f"{block}.attn.proj", d, d
        )
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                found[f"{block}.attn.{name}.weight"] = (d // config.heads,)
                if not config.modern:
                    found[f"{block}.attn.{name}.bias"] = (d // config.heads,)
        if config.modern:
            found |= {f"{block}.norm1.weight": (d,), f"{block}.norm2.weight": (d,)}
            found |= linear_shapes(f"{block}.mlp.w12", 2 * config.hidden, d)
            found |= linear_shapes(f"{block}.mlp.w3", d, config.hidden)
        else:
            found |= linear_shapes(f"{block}.mlp.fc1", inner, d) | linear_shapes(
                f"{block}.mlp.fc2", d, inner
            )
        found |= linear_shapes(f"{block}.adaLN_modulation.1", 6 * d, d)
    if config.modern:
        found["final_layer.norm_final.weight"] = (d,)
    found |= linear_shapes("final_layer.linear", config.patch**2 * out, d)
    return found | linear_shapes("final_layer.adaLN_modulation.1", 2 * d, d)


def network(params: Params, x: Array, t: Array, cond: Array, config: Config) -> Array:
    """What the original outputs, without its variance.

    Args:
        params: Tensors by the original's keys.
        x: Latents (batch, side, side, channels).
        t: What the original is told of the time, (batch,).
        cond: Classes (batch,), integers; `config.classes` is no class.
        config: The network.

    Returns:
        (batch, side, side, channels), in the dtype of the parameters; NaN where a class is none.

    Raises:
        ValueError: If `x` or `cond` has another shape, or `cond` holds no integers.

    Example:
        >>> small = Config(width=24, depth=1, heads=2, patch=2, side=4, classes=3)
        >>> params = {key: jnp.ones(shape) for key, shape in shapes(small).items()}
        >>> x, classes = jnp.ones((2, 4, 4, 4)), jnp.array([0, 3])
        >>> network(params, x, jnp.ones(2), classes, small).shape
        (2, 4, 4, 4)
    """
    if x.ndim != 4 or x.shape[1:] != (config.side, config.side, config.channels):
        raise ValueError(
            f"the network got latents of shape {x.shape}; expected (batch, {config.side}, "
            f"{config.side}, {config.channels}), channels last."
        )
    if jnp.shape(cond) != x.shape[:1] or not jnp.issubdtype(jnp.result_type(cond), jnp.integer):
        raise ValueError(
            f"the network's condition is of shape {jnp.shape(cond)} and {jnp.result_type(cond)}; "
            f"expected classes ({x.shape[0]},), integers from 0 to {config.classes}."
        )
    x = x.astype(params["x_embedder.proj.weight"].dtype)
    z = conv(params, "x_embedder.proj", x, stride=config.patch)
    z = z.reshape(z.shape[0], -1, config.width) + params["pos_embed"]
    time = linear(params, "t_embedder.mlp.0", sinusoids(t, 256).astype(x.dtype))
    time = linear(params, "t_embedder.mlp.2", jax.nn.silu(time))
    about = jax.nn.silu(time + rows(params["y_embedder.embedding_table.weight"], cond))[:, None]
    for i in range(config.depth):
        z = _block(params, f"blocks.{i}", z, about, config)
    shift, scale = jnp.split(linear(params, "final_layer.adaLN_modulation.1", about), 2, axis=-1)
    z = _norm(params, "final_layer.norm_final", z, config) * (1 + scale) + shift
    z = linear(params, "final_layer.linear", z)
    return _unpatch(z, config)[..., : config.channels]


def _block(params: Params, name: str, z: Array, about: Array, config: Config) -> Array:
    """A block with adaLN-Zero: attention, then an MLP, each shifted, scaled and gated."""
    told = linear(params, f"{name}.adaLN_modulation.1", about)
    shift, scale, gate, shift_2, scale_2, gate_2 = jnp.split(told, 6, axis=-1)
    inner = _norm(params, f"{name}.norm1", z, config) * (1 + scale) + shift
    z = z + gate * _attention(params, f"{name}.attn", inner, config)
    inner = _norm(params, f"{name}.norm2", z, config) * (1 + scale_2) + shift_2
    return z + gate_2 * _mlp(params, f"{name}.mlp", inner, config)


def _norm(params: Params, name: str, z: Array, config: Config) -> Array:
    norm = rms_norm if config.modern else layer_norm
    return norm(params, name, z, 1e-6)


def _attention(params: Params, name: str, z: Array, config: Config) -> Array:
    q, k, v = jnp.split(linear(params, f"{name}.qkv", z), 3, axis=-1)
    heads = (*z.shape[:2], config.heads, config.width // config.heads)
    if config.qk_norm:
        # timm's layer norm of queries and keys has another ε than that of the blocks.
        norm, eps = (rms_norm, 1e-6) if config.modern else (layer_norm, 1e-5)
        q = norm(params, f"{name}.q_norm", q.reshape(heads), eps).reshape(q.shape)
        k = norm(params, f"{name}.k_norm", k.reshape(heads), eps).reshape(k.shape)
    if config.modern:
        q, k = (_rotated(params, a.reshape(heads)).reshape(a.shape) for a in (q, k))
    return linear(params, f"{name}.proj", attend(q, k, v, config.heads))


def _rotated(params: Params, z: Array) -> Array:
    """Each pair of neighbouring features turned by its angle at its place (RoPE, 2104.09864)."""
    pairs = z.reshape(*z.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(z.shape)
    cos, sin = (params[f"feat_rope.freqs_{name}"][:, None] for name in ("cos", "sin"))
    return z * cos + turned * sin


def _mlp(params: Params, name: str, z: Array, config: Config) -> Array:
    if not config.modern:
        inner = jax.nn.gelu(linear(params, f"{name}.fc1", z), approximate=True)
        return linear(params, f"{name}.fc2", inner)
    gate, value = jnp.split(linear(params, f"{name}.w12", z), 2, axis=-1)
    return linear(params, f"{name}.w3", jax.nn.silu(gate) * value)


def _unpatch(z: Array, config: Config) -> Array:
    """Tokens as pixels: (batch, tokens, patch² channels) → (batch, side, side, channels)."""
    rows = config.side // config.patch
    z = z.reshape(z.shape[0], rows, rows, config.patch, config.patch, -1)
    return z.transpose(0, 1, 3, 2, 4, 5).reshape(z.shape[0], config.side, config.side, -1)


def _predicted(params: Params, x: Array, t: Array, cond: Array, config: Config) -> Array:
    """The network's output as guidejax counts it: SiT's velocity goes from noise to data."""
    output = network(params, x, t, cond, config)
    return -output if config.family in ("sit", "lightning") else output


def _from_data(t: Array) -> Array:
    """SiT's time: data at 1."""
    return 1 - t


def ready(config: Config, params: Mapping[str, Array]) -> Denoiser:
    """The denoiser of a network: its process, what it predicts, and how it is told the time.

    Args:
        config: The network.
        params: Its tensors.

    Returns:
        `denoise(x, t, cond) -> x0`; cond are classes (batch,), and `config.classes` is no class,
        to give `gj.sample` as `uncond`.
    """
    net, params = _network.Network(_predicted, config), dict(params)
    if config.family == "dit":
        return denoiser(net, processes.linear(), "eps", time="index", params=params)
    time: str | Callable[[Array], Array] = "t" if config.family == "repa" else _from_data
    return denoiser(net, processes.rectified_flow(), "velocity", time=time, params=params)


def load(
    path_or_repo: str | os.PathLike[str],
    config: Config,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: _files.Rules = RULES,
    download: bool = False,
) -> Denoiser:
    """The denoiser of published weights.

    Args:
        path_or_repo: A .safetensors file in the original's layout or in diffusers' (DiT), its
            folder, or a repository of the Hugging Face hub. diffusers spaces the frequencies of
            the time by 1/127 where the original, whose weights it copies, does by 1/128; here
            they are the original's.
        config: The network, as `config("SiT-XL/2")` gives it.
        dtype: Of the parameters, and of the arithmetic; norms are computed in float32.
        mesh: Devices to place the parameters on.
        rules: How they are split there, by patterns of their keys.
        download: Whether a repository may be downloaded.

    Raises:
        ValueError: If the file is of another network; it says which keys and shapes differ, or
            which sizes of the config.json beside diffusers' layout.
        FileNotFoundError: If there is no such file.
    """
    path = _files.find(path_or_repo, download=download)
    if (path / "transformer").is_dir():
        path = path / "transformer"
    tensors, wanted = _files.Tensors(path), shapes(config)
    of_diffusers = any(key.startswith("transformer_blocks.") for key in tensors.shapes)
    layout = _of_diffusers(wanted) if of_diffusers else _files.plain(wanted)
    # What follows from the configuration, and isn't in every file.
    made = {key: make(config) for key, make in _COMPUTED.items() if key in wanted}
    made = {key: value for key, value in made.items() if key not in tensors.shapes}
    read = {key: shape for key, shape in wanted.items() if key not in made}
    ignored = ("transformer_blocks.*.norm1.emb.*", "projectors.*")
    what = f"{config.family}'s network of width {config.width} and depth {config.depth}"
    _files.check(what, path, _files.sources(read, layout), tensors.shapes, ignored)
    if of_diffusers:
        _check_sizes(config, path if path.is_dir() else path.parent)
    params = _files.read(tensors, read, layout, dtype=dtype, mesh=mesh, rules=rules)
    for key, value in made.items():
        where = None if mesh is None else _files.placement(key, value.shape, mesh, rules)
        params[key] = jax.device_put(value.astype(dtype), where)
    return ready(config, params)


def _check_sizes(config: Config, folder: pathlib.Path) -> None:
    """Raise `ValueError` where diffusers' config.json says other sizes, some of which no shape is
    of: positions are computed, and heads are cut from what is as wide together.
    """
    found = _files.json_of(folder, "config.json")
    sizes = {
        "sample_size": ("side", config.side),
        "patch_size": ("patch", config.patch),
        "num_attention_heads": ("heads", config.heads),
        "attention_head_dim": ("width/heads", config.width // config.heads),
        "num_layers": ("depth", config.depth),
    }
    other = [
        f"{name}={found[name]}, and the config here {ours}={value}"
        for name, (ours, value) in sizes.items()
        if found.get(name) not in (None, value)
    ]
    if other:
        raise ValueError(
            f"{folder / 'config.json'} has {'; '.join(other)}: give the config of these weights, "
            "such as dit.config('DiT-XL/2', side=64) for images of 512 pixels."
        )


def _of_diffusers(wanted: _files.Shapes) -> _files.Layout:
    """Where diffusers' copy has each tensor: q, k and v apart, the embedders in every block."""
    names = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
        "y_embedder": "transformer_blocks.0.norm1.emb.class_embedder",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
        "adaLN_modulation.1": "norm1.linear",
    }
    layout = {}
    for key in wanted:
        theirs = key.replace("blocks.", "transformer_blocks.", 1) if key[:7] == "blocks." else key
        for ours, name in names.items():
            if ours in theirs:
                theirs = theirs.replace(ours, name)
                break
        if ".attn.qkv." in key:
            split = [theirs.replace("attn.qkv", f"attn1.to_{part}") for part in "qkv"]
            layout[key] = _files.From(tuple(split))
        else:
            layout[key] = _files.From((theirs,))
    return layout


def _positions(config: Config) -> Array:
    """Sines and cosines of columns, then of rows, each half of the width, (1, tokens, width)."""
    rows = config.side // config.patch
    quarter = config.width // 4
    rates = 1 / 10000 ** (np.arange(quarter) / quarter)
    angles = np.arange(rows)[:, None] * rates
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, lines = np.tile(waves, (rows, 1)), np.repeat(waves, rows, axis=0)
    return jnp.asarray(np.concatenate([columns, lines], axis=1)[None], jnp.float32)


def _angles(config: Config) -> np.ndarray:
    """RoPE's angles of rows, then of columns, each half of a head, in pairs (tokens, width)."""
    rows, half = config.side // config.patch, config.width // config.heads // 2
    rates = 1 / 10000 ** (np.arange(0, half, 2) / half)
    angles = np.repeat(np.arange(rows)[:, None] * rates, 2, axis=1)
    return np.concatenate([np.repeat(angles, rows, axis=0), np.tile(angles, (rows, 1))], axis=1)


_COMPUTED: dict[str, Callable[[Config], Array]] = {
    "pos_embed": _positions,
    "feat_rope.freqs_cos": lambda config: jnp.asarray(np.cos(_angles(config)), jnp.float32),
    "feat_rope.freqs_sin": lambda config: jnp.asarray(np.sin(_angles(config)), jnp.float32),
}
