"""Public models beside their PyTorch originals, on random weights.

    python -m experiments.parity --checkout DiT=PATH SiT=PATH REPA=PATH LightningDiT=PATH

Makes an environment with torch, diffusers, transformers, timm and torch-fidelity, lets the
originals make their outputs and input gradients there, loads the same weights here, and writes the
largest differences to docs/models.md. Originals that aren't packaged are given as checkouts; where
one isn't given, or an environment can't be made, what the repository keeps of it is compared
(tests/models/reference).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import pathlib
import shutil
import subprocess
import sys
import venv
from typing import Any

import jax
import numpy as np
import tyro

from experiments import logs

ROOT = pathlib.Path(__file__).parent
ORIGINALS = ROOT / "originals"
REFERENCE = ROOT.parent.parent / "tests" / "models" / "reference"
DOCS = ROOT.parent.parent / "docs" / "models.md"
PACKAGES = (
    "torch", "diffusers", "transformers", "timm", "einops", "safetensors", "torch-fidelity",
)  # fmt: skip
FAMILIES = tuple(
    sorted(path.stem for path in ROOT.glob("*.py") if (ORIGINALS / path.name).exists())
)

LOG = logging.getLogger("experiments.parity")


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare models with their originals."""

    families: tuple[str, ...] = FAMILIES
    """Which of them."""
    checkout: tuple[str, ...] = ()
    """NAME=PATH of each original that isn't packaged: DiT, SiT, REPA, LightningDiT."""
    python: pathlib.Path | None = None
    """A Python that has torch and the others already; by default an environment is made."""
    out: pathlib.Path = pathlib.Path("runs/parity")
    """Where the environment and what the originals make go."""
    keep: bool = False
    """Whether to keep what the originals made in tests/models/reference, for the suite."""


