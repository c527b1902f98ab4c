"""Inception v3 of 2015-12-05, by whose features Fréchet inception distances (FID) are measured.

It differs from torchvision's Inception v3: its average pooling leaves the padding out of the count,
its last block pools by the maximum, and its pictures are resized as TensorFlow 1.x resized. The
features here are torch-fidelity's, which are those of the FID's own code; pytorch-fid resizes
otherwise (half-pixel centres) and is off by a little.

Parameters have the keys of `pt_inception-2015-12-05-6726825d.pth`, which pytorch-fid publishes
under its releases and torch-fidelity mirrors as `weights-inception-2015-12-05-6726825d.pth`:
TensorFlow's weights of inception-2015-12-05.tgz (Apache License 2.0). Converted once, they load:

    python -m guidejax.models.convert pt_inception-2015-12-05-6726825d.pth inception.safetensors

    model = gj.models.inception.load("inception.safetensors")
    ours, theirs = model.image(x0).pooled, model.image(real).pooled
    fid = gj.metrics.frechet_distance(ours, theirs)

References:
    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 1512.00567;
    Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 1706.08500;
    Obukhov et al., torch-fidelity: High-fidelity performance metrics for generative models in
    PyTorch, 2020.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from guidejax._arrays import Array, restore, upcast
from guidejax.models import _files
from guidejax.models._files import Params, Shapes
from guidejax.models._layers import conv
from guidejax.models._network import automatic
from guidejax.models._towers import ImageOutput as ImageOutput

SIZE = 299  # Height and width of what the network looks at.
WIDTH = 2048  # Features of a picture.
_EPS = 1e-3
_LEAST = 75  # Height and width of which something is left in the last block.
# The classifier, and counters that nothing reads.
_CLASSES = {"fc.weight": (1008, WIDTH), "fc.bias": (1008,)}
_IGNORED = ("*.num_batches_tracked",)

# A layer: name, channels, height and width of its kernel. Layers of one step run side by side on
# what the step before made, and are joined; a branch is a sequence of steps.
_Layer = tuple[str, int, int, int]
_Step = tuple[_Layer, ...]
_Branch = tuple[_Step, ...]


@dataclasses.dataclass(frozen=True)
class _Block:
    """Branches side by side, joined along the channels.

    Attributes:
        branches: In the order of the channels.
        pool: Of the last branch: "average" or "maximum".
        pooled: Channels of the 1 × 1 convolution after it. None for a block that halves the image:
            its pooling and the last layer of each branch step by 2 without padding.
    """

    branches: tuple[_Branch, ...]
    pool: str
    pooled: int | None


def _chain(*layers: _Layer) -> _Branch:
    return tuple((layer,) for layer in layers)


def _a(pooled: int) -> _Block:
    five = _chain(("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5))
    three = _chain(
        ("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)
    )
    return _Block((_chain(("branch1x1", 64, 1, 1)), five, three), "average", pooled)


def _b() -> _Block:
    three = _chain(
        ("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)
    )
    return _Block((_chain(("branch3x3", 384, 3, 3)), three), "maximum", None)


def _c(width: int) -> _Block:
    one = _chain(
        ("branch7x7_1", width, 1, 1), ("branch7x7_2", width, 1, 7), ("branch7x7_3", 192, 7, 1)
    )
    two = _chain(
        ("branch7x7dbl_1", width, 1, 1), ("branch7x7dbl_2", width, 7, 1),
        ("branch7x7dbl_3", width, 1, 7), ("branch7x7dbl_4", width, 7, 1),
        ("branch7x7dbl_5", 192, 1, 7),
    )  # fmt: skip
    return _Block((_chain(("branch1x1", 192, 1, 1)), one, two), "average", 192)


def _d() -> _Block:
    three = _chain(("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3))
    seven = _chain(
        ("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, 1, 7), ("branch7x7x3_3", 192, 7, 1),
        ("branch7x7x3_4", 192, 3, 3),
    )  # fmt: skip
    return _Block((three, seven), "maximum", None)


def _e(pool: str) -> _Block:
    fork = lambda name: ((f"{name}a", 384, 1, 3), (f"{name}b", 384, 3, 1))  # noqa: E731
    one = (*_chain(("branch3x3_1", 384, 1, 1)), fork("branch3x3_2"))
    two = (
        *_chain(("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3)),
        fork("branch3x3dbl_3"),
    )
    return _Block((_chain(("branch1x1", 320, 1, 1)), one, two), pool, 192)


# Before the blocks: a layer, its stride, whether it is padded, and whether a pooling follows.
_STEM: tuple[tuple[_Layer, int, bool, bool], ...] = (
    (("Conv2d_1a_3x3", 32, 3, 3), 2, False, False),
    (("Conv2d_2a_3x3", 32, 3, 3), 1, False, False),
    (("Conv2d_2b_3x3", 64, 3, 3), 1, True, True),
    (("Conv2d_3b_1x1", 80, 1, 1), 1, False, False),
    (("Conv2d_4a_3x3", 192, 3, 3), 1, False, True),
)
_BLOCKS = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _b(),
    "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192),
    "Mixed_7a": _d(), "Mixed_7b": _e("average"), "Mixed_7c": _e("maximum"),
}  # fmt: skip


def shapes() -> Shapes:
    """Every key of the network with its shape; the classifier `fc` isn't among them.

    Example:
        >>> shapes()["Mixed_7c.branch3x3_2a.conv.weight"]
        (384, 384, 1, 3)
    """
    found: dict[str, tuple[int, ...]] = {}

    def add(name: str, inputs: int, layer: _Layer) -> int:
        _, channels, height, width = layer
        found[f"{name}.conv.weight"] = (channels, inputs, height, width)
        for key in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{key}"] = (channels,)
        return channels

    channels = 3
    for layer, *_ in _STEM:
        channels = add(layer[0], channels, layer)
    for block_name, block in _BLOCKS.items():
        joined = 0
        for branch in block.branches:
            inner = channels
            for step in branch:
                inner = sum(add(f"{block_name}.{layer[0]}", inner, layer) for layer in step)
            joined += inner
        if block.pooled is None:
            joined += channels
        else:
            layer = ("branch_pool", block.pooled, 1, 1)
            joined += add(f"{block_name}.branch_pool", channels, layer)
        channels = joined
    return found


def resize(x: Any, height: int, width: int) -> Array:
    """Bilinear resizing as TensorFlow 1.x did it: corners not aligned, no half-pixel centres.

    Along each axis pixel i of the result is (1 − f) x[k] + f x[min(k + 1, old − 1)], where k + f is
    i · old/new in float32, k whole. There is no antialiasing: making pictures smaller skips pixels.

    Args:
        x: Images (batch, H, W, channels).
        height: Of the result, in pixels.
        width: Likewise.

    Returns:
        (batch, height, width, channels) in the dtype of `x`.

    Raises:
        ValueError: For what isn't a batch of images, and for sizes below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> resize(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), 1, 4).ravel().tolist()
        [0.0, 0.5, 1.0, 1.0]
    """
    x = jnp.asarray(x)
    if x.ndim != 4 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; expected floating-point images "
            "(batch, height, width, channels)."
        )
    if height < 1 or width < 1:
        raise ValueError(f"height and width are {height} and {width}; expected positive integers.")
    z = upcast(x)
    for axis, new in ((2, width), (1, height)):
        old = x.shape[axis]
        places = np.arange(new, dtype=np.float32) * np.float32(old / new)
        low = np.minimum(places.astype(np.int32), old - 1)
        shape = [1] * 4
        shape[axis] = new
        rest = jnp.asarray((places - low).reshape(shape), z.dtype)
        first = jnp.take(z, low, axis=axis)
        z = first + (jnp.take(z, np.minimum(low + 1, old - 1), axis=axis) - first) * rest
    return restore(z, x)


def pixels(images: Any, size: int = SIZE) -> Array:
    """Images in [-1, 1] as the network sees them, (z − 128)/128 of resized pixels z.

    Pixels are 127.5 (x + 1), held within [0, 255] and rounded to whole numbers, before they are
    resized: FIDs are of pictures of 8 bits, and torch-fidelity takes no others. The gradient goes
    through the rounding as if it weren't there; beyond [-1, 1] it is 0.

    Args:
        images: (batch, height, width, 3) of any size.
        size: Height and width of the pixels; FIDs are of 299.

    Returns:
        (batch, size, size, 3) in the images' dtype, float32 at least: 8 bits don't fit bfloat16.

    Raises:
        ValueError: For what isn't a batch of images.

    Example:
        >>> import jax.numpy as jnp
        >>> found = pixels(jnp.ones((1, 8, 12, 3)))
        >>> found.shape, float(found.min()), float(found.max())
        ((1, 299, 299, 3), 0.9921875, 0.9921875)
    """
    x = jnp.asarray(images)
    if x.ndim != 4 or x.shape[-1] != 3 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"images have shape {x.shape} and dtype {x.dtype}; expected floating-point images "
            "(batch, height, width, 3) in [-1, 1]. Latents need `decode`."
        )
    z = 127.5 * (upcast(x) + 1)
    whole = jax.lax.stop_gradient(jnp.round(jnp.clip(z, 0, 255)))
    # At 0 and at 255 themselves `clip` would halve the gradient.
    z = jnp.where((z >= 0) & (z <= 255), z + jax.lax.stop_gradient(whole - z), whole)
    return (resize(z, size, size) - 128) / 128


def features(params: Mapping[str, Array], images: Any) -> Array:
    """The 2048 features of images, `network` of their `pixels`.

    Args:
        params: By the keys of `shapes`.
        images: (batch, height, width, 3) in [-1, 1] of any size.

    Returns:
        (batch, 2048), at least 0, in the dtype of the parameters.

    Raises:
        ValueError: For what isn't a batch of images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {key: jax.ShapeDtypeStruct(s, jnp.float32) for key, s in shapes().items()}
        >>> images = jax.ShapeDtypeStruct((5, 64, 64, 3), jnp.float32)
        >>> jax.eval_shape(features, params, images).shape
        (5, 2048)
    """
    return network(params, pixels(images))


def network(params: Mapping[str, Array], pixels: Any) -> Array:
    """The last block's 2048 channels, averaged over its places: 8 × 8 of 299 × 299 pixels.

    Every layer is max(0, norm(W ∗ x)) with norm(y) = scale (y − mean)/√(variance + 10⁻³) + shift,
    of the stored mean and variance.

    Args:
        params: By the keys of `shapes`.
        pixels: (batch, height, width, 3) as `pixels` makes them, 75 × 75 at least.

    Returns:
        (batch, 2048), at least 0, in the dtype of the parameters.

    Raises:
        ValueError: For pixels of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {key: jax.ShapeDtypeStruct(s, jnp.float32) for key, s in shapes().items()}
        >>> pixels = jax.ShapeDtypeStruct((5, 299, 299, 3), jnp.float32)
        >>> jax.eval_shape(network, params, pixels).shape
        (5, 2048)
    """
    x = jnp.asarray(pixels)
    if x.ndim != 4 or x.shape[3] != 3 or min(x.shape[1:3]) < _LEAST:
        raise ValueError(
            f"pixels have shape {x.shape}; expected (batch, height, width, 3), {_LEAST} × {_LEAST} "
            "at least, as `pixels` makes them of images in [-1, 1]."
        )
    x = x.astype(params[f"{_STEM[0][0][0]}.conv.weight"].dtype)
    for layer, stride, padded, pooled in _STEM:
        x = _layer(params, layer[0], x, stride, padded)
        x = _maximum(x, 2) if pooled else x
    for name, block in _BLOCKS.items():
        x = _joined(params, name, block, x)
    return restore(jnp.mean(upcast(x), axis=(1, 2)), x)


def _layer(
    params: Mapping[str, Array], name: str, x: Array, stride: int = 1, padded: bool = True
) -> Array:
    """A convolution, the norm by stored moments in float32, and a ReLU."""
    height, width = params[f"{name}.conv.weight"].shape[2:]
    padding = (height // 2, width // 2) if padded else 0
    y = conv(params, f"{name}.conv", x, stride, padding)
    norm = {key: upcast(params[f"{name}.bn.{key}"]) for key in
            ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    scale = norm["weight"] * jax.lax.rsqrt(norm["running_var"] + _EPS)
    z = (upcast(y) - norm["running_mean"]) * scale + norm["bias"]
    return jax.nn.relu(restore(z, y))


def _joined(params: Mapping[str, Array], name: str, block: _Block, x: Array) -> Array:
    halves = block.pooled is None
    found = []
    for branch in block.branches:
        y = x
        for step in branch:
            stride, padded = (2, False) if halves and step is branch[-1] else (1, True)
            parts = [_layer(params, f"{name}.{layer[0]}", y, stride, padded) for layer in step]
            y = jnp.concatenate(parts, axis=-1)
        found.append(y)
    if halves:
        found.append(_maximum(x, 2))
    else:
        y = _average(x) if block.pool == "average" else _maximum(x, 1)
        found.append(_layer(params, f"{name}.branch_pool", y))
    return jnp.concatenate(found, axis=-1)


def _maximum(x: Array, stride: int) -> Array:
    """Over 3 × 3 places; padded where it doesn't step."""
    side = 1 if stride == 1 else 0
    return jax.lax.reduce_window(
        x, np.asarray(-np.inf, x.dtype), jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1),
        ((0, 0), (side, side), (side, side), (0, 0)),
    )  # fmt: skip


