"""Learn ω on the digits on every device there is, on one host or on many.

    python -m experiments.distributed                  # this machine's devices
    python -m experiments.distributed --processes 4    # four processes here, as on four hosts
    srun -n 4 python -m experiments.distributed        # Slurm; a TPU pod: the same on every worker

Every process reads its own rows of each batch. The first one writes; it may be killed or preempted,
and the same command goes on.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax
import tyro

import guidejax as gj
import guidejax.data
from experiments.digits import networks
from experiments.digits.config import NUM_CLASSES, Sizes
from experiments.distributed import local

NET = gj.OmegaNet(num_classes=NUM_CLASSES)
OPTIMIZER = optax.adam(1e-3)


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn ω by self-consistency on all devices."""

    processes: int = 1
    """Processes to start on this machine."""
    devices: int = 1
    """Virtual CPU devices of each, where there are several processes."""
    steps: int = 1000
    """Updates."""
    batch: int = 64
    """Examples of an update, over all processes."""
    save_every: int = 100
    """Updates between checkpoints."""
    denoiser_steps: int = 400
    """Steps of the denoiser that is frozen then; every process trains the same."""
    out: pathlib.Path = pathlib.Path("runs/distributed")
    """Where checkpoints and metrics.jsonl go, on the first host."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps the digits; by default inside `out`."""


def main(config: Config) -> int:
    """Train, here or in processes of one's own; the exit status."""
    if config.processes > 1:
        gj.data.prepare("digits", data_dir=config.data_dir or config.out / "data")
        return local.wait(local.start(config.processes, _arguments(config), config.devices))
    local.join()
    first = jax.process_index() == 0
    if first:
        print(
            f"{jax.process_count()} processes, {jax.device_count()} devices: {jax.devices()[0]}",
            flush=True,
        )
    data_dir = config.data_dir or config.out / "data"
    gj.data.prepare("digits", data_dir=data_dir)
    images = gj.data.Images("digits", data_dir=data_dir)
    train = images.arrays()
    denoise = networks.train_denoiser(
        jax.random.key(0), Sizes(), config.denoiser_steps, jnp.asarray(train["x0"]),
        jnp.asarray(train["cond"]),
    )  # fmt: skip
    mesh = jax.make_mesh((jax.device_count(),), ("data",))

    def progress(step: int, metrics: dict[str, float]) -> None:
        if first and step % 100 == 0:
            print(f"step {step} of {config.steps}: loss {metrics['loss']:.4f}", flush=True)

    phi = gj.fit_omega(
        jax.random.key(1), NET, denoise,
        gj.data.load(images, batch_size=config.batch, seed=0),
        objective=gj.self_consistency(), optimizer=OPTIMIZER, steps=config.steps, mesh=mesh,
        checkpoint_dir=config.out / "omega", save_every=config.save_every, progress=progress,
    )  # fmt: skip
    if first:
        omega = NET.weight(phi).table(
            gj.uniform_times(8), jnp.arange(NUM_CLASSES), process=networks.PROCESS
        )
        print("ω, mean over classes, noise to data:", jnp.mean(omega, axis=1).round(2))
    return 0


def _arguments(config: Config) -> list[str]:
    """The command line of one of the processes."""
    given = ["experiments.distributed"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("processes", "devices") and value is not None:
            given += [f"--{field.name.replace('_', '-')}", str(value)]
    return given


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
