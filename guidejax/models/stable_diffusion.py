"""Stable Diffusion 1.x, 2.x and XL: text to image from a checkpoint in diffusers' layout.

::

    import jax, guidejax as gj
    from guidejax.models import stable_diffusion

    sd = stable_diffusion.load("stable-diffusion-v1-5/stable-diffusion-v1-5")
    latents = gj.sample(
        jax.random.key(0), sd.denoise, sd.noise(jax.random.key(1), 1), times=sd.times(30),
        cond=sd.prompt(["a lighthouse in a storm"]), uncond=sd.uncond,
        guidance=gj.guidance(gj.cfg, gj.from_scale(7.5)),
    )
    images = sd.decode(latents)  # (1, 512, 512, 3), about [-1, 1]

Any rule, solver and schedule takes the place of `gj.cfg`. Weights have licences of their own:
Stable Diffusion 1.5 CreativeML OpenRAIL-M, 2.1 CreativeML OpenRAIL++-M, XL CreativeML OpenRAIL++-M;
each restricts what it may be used for. The safety checker that comes with 1.5 is not loaded: what
it would have held back is returned.

References:
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2112.10752.
    Podell et al., SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis,
    2307.01952.
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

from guidejax import processes
from guidejax._arrays import Array
from guidejax._denoisers import Denoiser, denoiser
from guidejax._random import as_keys, normal_like
from guidejax.models import _files, clip, unet, vae
from guidejax.models._files import json_of

Cond = dict[str, Array]

RULES: _files.Rules = {**unet.RULES, **vae.RULES, **clip.RULES}

# What is read of a repository: no other precision, no safety checker.
_FILES = (
    "model_index.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*",
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors",
    "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
)  # fmt: skip

_TABLES = {
    "linear": processes.linear,
    "scaled_linear": processes.scaled_linear,
    "squaredcos_cap_v2": lambda count, start, end: processes.squared_cosine(count),
}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_SPACINGS = ("leading", "trailing")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a checkpoint's scheduler says of its noise; the rest of it is `gj.sample`'s matter.

    Attributes:
        table: "scaled_linear", "linear" or "squaredcos_cap_v2".
        count: Entries of the table.
        start: β of the first.
        end: β of the last.
        prediction: What the UNet predicts, as `gj.denoiser` names it.
        zero_snr: Whether the table is rescaled so that its last entry is pure noise.
        spacing: Of the times of a run, "leading" or "trailing".
        offset: Added to the indices of "leading" times.
        to_data: Whether the last step goes to t = 0, and not to the table's first entry.
    """

    table: str = "scaled_linear"
    count: int = 1000
    start: float = 0.00085
    end: float = 0.012
    prediction: str = "eps"
    zero_snr: bool = False
    spacing: str = "leading"
    offset: int = 1
    to_data: bool = False

    def process(self) -> processes.Discrete:
        """The table as a process.

        Example:
            >>> round(float(Schedule().process().alpha(1.0)) ** 2, 6)
            0.00466
        """
        found = _TABLES[self.table](self.count, self.start, self.end)
        return processes.zero_terminal_snr(found) if self.zero_snr else found

    def times(self, steps: int, spacing: str | None = None) -> np.ndarray:
        """The times of diffusers' DDIM scheduler: (i + 1)/N of the indices i that it visits.

        "leading": i = ⌊N/steps⌋ k + offset; "trailing": i = N − N k/steps − 1, which begins at
        pure noise, as zero-SNR tables need. The last step goes to t = 0, or to the table's first
        entry, t = 1/N, as Stable Diffusion's own does: `to_data`.

        Args:
            steps: How many.
            spacing: Another than the checkpoint's own.

        Raises:
            ValueError: If the table has fewer entries, or the spacing is unknown.

        Example:
            >>> Schedule().times(4).tolist()
            [0.752, 0.502, 0.252, 0.002, 0.001]
        """
        spacing = self.spacing if spacing is None else spacing
        if spacing not in _SPACINGS:
            raise ValueError(f"unknown spacing={spacing!r}; expected {' or '.join(_SPACINGS)}.")
        if spacing == "leading":
            stride = self.count // max(steps, 1)
            indices = stride * np.arange(steps)[::-1] + self.offset
        else:
            indices = np.round(self.count * (1 - np.arange(steps) / max(steps, 1))).astype(int) - 1
        falls = steps > 0 and bool(np.all(np.diff(indices) < 0))
        if not falls or indices[0] >= self.count:
            raise ValueError(
                f"steps={steps} don't fit the table's {self.count} entries; expected 1 to "
                f"{self.count // 2}."
            )
        last = 0.0 if self.to_data else 1 / self.count
        times = (indices + 1) / self.count
        return np.append(times[times > last], last)


