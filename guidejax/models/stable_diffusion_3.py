"""Stable Diffusion 3 and 3.5: text to image from a checkpoint in diffusers' layout.

::

    import jax, jax.numpy as jnp, guidejax as gj
    from guidejax.models import stable_diffusion_3

    sd = stable_diffusion_3.load("stabilityai/stable-diffusion-3.5-medium", dtype=jnp.bfloat16)
    latents = gj.sample(
        jax.random.key(0), sd.denoise, sd.noise(jax.random.key(1), 1), times=sd.times(28),
        cond=sd.prompt(["a lighthouse in a storm"]), uncond=sd.uncond, solver=gj.euler(),
        guidance=gj.guidance(gj.cfg, gj.from_scale(4.5)),
    )
    images = sd.decode(latents)  # (1, 1024, 1024, 3), about [-1, 1]

Any rule, solver and schedule takes the place of `gj.cfg`. Weights have a licence of their own, the
Stability AI Community License, which restricts what they may be used for.

References:
    Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis,
    2403.03206.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from guidejax._arrays import Array
from guidejax._denoisers import Denoiser
from guidejax._random import as_keys, normal_like
from guidejax.models import _files, clip, sd3, t5, vae
from guidejax.models._files import json_of

Cond = dict[str, Array]

RULES: _files.Rules = {**sd3.RULES, **vae.RULES, **clip.RULES, **t5.RULES}

# What is read of a repository: no other precision.
_FILES = (
    "model_index.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*",
    "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model-*.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors",
    "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
)  # fmt: skip
_T5_FILES = (
    "tokenizer_3/*", "text_encoder_3/config.json", "text_encoder_3/model.safetensors",
    "text_encoder_3/model-*.safetensors", "text_encoder_3/model.safetensors.index.json",
)  # fmt: skip


def shift_from(config: Mapping[str, Any]) -> float:
    """The shift of the times that a checkpoint's `scheduler/scheduler_config.json` says.

    Args:
        config: The file's content.

    Raises:
        ValueError: If an option isn't supported; the message names it.

    Example:
        >>> shift_from({"num_train_timesteps": 1000, "shift": 3.0})
        3.0
    """
    kind = str(config.get("_class_name", "FlowMatch"))
    if not kind.startswith("FlowMatch"):
        raise ValueError(
            f"the scheduler's config has _class_name={kind!r}, which isn't supported; expected one "
            "of rectified flow, such as FlowMatchEulerDiscreteScheduler."
        )
    if "flow_shift" in config and "shift" not in config:
        raise ValueError(
            f"the scheduler's config has flow_shift={config['flow_shift']!r}, whose times aren't "
            "those of FlowMatchEulerDiscreteScheduler; where they are to be these, write it there "
            "as shift."
        )
    for name in (
        "invert_sigmas", "shift_terminal", "stochastic_sampling", "use_beta_sigmas",
        "use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas",
    ):  # fmt: skip
        if config.get(name):
            raise ValueError(
                f"the scheduler's config has {name}={config[name]!r}, which isn't supported."
            )
    count = config.get("num_train_timesteps", 1000)
    if count != 1000:
        raise ValueError(
            f"the scheduler's config has num_train_timesteps={count!r}, which isn't supported; "
            "expected 1000."
        )
    return float(config.get("shift", 1.0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StableDiffusion3:
    """A checkpoint: its parameters are leaves, all else is static.

    Attributes:
        denoise: The MMDiT, as `gj.sample` takes it.
        vae: Images to latents and back.
        towers: CLIP's two text towers with their tokenizers.
        t5: T5 with its tokenizer; None where it was left out, and zeros stand for its states.
        config: The MMDiT's sizes.
        shift: Of the times.
        length: Tokens of T5.
    """

    denoise: Denoiser
    vae: vae.Vae
    towers: tuple[clip.Clip, clip.Clip]
    t5: t5.T5 | None
    config: sd3.Config = dataclasses.field(metadata={"static": True})
    shift: float = dataclasses.field(default=3.0, metadata={"static": True})
    length: int = dataclasses.field(default=256, metadata={"static": True})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that it was trained on."""
        side = self.config.sample_size * self.vae.config.factor
        return (side, side)

    def prompt(self, texts: Sequence[str]) -> Cond:
        """The condition of prompts, for `cond`, or of negative prompts.

        Args:
            texts: One a sample; what is longer than CLIP's 77 tokens is cut there, and what is
                longer than `length` for T5.

        Returns:
            {"text": CLIP's penultimate states side by side, filled by zeros to T5's width, and
            then T5's states (batch, 77 + length, width), "pooled": CLIP's embeddings side by side
            (batch, width)}.

        Raises:
            ValueError: For one string in place of many, and for what isn't text.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"got {texts!r} as prompts; expected a list of strings, one a sample.")
        found = [_clip_states(tower, _tokens(tower, texts)) for tower in self.towers]
        words = jnp.concatenate([states.penultimate for states in found], axis=-1)
        words = jnp.pad(words, ((0, 0), (0, 0), (0, self.config.text - words.shape[-1])))
        if self.t5 is None:
            more = jnp.zeros((len(texts), self.length, self.config.text), words.dtype)
        else:
            more = _t5_states(self.t5, _tokens(self.t5, texts))
        pooled = [states.embedding for states in found if states.embedding is not None]
        return {
            "text": jnp.concatenate([words, more], axis=1),
            "pooled": jnp.concatenate(pooled, axis=-1),
        }

    @property
    def uncond(self) -> Cond:
        """The condition of no prompt, that of "", with a batch of one, for `uncond`.

        `gj.sample` broadcasts it to `cond`'s batch.
        """
        return self.prompt([""])

    def noise(self, key: Array, count: int, size: tuple[int, int] | None = None) -> Array:
        """What a run starts from, N(0, I): (count, height/8, width/8, 16).

        Args:
            key: One key, or (count,) keys, one a sample.
            count: How many samples.
            size: Height and width in pixels; `self.size` by default.

        Raises:
            ValueError: If a patch of the transformer, 16 pixels a side, doesn't divide the size.
        """
        height, width = self.size if size is None else size
        factor = self.vae.config.factor
        patch = factor * self.config.patch
        if height % patch or width % patch or height < patch or width < patch:
            raise ValueError(
                f"size is {height} × {width} pixels; expected multiples of {patch}, (height, "
                "width)."
            )
        shape = (count, height // factor, width // factor, self.config.channels)
        return normal_like(as_keys(key), jnp.zeros(shape, jnp.float32))

    def times(self, steps: int, shift: float | None = None) -> np.ndarray:
        """The times of diffusers' flow-matching Euler scheduler, (steps + 1,): see `sd3.times`.

        Args:
            steps: How many.
            shift: Another than the checkpoint's own.
        """
        return sd3.times(steps, self.shift if shift is None else shift)

    @property
    def decode(self) -> jax.tree_util.Partial:
        """`decode(latents)`: images (batch, height, width, 3), about [−1, 1] but not clipped.

        A pytree that can be called, so that `gj.rewards` take it.
        """
        return self.vae.decode

    def encode(self, images: Array, key: Array | None = None) -> Array:
        """The latents of images in [−1, 1], of the encoder's mean; drawn about it with a key."""
        return self.vae.encode(images, key)