def _average(x: Array) -> Array:
    """Over those of 3 × 3 places that are within the image."""
    add = lambda z: jax.lax.reduce_window(  # noqa: E731
        z, np.zeros((), z.dtype), jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )  # fmt: skip
    z = upcast(x)
    return restore(add(z) / add(jnp.ones((1, *z.shape[1:3], 1), z.dtype)), x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inception:
    """The network and its parameters; a pytree whose leaves they are.

    Attributes:
        params: By the keys of `shapes`.
        tokenizer: None: it reads no texts. Models that judge pictures all say so.
    """

    params: Params
    tokenizer: None = dataclasses.field(default=None, metadata={"static": True})

    def image(self, x0: Any) -> ImageOutput:
        """Features of images in [-1, 1], (batch, height, width, 3) of any size.

        They are the embedding too, as the network has no other.
        """
        found = automatic(features, self.params, x0)
        return ImageOutput(found, found)


def is_inception(keys: Iterable[str]) -> bool:
    """Whether a file's keys are those of an Inception v3, of 2015-12-05 or another.

    Example:
        >>> is_inception(shapes())
        True
    """
    return "Mixed_7c.branch_pool.conv.weight" in set(keys)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    download: bool = False,
) -> Inception:
    """The published network.

    Args:
        path_or_repo: A safetensors file, as `guidejax.models.convert` makes of the published one;
            a folder that holds it; or a repository of the Hugging Face hub.
        dtype: Of the parameters, in which the network computes. Published FIDs are of float32.
        mesh: Devices to place the parameters on, whole on each.
        download: Whether a repository may be downloaded.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where it is of another model, torchvision's Inception too, or damaged.
    """
    path = _files.find(path_or_repo, download=download)
    tensors, wanted = _files.Tensors(path), shapes()
    # torchvision's has 1000 classes, and other weights.
    checked = {**wanted, **{k: s for k, s in _CLASSES.items() if k in tensors.shapes}}
    _files.check("the Inception v3 of 2015-12-05", path, checked, tensors.shapes, _IGNORED)
    layout = _files.plain(wanted)
    return Inception(_files.read(tensors, wanted, layout, dtype=dtype, mesh=mesh))
