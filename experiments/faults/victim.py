"""A run that things happen to: ω learned for a mixture whose denoiser is exact.

    python -m experiments.faults.victim DIRECTORY [--steps 200] [--slow 0.02] [--full 4096]

Started alone or as several processes (`experiments.distributed.local.start`). It prints "step N" as
it goes, so that somebody may watch it, and leaves φ in DIRECTORY/phi.npy.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Annotated

import jax
import numpy as np
import optax
import tyro

from experiments.distributed import local

BATCH, SAVE_EVERY = 16, 20


@dataclasses.dataclass(frozen=True)
class Config:
    """The run."""

    directory: Annotated[pathlib.Path, tyro.conf.Positional]
    """Its checkpoint_dir."""
    steps: int = 200
    """Updates."""
    slow: float = 0.0
    """Seconds that it sleeps after every ten of them."""
    full: int = 0
    """Bytes after which a file can't grow, as on a full disk; 0 for no limit."""


def fit(config: Config) -> np.ndarray:
    """φ, flat; called again it goes on."""
    import guidejax as gj
    from guidejax import analytic

    process = gj.processes.rectified_flow()
    model = analytic.by_class(analytic.mixture([[-1.0], [1.5]], stds=[0.5, 0.25]), [0, 1])
    net = gj.OmegaNet(num_classes=2, hidden=8, depth=1)
    index, count = jax.process_index(), jax.process_count()
    rows = slice(index * BATCH // count, (index + 1) * BATCH // count)
    rng = np.random.default_rng(0)
    data = []
    for _ in range(config.steps):
        cond = rng.integers(0, 2, BATCH).astype(np.int32)
        x0 = np.where(cond, 1.5, -1.0) + np.where(cond, 0.25, 0.5) * rng.standard_normal(BATCH)
        data.append({"x0": x0[rows, None].astype(np.float32), "cond": cond[rows]})

    def progress(step: int, metrics: dict[str, float]) -> None:
        print("step", step, flush=True)
        time.sleep(config.slow)

    phi = gj.fit_omega(
        jax.random.key(0), net, analytic.denoiser(model, process), data,
        objective=gj.self_consistency(particles=2), optimizer=optax.sgd(0.05),
        steps=config.steps, save_every=SAVE_EVERY, checkpoint_dir=config.directory,
        mesh=jax.make_mesh((jax.device_count(),), ("data",)), progress=progress,
    )  # fmt: skip
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(phi))])


def main(config: Config) -> None:
    """Run to the end, unless something happens."""
    local.join()
    if config.full:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (config.full, resource.RLIM_INFINITY))
    phi = fit(config)
    if jax.process_index() == 0:
        np.save(config.directory / "phi.npy", phi)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