def _tokens(tower: clip.Clip | t5.T5, texts: Sequence[str]) -> np.ndarray:
    if tower.tokenizer is None:
        raise ValueError("the checkpoint came without the files of a tokenizer.")
    return tower.tokenizer(texts)


@jax.jit
def _clip_states(tower: clip.Clip, tokens: Array) -> clip.TextOutput:
    return tower.text(tokens)


@jax.jit
def _t5_states(tower: t5.T5, tokens: Array) -> Array:
    # Padding is seen too, as in training.
    return tower.text(tokens)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    with_t5: bool = True,
    length: int = 256,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: _files.Rules = RULES,
    download: bool = False,
) -> StableDiffusion3:
    """Stable Diffusion 3 or 3.5 from a checkpoint in diffusers' layout.

    Args:
        path_or_repo: A folder with transformer/, vae/, text_encoder/, text_encoder_2/, tokenizer/,
            tokenizer_2/ and scheduler/, and text_encoder_3/ with tokenizer_3/ where T5 isn't left
            out; or a repository of the Hugging Face hub.
        with_t5: Whether T5 is read where it is there. It is larger than the transformer (XXL's
            encoder has 4.8 billion parameters); the networks were trained to do without it too.
        length: Tokens of T5.
        dtype: Of the parameters, in which the networks compute. Where float16 is asked for, in
            which they may overflow, the VAE stays in float32 and T5 in bfloat16.
        mesh: Devices to split the parameters over, whose axis "model" must be automatic.
        rules: How; heads, hidden units and channels over an axis "model" by default.
        download: Whether a repository may be downloaded: the files that are read alone. Its
            licence is agreed to by that.

    Raises:
        FileNotFoundError: Where there is no such folder, or a part of it is missing.
        ValueError: Where files are of another model, damaged, or of an unsupported option.
    """
    only = (*_FILES, *_T5_FILES) if with_t5 else _FILES
    path = _files.find(path_or_repo, download=download, only=only)
    _check_folder(path)
    options: dict[str, Any] = {"mesh": mesh, "rules": rules}
    half = jnp.dtype(dtype) == jnp.float16
    params, config = sd3.load(path / "transformer", dtype=dtype, **options)
    shift = shift_from(json_of(path / "scheduler", "scheduler_config.json"))
    names = ("text_encoder", "text_encoder_2")
    first, second = (clip.load(path / name, dtype=dtype, **options) for name in names)
    third, place = None, path / "text_encoder_3"
    if with_t5 and place.is_dir():
        wide = jnp.bfloat16 if half else dtype
        third = t5.load(place, length=length, dtype=wide, **options)
    images = vae.load(path / "vae", dtype=jnp.float32 if half else dtype, **options)
    _check_parts(path, config, (first, second), third, images)
    return StableDiffusion3(
        sd3.ready(config, params), images, (first, second), third, config, shift, length
    )