def _check_kind(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a scheduler whose noise is no table of β."""
    kind = str(config.get("_class_name", ""))
    given = [name for name in ("sigma_data", "shift") if config.get(name) is not None]
    if kind.startswith(("EDM", "FlowMatch")) or given:
        what = [f"{name}={config[name]!r}" for name in ("_class_name", *given) if name in config]
        raise ValueError(
            f"the scheduler's config has {', '.join(what)}: its noise is EDM's or rectified "
            "flow's, which isn't supported; expected a table of β, as DDIMScheduler has. Stable "
            "Diffusion 3 is loaded by guidejax.models.stable_diffusion_3."
        )


def schedule_from(config: Mapping[str, Any]) -> Schedule:
    """What a checkpoint's `scheduler/scheduler_config.json` says of its noise.

    Args:
        config: The file's content.

    Raises:
        ValueError: If an option isn't supported; the message names it.

    Example:
        >>> schedule_from({"beta_schedule": "scaled_linear", "beta_start": 0.00085,
        ...                "beta_end": 0.012, "steps_offset": 1, "set_alpha_to_one": False})
        Schedule(table='scaled_linear', count=1000, start=0.00085, end=0.012, prediction='eps', \
zero_snr=False, spacing='leading', offset=1, to_data=False)
    """
    table = config.get("beta_schedule", "linear")
    prediction = config.get("prediction_type", "epsilon")
    for name, value, known in (
        ("beta_schedule", table, _TABLES),
        ("prediction_type", prediction, _PREDICTIONS),
    ):
        if value not in known:
            raise ValueError(
                f"the scheduler's config has {name}={value!r}, which isn't supported; expected one "
                f"of {', '.join(known)}."
            )
    _check_kind(config)
    for name in ("trained_betas", "clip_sample", "thresholding", "use_flow_sigmas"):
        if config.get(name):
            raise ValueError(
                f"the scheduler's config has {name}={config[name]!r}, which isn't supported."
            )
    spacing = config.get("timestep_spacing", "leading")
    return Schedule(
        table=table,
        count=config.get("num_train_timesteps", 1000),
        start=config.get("beta_start", 1e-4),
        end=config.get("beta_end", 0.02),
        prediction=_PREDICTIONS[prediction],
        zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
        # Other schedulers' spacings place σ, not indices.
        spacing=spacing if spacing in _SPACINGS else "leading",
        offset=config.get("steps_offset", 0),
        to_data=bool(config.get("set_alpha_to_one", True)),
    )


def ready(config: unet.Config, params: unet.Params, schedule: Schedule) -> Denoiser:
    """The denoiser of a UNet: it is told the index of the noise level, as it was trained.

    Args:
        config: The UNet's sizes.
        params: Its parameters.
        schedule: What its scheduler says.

    Example:
        >>> tiny = unet.Config((32, 64), transformers=(1, 0), heads=(2, 2), layers=(1, 1), text=8)
        >>> params = {key: jnp.zeros(shape) for key, shape in unet.shapes(tiny).items()}
        >>> ready(tiny, params, Schedule()).prediction
        'eps'
    """
    network = unet.Network(config)
    return denoiser(network, schedule.process(), schedule.prediction, time="index", params=params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """A checkpoint: its parameters are leaves, all else is static.

    Attributes:
        denoise: The UNet, as `gj.sample` takes it.
        vae: Images to latents and back.
        towers: CLIP's text towers with their tokenizers, one, or SDXL's two.
        config: The UNet's sizes.
        schedule: What the scheduler says of the noise.
        zeros: Whether no prompt is zeros, as SDXL has it, and not the embedding of "".
    """

    denoise: Denoiser
    vae: vae.Vae
    towers: tuple[clip.Clip, ...]
    config: unet.Config = dataclasses.field(metadata={"static": True})
    schedule: Schedule = dataclasses.field(metadata={"static": True})
    zeros: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that it was trained on."""
        side = self.config.sample_size * self.vae.config.factor
        return (side, side)

    def prompt(self, texts: Sequence[str], size: tuple[int, int] | None = None) -> Cond:
        """The condition of prompts, for `cond`, or of negative prompts.

        Args:
            texts: One a sample; what is longer than the tokenizer's 77 tokens is cut.
            size: Height and width in pixels, which SDXL is told, as those of an image that was
                neither scaled nor cropped; `self.size` by default.

        Returns:
            {"text": (batch, 77, width)}; for SDXL also "pooled" (batch, width) and "size" (batch,
            6), see `guidejax.models.unet.network`.

        Raises:
            ValueError: For one string in place of many, and for what isn't text.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"got {texts!r} as prompts; expected a list of strings, one a sample.")
        found = []
        for tower in self.towers:
            if tower.tokenizer is None:
                raise ValueError("the checkpoint came without the files of its tokenizer.")
            found.append(_states(tower, tower.tokenizer(texts)))
        if self.config.pooled is None:
            return {"text": found[0].hidden}
        height, width = self.size if size is None else size
        numbers = jnp.array([height, width, 0, 0, height, width], jnp.float32)
        pooled = found[-1].embedding
        if pooled is None:
            raise ValueError("the last text tower has no projection, which SDXL needs.")
        return {
            "text": jnp.concatenate([states.penultimate for states in found], axis=-1),
            "pooled": pooled,
            "size": jnp.broadcast_to(numbers, (len(texts), 6)),
        }

    def unprompted(self, size: tuple[int, int] | None = None) -> Cond:
        """The condition of no prompt, with a batch of one: `gj.sample` broadcasts it to `cond`'s.

        Args:
            size: As for `prompt`; give both the same.
        """
        found = self.prompt([""], size)
        if not self.zeros:
            return found
        return {name: leaf if name == "size" else 0 * leaf for name, leaf in found.items()}

    @property
    def uncond(self) -> Cond:
        """`unprompted()`, for `uncond`: of images of the size that it was trained on."""
        return self.unprompted()

    def noise(self, key: Array, count: int, size: tuple[int, int] | None = None) -> Array:
        """What a run starts from, N(0, I) as in diffusers: (count, height/8, width/8, channels).

        Args:
            key: One key, or (count,) keys, one a sample.
            count: How many samples.
            size: Height and width in pixels; `self.size` by default.

        Raises:
            ValueError: If the VAE's factor, 8, doesn't divide the size.
        """
        height, width = self.size if size is None else size
        factor = self.vae.config.factor
        if height % factor or width % factor or height < factor or width < factor:
            raise ValueError(
                f"size is {height} × {width} pixels; expected multiples of {factor}, (height, "
                "width)."
            )
        shape = (count, height // factor, width // factor, self.config.in_channels)
        return normal_like(as_keys(key), jnp.zeros(shape, jnp.float32))

    def times(self, steps: int, spacing: str | None = None) -> np.ndarray:
        """The times of diffusers' DDIM scheduler, (steps + 1,): see `Schedule.times`."""
        return self.schedule.times(steps, spacing)

    @property
    def decode(self) -> jax.tree_util.Partial:
        """`decode(latents)`: images (batch, height, width, 3), about [−1, 1] but not clipped.

        A pytree that can be called, so that `gj.rewards` take it.
        """
        return self.vae.decode

    def encode(self, images: Array, key: Array | None = None) -> Array:
        """The latents of images in [−1, 1], of the encoder's mean; drawn about it with a key."""
        return self.vae.encode(images, key)


@jax.jit
def _states(tower: clip.Clip, tokens: Array) -> clip.TextOutput:
    return tower.text(tokens)


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: _files.Rules = RULES,
    download: bool = False,
) -> StableDiffusion:
    """Stable Diffusion 1.x, 2.x or XL from a checkpoint in diffusers' layout.

    Args:
        path_or_repo: A folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/, for XL
            text_encoder_2/ and tokenizer_2/ as well; or a repository of the Hugging Face hub.
        dtype: Of the parameters, in which the networks compute; the VAE stays in float32 where
            float16 is asked for, in which SDXL's overflows.
        mesh: Devices to split the parameters over, whose axis "model" must be automatic.
        rules: How; heads, hidden units and channels over an axis "model" by default.
        download: Whether a repository may be downloaded: the files that are read alone. Its
            licence is agreed to by that.

    Raises:
        FileNotFoundError: Where there is no such folder, or a part of it is missing.
        ValueError: Where files are of another model, damaged, or of an unsupported option.
    """
    path = _files.find(path_or_repo, download=download, only=_FILES)
    _check_folder(path)
    options: dict[str, Any] = {"mesh": mesh, "rules": rules}
    params, config = unet.load(path / "unet", dtype=dtype, **options)
    schedule = schedule_from(json_of(path / "scheduler", "scheduler_config.json"))
    names = ["text_encoder"] if config.pooled is None else ["text_encoder", "text_encoder_2"]
    towers = tuple(clip.load(path / name, dtype=dtype, **options) for name in names)
    width = sum(tower.config.text.width for tower in towers if tower.config.text)
    if width != config.text:
        raise ValueError(
            f"the text towers of {path} are {width} wide together, but its UNet looks at text of "
            f"width {config.text}; they are of different checkpoints."
        )
    wide = jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype
    images = vae.load(path / "vae", dtype=wide, **options)
    if images.config.latent_channels != config.out_channels:
        raise ValueError(
            f"the VAE of {path} has latents of {images.config.latent_channels} channels, but its "
            f"UNet predicts {config.out_channels}; they are of different checkpoints."
        )
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"the UNet of {path} takes {config.in_channels} channels and predicts "
            f"{config.out_channels}: it is told an image as well, which isn't supported."
        )
    empty = json_of(path, "model_index.json").get("force_zeros_for_empty_prompt", True)
    return StableDiffusion(
        ready(config, params, schedule),
        images,
        towers,
        config,
        schedule,
        zeros=bool(empty) and config.pooled is not None,
    )


def _check_folder(path: pathlib.Path) -> None:
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    missing = [part for part in parts if not (path / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{path} isn't a checkpoint in diffusers' layout: it lacks {', '.join(missing)} of the "
            f"folders {', '.join(parts)}."
        )
    if not (path / "scheduler" / "scheduler_config.json").is_file():
        raise FileNotFoundError(f"{path / 'scheduler'} lacks scheduler_config.json.")
