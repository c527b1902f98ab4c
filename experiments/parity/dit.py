"""DiT, SiT, REPA and LightningDiT beside their originals."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.parity.originals.common import value
from guidejax.models import dit

Arrays = Mapping[str, np.ndarray]
Pairs = dict[str, tuple[Any, Any]]

SMALL: dict[str, Any] = {"width": 48, "depth": 2, "heads": 4, "patch": 2, "side": 8, "classes": 5}
CONFIGS = {
    "dit-DiT": dit.Config(family="dit", **SMALL),
    "dit-SiT": dit.Config(family="sit", **SMALL),
    "dit-REPA": dit.Config(family="repa", learn_sigma=False, **SMALL),
    "dit-LightningDiT": dit.Config(
        family="lightning", learn_sigma=False, modern=True, channels=6, **SMALL
    ),
    "dit-diffusers": dit.Config(family="dit", **SMALL),
}
LAYOUTS = {
    name: dit.shapes(dit.config(name))
    for name in (
        *(f"{family}-{size}/{patch}" for family in ("DiT", "SiT", "REPA")
          for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)
          if (family, size) != ("REPA", "S")),
        *(f"LightningDiT-{size}" for size in
          ("B/1", "B/2", "L/2", "XL/1", "XL/2", "1p0B/1", "1p0B/2", "1p6B/1", "1p6B/2")),
    )
}  # fmt: skip


def file(name: str, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a case's random checkpoint, by their keys there."""
    tensors = {key: value(key, tuple(shape)) for key, shape in about["shapes"].items()}
    if name == "dit-diffusers":  # One embedder, filled last in the last block.
        last = max(key.split(".")[1] for key in tensors if key.startswith("transformer_blocks"))
        for key in tensors:
            if ".norm1.emb." in key:
                rest = key.split(".norm1.emb.")[1]
                tensors[key] = tensors[f"transformer_blocks.{last}.norm1.emb.{rest}"]
    return tensors


def _loaded(name: str, about: Mapping[str, Any]) -> gj.Denoiser:
    """The denoiser of a case's random checkpoint, which is written first."""
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as folder:
        save_file(file(name, about), f"{folder}/model.safetensors")
        return dit.load(folder, CONFIGS[name])


def compare(name: str, arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """The network on the original's input."""
    config, params = CONFIGS[name], _loaded(name, about).params
    x, t, y = (jnp.asarray(arrays[key]) for key in ("x", "t", "y"))
    output = lambda x: dit.network(params, x, t, y, config)  # noqa: E731
    gradient = jax.grad(lambda x: jnp.sum(output(x) ** 2))(x)
    size = np.abs(arrays["gradient"]).max()
    return {
        "output": (output(x), arrays["output"]),
        "input gradient": (gradient / size, arrays["gradient"] / size),
    }


def sampling(arrays: Arrays, about: Mapping[str, Any]) -> Pairs:
    """SiT's guided samples from the same noise, by as many Euler steps."""
    guide = gj.guidance(gj.cfg, gj.from_scale(about["scale"]), mask=jnp.arange(4) < 3)
    x0 = gj.sample(
        jax.random.key(0), _loaded("dit-SiT", about), jnp.asarray(arrays["noise"]),
        cond=jnp.asarray(arrays["y"][:2]), uncond=int(arrays["y"][-1]), guidance=guide,
        solver=gj.euler(), times=gj.uniform_times(about["steps"]),
    )  # fmt: skip
    return {"guided samples": (x0, arrays["output"])}


CASES: dict[str, Callable[[Arrays, Mapping[str, Any]], Pairs]] = {
    **{name: functools.partial(compare, name) for name in CONFIGS},
    "dit-SiT-sampling": sampling,
}