def environment(out: pathlib.Path) -> pathlib.Path:
    """The Python of an environment with the originals' packages, made where there is none."""
    python = out / "env" / "bin" / "python"
    if not python.exists():
        LOG.info("making an environment with %s", ", ".join(PACKAGES))
        venv.create(out / "env", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A case: its arrays, and what is said about it."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("about")))


def compare(family: str, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The largest differences of a family's cases, as rows of the table."""
    from experiments.parity.originals.common import layout

    module, rows = importlib.import_module(f"experiments.parity.{family}"), []
    for name, case in module.CASES.items():
        path = next(f for f in (folder / f"{name}.npz", REFERENCE / f"{name}.npz") if f.exists())
        arrays, about = read(path)
        pairs = case(arrays, about)
        versions = {k: about[k] for k in (*PACKAGES, "torchvision") if k in about}
        differences = {
            what: float(np.max(np.abs(np.asarray(ours, np.float64) - theirs)))
            for what, (ours, theirs) in pairs.items()
        }
        rows.append({"case": name, "versions": versions, "differences": differences})
        LOG.info("%s: %s", name, differences)
    name = f"{family}-layouts"
    for path in (folder / f"{name}.npz", REFERENCE / f"{name}.npz"):
        if path.exists():
            theirs = read(path)[1]["layouts"]
            wrong = [size for size in theirs if layout(module.LAYOUTS[size]) != theirs[size]]
            rows.append({"case": name, "sizes": sorted(theirs), "wrong": wrong})
            LOG.info("%d layouts, wrong: %s", len(theirs), wrong or "none")
            break
    return rows


HEAD = """# Public models

`gj.models` has each as pure functions of its parameters, which stand under the keys of the published file: a diffusion model is
`network(params, x, t, cond, config)`, towers have `text` and `image`, VAEs `encode` and `decode`. `load(path_or_repo, ...)` checks keys and
shapes before it reads. Images and latents are channels last. A path is a .safetensors
file, a folder, or a repository of the Hugging Face hub that is on this machine already; nothing is downloaded without `download=True`.
PyTorch's pickles are converted by `python -m guidejax.models.convert`, which needs torch.

| module | models | licence of the weights |
|---|---|---|
| `models.dit` | DiT (diffusers' copies too), SiT, REPA, LightningDiT | DiT CC-BY-NC 4.0; SiT, REPA, LightningDiT MIT |
| `models.stable_diffusion` | Stable Diffusion 1.x, 2.x, XL, with `unet`, `vae`, `clip`, `tokenizer` | CreativeML OpenRAIL-M, OpenRAIL++-M |
| `models.stable_diffusion_3` | SD3, SD3.5, with `sd3` and `t5` | Stability AI Community License; T5 Apache-2.0 |
| `models.clip`, `models.siglip` | CLIP B/32 to H/14 and bigG's text; SigLIP 1 and 2 | OpenAI and LAION MIT; SigLIP Apache-2.0 |
| `models.inception` | the Inception v3 of Fréchet inception distances | Apache-2.0 |

Traps that the loaders take care of: SiT and LightningDiT have data at t = 1, REPA at t = 0; DiT's and SiT's learned variance doubles the
output; their published numbers guide the first 3 of 4 channels (`mask=jnp.arange(4) < 3`); diffusers' copies of DiT hold q, k and v
apart, and space the frequencies of the time otherwise than the weights were trained with.

FIDs are of pictures of 8 bits, resized as TensorFlow 1.x resized them, and of an Inception that pools otherwise than torchvision's:
`models.inception` does all three as torch-fidelity does. Its gradient is compared in float64, at 96 × 96 pixels: in float32 some ReLUs and
maxima are decided by the order of sums, and PyTorch's own gradient is 1% of its largest off its float64 one.

SD3's transformer is written here rather than taken from keras-hub: it loads the published safetensors under their own keys, is placed by
one rule a key, computes in bfloat16, and needs no Keras.

## Beside the originals

Written by `python -m experiments.parity`. Random weights in the published layouts, in float32 on CPU; the largest absolute difference
from PyTorch, of outputs of order one (those of samplings, of SD3 and of Inception over their largest value) and of input gradients over
their largest. Nothing here was run with published weights: they couldn't be downloaded.

| case | largest difference | original |
|---|---|---|
"""


def page(rows: list[dict[str, Any]]) -> str:
    """docs/models.md."""
    lines = HEAD.splitlines()
    for row in rows:
        if "differences" in row:
            pairs = ", ".join(f"{what} {value:.1e}" for what, value in row["differences"].items())
            found = pairs.replace("|", "\\|")
            versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
            lines.append(f"| {row['case']} | {found} | {versions} |")
    lines += ["", "## Published sizes", ""]
    lines += ["Keys and shapes of the original on PyTorch's meta device, compared with ours:", ""]
    for row in rows:
        if "sizes" in row:
            wrong = f"; **wrong: {', '.join(row['wrong'])}**" if row["wrong"] else ", all equal"
            lines.append(
                f"- {row['case'].removesuffix('-layouts')}: {', '.join(row['sizes'])}{wrong}."
            )
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Run the originals, compare, and write the page."""
    logs.begin()
    jax.config.update("jax_default_matmul_precision", "highest")
    folder = config.out.absolute() / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        python = config.python or environment(config.out)
    except subprocess.CalledProcessError as error:
        LOG.warning("no environment (%s): what the repository keeps is compared", error)
        python = None
    rows = []
    for family in config.families:
        if python is not None:
            LOG.info("%s: the original", family)
            command = [str(python), f"{family}.py", str(folder), *config.checkout]
            subprocess.run(command, check=True, cwd=ORIGINALS)
        rows += compare(family, folder)
    if config.keep:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.npz"):
            shutil.copy(path, REFERENCE)
    if set(config.families) == set(FAMILIES):
        DOCS.write_text(page(rows))
    bad = [row["case"] for row in rows if row.get("wrong")]
    if bad:
        sys.exit(f"layouts differ: {', '.join(bad)}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
