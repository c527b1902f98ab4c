"""diffrax: `vector_field` in its solver against `gj.sample`, in values and gradients."""

from __future__ import annotations

import importlib.metadata

import diffrax
import jax
import jax.numpy as jnp

import guidejax as gj
from experiments.interop.checks.common import CLASSES, KEY, network, problem, report

VERSION = importlib.metadata.version("diffrax")


def main() -> None:
    """Heun's method from t = 1 to 0.1, and the gradient in ω under both adjoints."""
    noise, labels = problem()
    denoise = gj.denoiser(network, gj.processes.rectified_flow(), prediction="velocity")
    times = gj.uniform_times(18, 1.0, 0.1)

    def ours(omega):
        guide = gj.guidance(gj.adg, omega=omega)
        options = {"cond": labels, "uncond": jnp.int32(CLASSES), "guidance": guide}
        return gj.sample(KEY, denoise, noise, times=times, solver=gj.heun(), **options)

    @jax.jit
    def theirs(omega, adjoint=None):
        guide = gj.guidance(gj.adg, omega=omega)
        field = gj.guided(denoise, guide, cond=labels, uncond=jnp.int32(CLASSES))
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(gj.interop.diffrax.vector_field),
            diffrax.Heun(),
            1.0,
            0.1,
            -0.05,
            noise,
            args=field,
            adjoint=adjoint or diffrax.RecursiveCheckpointAdjoint(),
        )
        return found.ys[-1]

    report("diffrax", VERSION, "its Heun, adg", theirs(2.0), ours(2.0))
    want = jax.grad(lambda omega: ours(omega).sum())(2.0)
    got = jax.grad(lambda omega: theirs(omega).sum())(2.0)
    report("diffrax", VERSION, "the gradient in ω, RecursiveCheckpointAdjoint", got, want)


if __name__ == "__main__":
    main()
