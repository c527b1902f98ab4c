"""Images as CLIP and SigLIP want them, differentiably: resized, cropped, normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, restore, upcast

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)

Kernel = Literal["nearest", "lanczos3", "linear", "cubic"]

# By the numbers that Pillow, and so a checkpoint's file, knows them by.
_KERNELS: dict[int, Kernel] = {0: "nearest", 1: "lanczos3", 2: "linear", 3: "cubic"}


def resize(x: Any, height: int, width: int, kernel: Kernel = "cubic") -> Array:
    """Resizing with antialias, bicubic by default.

    Along each axis a pixel of the result is Σᵢ k((i − c)/s) xᵢ / Σᵢ k((i − c)/s): c its place among
    the old pixels, s = max(1, old/new) and k the kernel, as in Pillow and in torchvision's
    antialiased resizing.

    Args:
        x: Images (batch, H, W, channels).
        height: Of the result, in pixels.
        width: Likewise.
        kernel: "cubic" is Keys' with a = −1/2, "linear" max(0, 1 − |u|), "lanczos3"
            sinc(u) sinc(u/3) for |u| < 3; "nearest" takes the pixel at c.

    Returns:
        (batch, height, width, channels) in the dtype of `x`; it may overshoot the range of `x`.

    Raises:
        ValueError: For what isn't a batch of images, for sizes below 1 and for other kernels.

    Example:
        >>> import jax.numpy as jnp
        >>> resize(jnp.ones((1, 9, 6, 3)), 4, 5).shape
        (1, 4, 5, 3)

    References:
        Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981.
    """
    x = _images("x", x)
    if height < 1 or width < 1:
        raise ValueError(f"height and width are {height} and {width}; expected positive integers.")
    if kernel not in get_args(Kernel):
        raise ValueError(f"got kernel={kernel!r}; expected one of {', '.join(get_args(Kernel))}.")
    if x.shape[1:3] == (height, width):
        return x
    shape = (x.shape[0], height, width, x.shape[3])
    return restore(jax.image.resize(upcast(x), shape, kernel, antialias=True), x)


def center_crop(x: Any, height: int, width: int) -> Array:
    """The middle of images; of an odd number of rows too many, one more goes below than above.

    Args:
        x: Images (batch, H, W, channels).
        height: Of the result, in pixels.
        width: Likewise.

    Raises:
        ValueError: For what isn't a batch of images, and for images smaller than the crop.

    Example:
        >>> import jax.numpy as jnp
        >>> center_crop(jnp.arange(5.0).reshape(1, 1, 5, 1), 1, 2).ravel().tolist()
        [1.0, 2.0]
    """
    x = _images("x", x)
    top, left = x.shape[1] - height, x.shape[2] - width
    if top < 0 or left < 0:
        raise ValueError(f"images of shape {x.shape} are smaller than the crop {height} x {width}.")
    top, left = top // 2, left // 2
    return x[:, top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From images in [-1, 1] to a tower's pixels: resize, crop, (x/2 + 1/2 − mean) / std.

    Attributes:
        size: Height and width of the pixels.
        mean: Of each channel, for images in [0, 1].
        std: Likewise.
        crop: True resizes the shorter side and crops the middle, as CLIP does; False squeezes the
            whole image into the square, as SigLIP does.
        kernel: Of `resize`; SigLIP 2 has "linear".

    Raises:
        ValueError: When called with what isn't (batch, H, W, 3).

    Example:
        >>> import jax.numpy as jnp
        >>> pixels = Preprocess(size=4)(jnp.zeros((2, 8, 12, 3)))
        >>> pixels.shape
        (2, 4, 4, 3)
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    crop: bool = True
    kernel: Kernel = "cubic"

    def __post_init__(self):
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"got {self}; expected a positive size and three means and positive std."
            )

    def __call__(self, x0: Any) -> Array:
        """Pixels (batch, size, size, 3) of images (batch, H, W, 3), in their dtype."""
        x = _images("x0", x0)
        if x.shape[3] != 3:
            raise ValueError(
                f"x0 has shape {x.shape}; expected images (batch, height, width, 3) in [-1, 1]. "
                "Latents need `decode`."
            )
        z = upcast(x)
        if self.crop:
            short = min(z.shape[1:3])
            height, width = (self.size * side // short for side in z.shape[1:3])
            z = resize(z, height, width, self.kernel)
            z = center_crop(z, self.size, self.size)
        else:
            z = resize(z, self.size, self.size, self.kernel)
        # One scale and one shift of each channel.
        scale = jnp.asarray([0.5 / s for s in self.std], z.dtype)
        shift = jnp.asarray(
            [(0.5 - m) / s for m, s in zip(self.mean, self.std, strict=True)], z.dtype
        )
        return restore(z * scale + shift, x)


def _sides(given: Any) -> set[Any]:
    """The different numbers of a size, which is one, or has a height and a width."""
    names = ("height", "width")
    return {given.get(name) for name in names} if isinstance(given, Mapping) else {given}


def _crops(config: Mapping[str, Any], size: int, otherwise: Preprocess) -> bool:
    """Whether a file resizes the shorter side and crops; `ValueError` for what isn't done here."""
    if config.get("do_resize") is False:
        raise ValueError("preprocessor_config.json has do_resize=false; expected a resizing.")
    given, shorter = config.get("size") or size, otherwise.crop
    if isinstance(given, Mapping):
        shorter = "shortest_edge" in given
        given = given["shortest_edge"] if shorter else given
    if _sides(given) != {size}:
        raise ValueError(
            f"preprocessor_config.json resizes {'the shorter side' if shorter else 'images'} to "
            f"{given}; expected {size}, what the tower takes. Where it is to be that, write it "
            "there."
        )
    crops = config.get("do_center_crop")
    if crops is False and shorter:
        raise ValueError(
            "preprocessor_config.json resizes the shorter side and has do_center_crop=false; the "
            "tower takes squares: expected a crop, or a size of height and width."
        )
    cut = config.get("crop_size") or size
    if (shorter or crops) and _sides(cut) != {size}:
        raise ValueError(
            f"preprocessor_config.json crops images to {cut}; expected {size}, what the tower "
            "takes. Where it is to be that, write it there."
        )
    return shorter


