"""Checkpoints of public models, by their files: what `generate`, `learn` and `evaluate` share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import guidejax as gj


@dataclasses.dataclass(frozen=True)
class Model:
    """Which checkpoint, and how it is held."""

    checkpoint: str
    """A folder or file of weights, or a repository of the Hugging Face hub ("owner/name")."""
    name: str = ""
    """Of a class-conditional transformer, such as SiT-XL/2 or DiT-XL/2; a folder in diffusers'
    layout, and one with a guidejax.json of the network's sizes, say themselves what they are."""
    vae: str = ""
    """Of a class-conditional transformer: the folder of Stable Diffusion's VAE, to see its latents
    as pictures."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters; bfloat16 on TPUs and GPUs."""
    mesh: tuple[int, ...] = ()
    """Devices by samples, and by parts of the parameters: "4 2". All by samples by default."""
    download: bool = False
    """Whether a repository may be downloaded. Its licence is agreed to by that."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is ready to sample from.

    Attributes:
        denoise: The denoiser.
        uncond: The null condition, for `gj.sample`.
        kind: What a condition is told by: "prompts" or "classes".
        condition: From prompts, or classes as text, to conditions, one a sample.
        noise: (key, count) to what a run starts from.
        times: From a number of steps to the times of the model's own sampler.
        solver: Of the model's own sampler.
        decode: From x0 to pictures in [-1, 1], or None where there is no VAE.
        encode: From pictures in [-1, 1] to x0, or None.
        pixels: Height and width of its pictures.
        told: What tells its files from others'.
        text: Where a condition's pooled text is, for `gj.OmegaNet(cond=...)`; None for classes.
        text_dim: Its width.
        classes: How many classes.
    """

    denoise: gj.Denoiser
    uncond: Any
    kind: Literal["prompts", "classes"]
    condition: Callable[[Sequence[str]], Any]
    noise: Callable[[Any, int], Any]
    times: Callable[[int], Any]
    solver: Any
    decode: Any
    encode: Any
    pixels: int
    told: str
    text: Callable[[Any], Any] | None = None
    text_dim: int | None = None
    classes: int | None = None


