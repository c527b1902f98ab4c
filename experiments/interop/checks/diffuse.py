"""diffuse_nnx: its interfaces and samplers against `gj.sample`; takes its checkout."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import guidejax as gj
from experiments.interop.checks.common import CLASSES, IN, KEY, LABEL, OUT, commit, problem, report

# Its samplers have the null label of ImageNet built in.
NULL = 1000


class Network(nnx.Module):
    """The small network in its protocol: (x, t, y) -> (output, features)."""

    def __init__(self) -> None:
        self.inner, self.outer = nnx.Param(jnp.asarray(IN)), nnx.Param(jnp.asarray(OUT))
        self.label = nnx.Param(jnp.asarray(LABEL))

    def __call__(self, x: Any, t: Any, y: Any) -> Any:
        """Label 1000 is none."""
        table = self.label[jnp.where(y == NULL, CLASSES, y)]
        hidden = jnp.tanh(x @ self.inner[...] + table + t[:, None])
        return hidden @ self.outer[...], hidden


def main(folder: str) -> None:
    """Its Euler sampler with its own guidance, and EDM's tangent."""
    sys.path.insert(0, folder)
    from interfaces.continuous import EDMInterface, SiTInterface
    from samplers.samplers import EulerSampler, SamplingTimeDistType

    version = commit(folder)
    noise, labels = problem()
    sit = SiTInterface(Network(), "uniform")
    sampler = EulerSampler(10, SamplingTimeDistType.UNIFORM)
    theirs = sampler.sample(KEY, sit, noise, guidance_scale=2.5, y=labels)
    guide = gj.guidance(gj.cfg, omega=gj.from_scale(2.5))
    denoise = gj.interop.diffuse_nnx.sit(sit)
    options = {"cond": labels, "uncond": jnp.int32(NULL), "guidance": guide}
    ours = gj.sample(KEY, denoise, noise, times=gj.uniform_times(10), solver=gj.euler(), **options)
    report("diffuse_nnx", version, "its EulerSampler on SiTInterface, scale 2.5", theirs, ours)

    interface = EDMInterface(Network(), "lognormal")
    denoise = gj.interop.diffuse_nnx.edm(interface)
    t = np.float32(0.5)
    sigma = jnp.full(len(noise), denoise.process.sigma(t))
    tangent = interface.pred(3 * noise, sigma, y=labels)
    want = 3 * noise - sigma[:, None] * tangent
    what = "x̂0 of EDMInterface.pred"
    report(
        "diffuse_nnx",
        version,
        what,
        want,
        jax.jit(lambda d, x: d(x, t, labels))(denoise, 3 * noise),
    )


if __name__ == "__main__":
    main(sys.argv[1])