def _check_folder(path: pathlib.Path) -> None:
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2",
             "scheduler")  # fmt: skip
    missing = [part for part in parts if not (path / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{path} isn't a checkpoint of Stable Diffusion 3 in diffusers' layout: it lacks "
            f"{', '.join(missing)} of the folders {', '.join(parts)}."
        )
    if not (path / "scheduler" / "scheduler_config.json").is_file():
        raise FileNotFoundError(f"{path / 'scheduler'} lacks scheduler_config.json.")


def _check_parts(
    path: pathlib.Path, config: sd3.Config, towers: Sequence[clip.Clip], third: t5.T5 | None,
    images: vae.Vae,
) -> None:  # fmt: skip
    """Raise `ValueError` where the parts of a checkpoint don't belong together."""
    texts = [tower.config.text for tower in towers if tower.config.text is not None]
    width = sum(text.width for text in texts)
    pooled = sum(text.embedding or 0 for text in texts)
    channels = images.config.latent_channels
    for what, found, fits, wanted in (
        ("CLIP's text towers", f"are {width} wide together", width <= config.text, config.text),
        ("CLIP's text towers", f"embed texts in {pooled} numbers together",
         pooled == config.pooled, config.pooled),
        ("the VAE", f"has latents of {channels} channels", channels == config.channels,
         config.channels),
    ):  # fmt: skip
        if not fits:
            raise ValueError(
                f"{what} of {path} {found}, but its transformer takes {wanted}; they are of "
                "different checkpoints."
            )
    if third is not None and third.config.width != config.text:
        raise ValueError(
            f"T5 of {path} is {third.config.width} wide, but its transformer takes {config.text}; "
            "they are of different checkpoints."
        )