def preprocess_from(config: Mapping[str, Any], size: int, otherwise: Preprocess) -> Preprocess:
    """What a checkpoint's preprocessor_config.json says.

    Args:
        config: The file's contents, or what processor_config.json has as "image_processor"; empty
            where there is neither.
        size: What the image tower takes.
        otherwise: What holds where the file is silent.

    Returns:
        Cropping where it resizes the shorter side, squeezing where it gives height and width.

    Raises:
        ValueError: Where the file asks for what isn't done here: no resizing, one to another size
            than the tower's or the crop's, one of the shorter side without a crop, a kernel that
            `resize` hasn't, pixels that aren't scaled.

    Example:
        >>> preprocess_from({"image_mean": [0, 0, 0]}, 32, Preprocess(32)).mean
        (0.0, 0.0, 0.0)
    """
    crop = _crops(config, size, otherwise)
    number, kernel = config.get("resample"), otherwise.kernel
    if number is not None:
        if number not in _KERNELS:
            raise ValueError(
                f"preprocessor_config.json has resample={number}; expected one of "
                f"{', '.join(f'{n} ({k})' for n, k in _KERNELS.items())}."
            )
        kernel = _KERNELS[number]
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    if not math.isclose(factor, 1 / 255):
        raise ValueError(
            f"preprocessor_config.json multiplies pixels of 0 ... 255 by {factor}; expected 1/255."
        )
    mean, std = config.get("image_mean", otherwise.mean), config.get("image_std", otherwise.std)
    if not config.get("do_normalize", True):
        mean, std = (0, 0, 0), (1, 1, 1)
    return Preprocess(
        size=size,
        mean=tuple(float(m) for m in mean),
        std=tuple(float(s) for s in std),
        crop=crop,
        kernel=kernel,
    )


def _images(what: str, x: Any) -> Array:
    x = jnp.asarray(x)
    if x.ndim != 4 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{what} has shape {x.shape} and dtype {x.dtype}; expected floating-point images "
            "(batch, height, width, channels)."
        )
    return x
