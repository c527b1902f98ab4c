r"""Pictures from any supported checkpoint with any guidance.

    python -m experiments.generate --model.checkpoint stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --prompts "a lighthouse in a storm" "a bowl of plums" --guide.rule adg --guide.omega 6.5
    python -m experiments.generate --model.checkpoint SiT-XL-2-256.safetensors \
        --model.name SiT-XL/2 --model.vae sd-vae-ft-ema --classes 207 360 --omegas 0 1.5 4 8

Writes `grid.png`, prompts down and guidance across, all from the same noise; a picture each under
`pictures`; and `statistics.json`: saturation, norms and clipped pixels of each column. A column
that is drawn isn't drawn again: the same command goes on with a run that was stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
import textwrap
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import guidejax as gj
from experiments import checkpoints, guides, logs
from experiments.statistics import clipped_fraction, rms_contrast, sample_rms, saturation

LOG = logging.getLogger("experiments.generate")


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw pictures from a checkpoint."""

    model: checkpoints.Model
    prompts: tuple[str, ...] = ()
    """What to draw, of a text-to-image model."""
    classes: tuple[str, ...] = ()
    """What to draw, of a class-conditional one."""
    guide: guides.Guide = dataclasses.field(default_factory=guides.Guide)
    omegas: tuple[float, ...] = ()
    """Weights to draw beside each other from the same noise, in place of the one of the guide."""
    rules: tuple[str, ...] = ()
    """Rules to draw beside each other, such as "cfg adg"; each at every weight."""
    count: int = 1
    """Pictures of each prompt or class."""
    batch: int = 8
    """Pictures at a time, over all devices."""
    steps: int = 30
    """Of the sampler, the model's own: DDIM or Euler, on its own times."""
    seed: int = 0
    """Of the noise."""
    out: pathlib.Path = pathlib.Path("runs/generate")
    """Where pictures and statistics go."""


def columns(config: Config) -> dict[str, guides.Guide]:
    """The guides that are drawn beside each other, by their labels: a learned weight the last."""
    unknown = sorted(set(config.rules) - set(guides.RULES))
    if unknown:
        raise SystemExit(f"--rules {unknown[0]}: expected some of {', '.join(guides.RULES)}.")
    found = [] if config.guide.weight is None else [config.guide]
    if not found or config.rules or config.omegas:
        swept = [
            dataclasses.replace(
                config.guide, weight=None, rule=cast(guides.Rule, rule), omega=omega
            )
            for rule in config.rules or (config.guide.rule,)
            for omega in config.omegas or (config.guide.omega,)
        ]
        found = [*swept, *found]
    return {guides.label(each): each for each in found}


@functools.partial(jax.jit, static_argnames=("times", "window", "progress"))
def _draw(
    key: Any, denoise: Any, noise: Any, cond: Any, uncond: Any, guide: Any, solver: Any, *,
    times: Any, window: tuple[float, float], progress: bool,
) -> Any:  # fmt: skip
    if guide is not None and window != (0.0, 1.0):
        guide = guides.windowed(guide, *window)
    return gj.sample(
        key, denoise, noise, cond=cond, uncond=uncond, guidance=guide, times=np.array(times),
        solver=solver, progress=progress,
    )  # fmt: skip


def draw(
    found: checkpoints.Checkpoint, said: list[str], guide: gj.Guidance | None, *, steps: int,
    seed: int, batch: int, mesh: Any, window: tuple[float, float] = (0.0, 1.0),
    progress: bool = False,
) -> np.ndarray:  # fmt: skip
    """x0 of what is said, (n, ...); the noise of a sample depends on the seed and its place.

    Without a guidance it is the conditional model's. Outside of `window`, times (lo, hi), there is
    none, nor its pass.
    """
    rows = []
    for start in range(0, len(said), batch):
        part = said[start : start + batch]
        # The last, short batch is filled up: one program for all, split over the devices alike.
        part = part + part[-1:] * (batch - len(part))
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
            start + np.arange(batch)
        )
        noise = jnp.concatenate([found.noise(key, 1) for key in keys])
        keys, noise, cond = checkpoints.split((keys, noise, found.condition(part)), mesh)
        x0 = _draw(
            keys, found.denoise, noise, cond, found.uncond, guide, found.solver,
            times=tuple(float(t) for t in found.times(steps)), window=window, progress=progress,
        )  # fmt: skip
        rows.append(np.asarray(x0)[: len(said) - start])
    return np.concatenate(rows)