def devices(model: Model) -> Mesh:
    """The mesh over all devices: samples along "data", parameters along "model"."""
    if jax.process_count() > 1:
        raise SystemExit(
            f"this command runs in one process, and here are {jax.process_count()}: on several "
            "hosts call gj.sample and gj.fit, which share the work, from a program of your own."
        )
    shape = model.mesh or (jax.device_count(),)
    shape = (*shape, 1)[:2]
    if np.prod(shape) != jax.device_count():
        raise SystemExit(
            f"--mesh {' '.join(map(str, model.mesh))} has {np.prod(shape)} devices; there are "
            f"{jax.device_count()}."
        )
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def fingerprint(path: str | pathlib.Path) -> str:
    """What tells a file, or a folder's files, from others: names, sizes, and parts of each."""
    root, found = pathlib.Path(path).expanduser(), hashlib.sha256()
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        found.update(f"{file.relative_to(root)} {size}\n".encode())
        with file.open("rb") as opened:
            for start in (0, size // 2, max(0, size - 2**16)):
                opened.seek(start)
                found.update(opened.read(2**16))
    return found.hexdigest()


def digest(guide: gj.Guidance) -> str:
    """What tells a guidance's numbers from others: those of a learned weight, for one."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(guide):
        found.update(f"{jnp.shape(leaf)} {jnp.result_type(leaf)} ".encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def same(path: pathlib.Path, about: dict[str, Any]) -> None:
    """Note in a file what a folder's results are of, or stop where they are of something else."""
    told = json.loads(json.dumps(about))
    if path.is_file():
        there = json.loads(path.read_text())
        other = [name for name in told if there.get(name) != told[name]]
        if other:
            differ = "; ".join(f"{n} {there.get(n)!r}, now {told[n]!r}" for n in other)
            raise SystemExit(f"{path.parent} is of another run ({differ}): give another --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1))


def split(tree: Any, mesh: Mesh) -> Any:
    """Arrays split over the mesh by samples."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), tree)


def load(model: Model, mesh: Mesh | None = None) -> Checkpoint:
    """The checkpoint that the flags say."""
    from guidejax.models import _files

    path = _files.find(model.checkpoint, download=model.download)
    options: dict[str, Any] = {"dtype": jnp.dtype(model.dtype), "mesh": mesh}
    if (path / "model_index.json").is_file():
        kind = json.loads((path / "model_index.json").read_text()).get("_class_name", "")
        if "StableDiffusion3" in kind:
            return _stable_diffusion_3(path, options)
        if "StableDiffusion" in kind:
            return _stable_diffusion(path, options)
        if "DiT" not in kind:
            raise SystemExit(f"{path} is of a {kind}, which isn't supported.")
    return _transformer(path, model, options)


def _stable_diffusion(path: pathlib.Path, options: dict[str, Any]) -> Checkpoint:
    from guidejax.models import stable_diffusion

    sd = stable_diffusion.load(path, **options)
    return Checkpoint(
        sd.denoise, sd.uncond, "prompts", sd.prompt, sd.noise, sd.times, gj.ddim(), sd.decode,
        _encoder(sd.vae), sd.size[0], fingerprint(path), mean_of_text, sd.config.text,
    )  # fmt: skip


def _stable_diffusion_3(path: pathlib.Path, options: dict[str, Any]) -> Checkpoint:
    from guidejax.models import stable_diffusion_3

    sd = stable_diffusion_3.load(path, **options)
    return Checkpoint(
        sd.denoise, sd.uncond, "prompts", sd.prompt, sd.noise, sd.times, gj.euler(), sd.decode,
        _encoder(sd.vae), sd.size[0], fingerprint(path), mean_of_text, sd.config.text,
    )  # fmt: skip


def _encoder(vae: Any) -> jax.tree_util.Partial:
    """`encode(images)` of a VAE, as a pytree."""
    return jax.tree_util.Partial(_encode, vae)


def _encode(vae: Any, images: Any) -> jax.Array:
    return vae.encode(images)


def mean_of_text(cond: Any) -> jax.Array:
    """The mean of a prompt's embeddings over its tokens, (batch, width)."""
    return cond["text"].astype(jnp.float32).mean(axis=1)


def _transformer(path: pathlib.Path, model: Model, options: dict[str, Any]) -> Checkpoint:
    from guidejax.models import dit, vae

    folder = path if path.is_dir() else path.parent
    about = folder / "guidejax.json"
    if model.name:
        config = dit.config(model.name)
    elif about.is_file():
        config = dit.Config(**json.loads(about.read_text()))
    else:
        raise SystemExit(
            f"{path} doesn't say which network it is of: give --model.name, such as SiT-XL/2."
        )
    denoise = dit.load(path, config, **options)
    images = vae.load(model.vae, **options) if model.vae else None

    def condition(classes: Sequence[str]) -> jax.Array:
        wrong = [each for each in classes if not each.isdigit() or int(each) >= config.classes]
        if wrong:
            raise SystemExit(
                f"{', '.join(wrong)} are no classes of this model, which are 0 to "
                f"{config.classes - 1}."
            )
        return jnp.array([int(each) for each in classes])

    def noise(key: jax.Array, count: int) -> jax.Array:
        return jax.random.normal(key, (count, config.side, config.side, config.channels))

    return Checkpoint(
        denoise, config.classes, "classes", condition, noise, gj.uniform_times,
        gj.ddim() if config.family == "dit" else gj.euler(),
        images.decode if images else None, _encoder(images) if images else None,
        config.side * (images.config.factor if images else 1),
        " ".join(fingerprint(each) for each in (path, model.vae) if each), classes=config.classes,
    )  # fmt: skip
