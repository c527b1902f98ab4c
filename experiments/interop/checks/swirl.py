"""swirl-dynamics: `transform` in its own samplers; takes the folder of its checkout."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments.interop.checks.common import CLASSES, KEY, SIZE, commit, network, problem, report


def main(folder: str) -> None:
    """Its own classifier-free guidance beside ours, and `gj.sample` beside its samplers."""
    sys.path.insert(0, folder)
    from swirl_dynamics.lib.diffusion import diffusion, guidance, samplers
    from swirl_dynamics.lib.solvers import ode

    version = commit(folder)
    noise, labels = problem()
    cond = {"class": jax.nn.one_hot(labels, CLASSES)}

    def denoise_fn(x: Any, sigma: Any, cond: Any) -> Any:
        sigma = jnp.broadcast_to(jnp.asarray(sigma), (len(x),))
        null = 1 - cond["class"].sum(-1, keepdims=True)
        label = jnp.argmax(jnp.concatenate([cond["class"], null], -1), -1)
        # As EDM bounds what a network adds.
        scale = 1 / (1 + sigma[:, None] ** 2)
        return scale * x + (1 - scale) * network(x * scale**0.5, jnp.log(sigma) / 4, label)

    inputs = {"uncond": {"class": jnp.zeros(CLASSES)}}
    process = gj.processes.edm(10.0)
    x, sigma = 3 * noise, jnp.asarray(2.0)
    theirs = guidance.ClassifierFreeHybrid(guidance_strength=1.5)(denoise_fn, {})
    made = gj.interop.swirl_dynamics.transform(gj.guidance(gj.cfg, omega=1.5), process)
    got = made(denoise_fn, inputs)(x, sigma, cond)
    what = "ω = 1.5 against its ClassifierFreeHybrid(1.5)"
    report("swirl-dynamics", version, what, theirs(x, sigma, cond), got)

    # With σ linear in its time, its Euler is Euler in σ: `gj.ddim` where α = 1.
    scheme = diffusion.Diffusion.create_variance_exploding(
        sigma=diffusion.power_noise_schedule(clip_max=10.0, p=1.0), data_std=1.0
    )
    tspan = jnp.asarray(samplers.edm_noise_decay(scheme, rho=7, num_steps=11, end_sigma=0.02))
    sigmas = np.asarray(jax.vmap(scheme.sigma)(tspan))
    net = gj.OmegaNet(num_classes=CLASSES)
    learned = net.weight(jax.tree.map(lambda leaf: leaf + 0.1, net.init(jax.random.key(3))))
    of_class = gj.weights.Weight(learned.params, lambda p, step: learned.fn(p, _with_label(step)))
    cases = (
        ("adg", gj.guidance(gj.adg, omega=2.0)),
        ("an interval", gj.guidance(gj.cfg, gj.interval(2.0, lo=0.3, hi=0.7))),
        ("a learned ω(c, s, t)", gj.guidance(gj.cfg, omega=of_class)),
    )
    ours = gj.denoiser(denoise_fn, process, time="sigma")
    times = np.minimum(gj.interop.swirl_dynamics.time_of(process, sigmas), 1)
    x = sigmas[0] * noise
    for what, guide in cases:
        sampler = samplers.OdeSampler(
            input_shape=(SIZE,),
            scheme=scheme,
            denoise_fn=denoise_fn,
            tspan=tspan,
            guidance_transforms=(
                gj.interop.swirl_dynamics.transform(guide, process, sigmas=sigmas),
            ),
            integrator=ode.ExplicitEuler(),
        )
        theirs = jax.jit(lambda x, s=sampler: s.denoise(x, KEY, tspan, cond, inputs))(x)
        uncond = {"class": jnp.zeros((1, CLASSES))}
        options: dict[str, Any] = {"cond": cond, "guidance": guide, "solver": gj.ddim()}
        want = gj.sample(KEY, ours, x, uncond=uncond, times=times, **options)
        report("swirl-dynamics", version, f"its OdeSampler, {what}", theirs, want)


def _with_label(step: Any) -> Any:
    return dataclasses.replace(step, cond=jnp.argmax(step.cond["class"], axis=-1))


if __name__ == "__main__":
    main(sys.argv[1])