def kept(path: pathlib.Path, about: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` returns, kept in a file: a run that was stopped goes on with what it lacks."""
    told = json.dumps(about, default=str)
    if path.exists():
        with np.load(path) as file:
            if str(file["about"]) == told:
                return file["x0"]
    x0 = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, x0=x0, about=np.array(told))
    part.replace(path)
    return x0


def pictures(found: checkpoints.Checkpoint, x0: np.ndarray, batch: int) -> np.ndarray:
    """x0 as pictures in [0, 1]: decoded, or the first three channels where there is no VAE."""
    if found.decode is None:
        shown = x0[..., :3] if x0.shape[-1] >= 3 else np.repeat(x0[..., :1], 3, axis=-1)
    else:
        decode = jax.jit(lambda decode, z: decode(z))
        parts = [x0[i : i + batch] for i in range(0, len(x0), batch)]
        shown = np.concatenate([np.asarray(decode(found.decode, part)) for part in parts])
    return (np.clip(shown.astype(np.float32), -1, 1) + 1) / 2


def statistics(x0: np.ndarray, shown: np.ndarray) -> dict[str, float]:
    """Of x0 the norm; of the pictures saturation, contrast and clipped pixels."""
    images = jnp.asarray(2 * shown - 1)
    return {
        "norm": float(jnp.mean(sample_rms(jnp.asarray(x0)))),
        "saturation": float(jnp.mean(saturation(images))),
        "contrast": float(jnp.mean(rms_contrast(images))),
        "clipped": float(jnp.mean(clipped_fraction(images))),
    }


def grid(columns: dict[str, np.ndarray], said: list[str], path: pathlib.Path) -> None:
    """What was said down, guidance across."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(said), len(columns), squeeze=False,
        figsize=(2.2 * len(columns) + 1.6, 2.2 * len(said) + 0.4),
    )  # fmt: skip
    for column, (label, shown) in enumerate(columns.items()):
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(shown[row], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if not row:
                axis.set_title(textwrap.fill(label, 20), fontsize=10)
            if not column:
                text = textwrap.fill(said[row], 18)
                axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=10)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main(config: Config) -> dict[str, Any]:
    """Draw the grid and its statistics."""
    import PIL.Image

    logs.begin()
    mesh = checkpoints.devices(config.model)
    if config.batch % mesh.shape["data"]:
        raise SystemExit(
            f"--batch {config.batch} isn't a multiple of {mesh.shape['data']} devices."
        )
    shown_by = columns(config)
    found = checkpoints.load(config.model, mesh)
    asked = config.prompts if found.kind == "prompts" else config.classes
    if not asked:
        raise SystemExit(f"say what to draw: this model takes --{found.kind}.")
    said = [each for each in asked for _ in range(config.count)]
    LOG.info("%d pictures a column, %d columns, on %s", len(said), len(shown_by), jax.devices())
    config.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    drawn: dict[str, np.ndarray] = {}
    for label, guide in shown_by.items():
        name = label.replace(" ", "").replace(",", "-")
        bound = guides.guidance(guide, found.noise(jax.random.key(0), 1).shape[-1])
        plain = guide.weight is None and guide.omega == 0
        about = [
            dataclasses.asdict(config.model), found.told, dataclasses.asdict(guide),
            checkpoints.digest(bound), said, config.steps, config.seed,
        ]  # fmt: skip
        x0 = kept(
            config.out / "columns" / f"{name}.npz",
            about,
            functools.partial(
                draw, found, said, None if plain else bound, steps=config.steps,
                seed=config.seed, batch=config.batch, mesh=mesh, window=(guide.lo, guide.hi),
                progress=True,
            ),
        )  # fmt: skip
        drawn[label] = pictures(found, x0, config.batch)
        results[label] = statistics(x0, drawn[label])
        LOG.info("%s: %s", label, ", ".join(f"{k} {v:.3f}" for k, v in results[label].items()))
        folder = config.out / "pictures" / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(drawn[label]):
            PIL.Image.fromarray(np.uint8(255 * image + 0.5)).save(folder / f"{i:04d}.png")
    grid(drawn, said, config.out / "grid.png")
    (config.out / "statistics.json").write_text(json.dumps(results, indent=1))
    LOG.info("%s", config.out / "grid.png")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
