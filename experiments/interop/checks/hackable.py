"""hackable_diffusion: `guidance_fn` in its own sampling loop against `gj.sample`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hackable_diffusion.lib.corruption.gaussian import GaussianProcess
from hackable_diffusion.lib.corruption.schedules import CosineSchedule, RFSchedule
from hackable_diffusion.lib.inference.diffusion_inference import GuidedDiffusionInferenceFn
from hackable_diffusion.lib.sampling.base import StepInfo
from hackable_diffusion.lib.sampling.gaussian_step_sampler import DDIMStep, VelocityStep
from hackable_diffusion.lib.sampling.sampling import DiffusionSampler

import guidejax as gj
from experiments.interop.checks.common import CLASSES, KEY, network, problem, report

VERSION = importlib.metadata.version("hackable_diffusion")
# Its conversions divide by σ and α, so both sides stay this far from the ends.
TIMES = np.linspace(1 - 1e-3, 1e-3, 11).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Its protocol of a time schedule, with our times."""

    def all_step_infos(self, rng: Any, num_steps: int, data_spec: Any) -> StepInfo:
        """Times and keys of every point."""
        times = jnp.broadcast_to(TIMES[:, None, None], (num_steps, len(data_spec), 1))
        return StepInfo(
            step=jnp.arange(num_steps), time=times, rng=jax.random.split(rng, num_steps)
        )


def main() -> None:
    """Every guidance, prediction and process."""
    noise, labels = problem()
    net = gj.OmegaNet(num_classes=CLASSES)
    learned = net.weight(jax.tree.map(lambda leaf: leaf + 0.1, net.init(jax.random.key(3))))
    ours = {"epsilon": "eps", "x0": "x0", "v": "v", "velocity": "velocity"}
    cases = [
        ("cfg, ε", gj.guidance(gj.cfg, omega=2.0), "epsilon", "flow"),
        ("an interval, velocity", gj.guidance(gj.cfg, gj.interval(2.0, lo=0.3, hi=0.7)),
         "velocity", "flow"),
        ("adg, which turns x̂0, of velocity", gj.guidance(gj.adg, omega=2.0), "velocity", "flow"),
        ("adg of v, cosine process", gj.guidance(gj.adg, omega=2.0), "v", "cosine"),
        ("a learned ω(c, s, t)", gj.guidance(gj.cfg, omega=learned), "x0", "flow"),
    ]  # fmt: skip
    processes = {
        "flow": (gj.processes.rectified_flow(), GaussianProcess(schedule=RFSchedule())),
        "cosine": (gj.processes.cosine(), GaussianProcess(schedule=CosineSchedule())),
    }
    for what, guide, name, kind in cases:
        mine, theirs = processes[kind]
        denoise = gj.denoiser(network, mine, prediction=ours[name])
        options = {"cond": labels, "uncond": jnp.int32(CLASSES), "guidance": guide}
        want = gj.sample(KEY, denoise, noise, times=TIMES, solver=gj.ddim(), **options)
        fn = gj.interop.hackable_diffusion.guidance_fn(
            guide, TIMES, mine, condition=lambda conditioning: conditioning["label"]
        )

        def base(time: Any, xt: Any, conditioning: Any, name: str = name) -> dict[str, Any]:
            label = jnp.full(len(xt), CLASSES) if conditioning is None else conditioning["label"]
            return {name: network(xt, time.reshape(len(xt)), label)}

        guided = GuidedDiffusionInferenceFn(base_inference_fn=base, guidance_fn=fn)
        sampler = DiffusionSampler(
            time_schedule=Grid(),
            stepper=DDIMStep(corruption_process=theirs, stoch_coeff=0.0),
            num_steps=len(TIMES),
            store_trajectory=False,
        )
        got = jax.jit(lambda noise, s=sampler, g=guided: s(g, KEY, noise, {"label": labels})[0].xt)
        report("hackable_diffusion", VERSION, f"its DDIM, {what}", got(noise), want)

    # A dict of all its predictions, of which a stepper may read any.
    mine, theirs = processes["flow"]
    guide = gj.guidance(gj.adg, omega=2.0)
    fn = gj.interop.hackable_diffusion.guidance_fn(guide, TIMES, mine)
    time = jnp.full((len(noise), 1), 0.6)
    pair = [
        theirs.convert_predictions(
            prediction={"x0": network(noise, time[:, 0], label)}, xt=noise, time=time
        )
        for label in (labels, jnp.full_like(labels, CLASSES))
    ]
    found = fn(noise, None, time, *pair)
    again = theirs.convert_predictions(prediction={"x0": found["x0"]}, xt=noise, time=time)
    worst = max(found, key=lambda name: float(jnp.max(jnp.abs(found[name] - again[name]))))
    what = "every prediction of its dict agrees with its own conversion of x̂0"
    report("hackable_diffusion", VERSION, what, found[worst], again[worst])

    denoise = gj.denoiser(network, mine, prediction="velocity")
    options = {"cond": labels, "uncond": jnp.int32(CLASSES), "guidance": guide}
    want = gj.sample(KEY, denoise, noise, times=TIMES, solver=gj.euler(), **options)

    def all_of_them(time: Any, xt: Any, conditioning: Any) -> dict[str, Any]:
        label = jnp.full(len(xt), CLASSES) if conditioning is None else conditioning["label"]
        output = {"velocity": network(xt, time.reshape(len(xt)), label)}
        return theirs.convert_predictions(prediction=output, xt=xt, time=time)

    @dataclasses.dataclass(frozen=True)
    class OneOf:
        """Its stepper, which takes one prediction, reading one of the dict."""

        inner: Any
        name: str

        def initialize(self, *args: Any, **kwargs: Any) -> Any:
            """As its own."""
            return self.inner.initialize(*args, **kwargs)

        def update(self, prediction: Any, *args: Any, **kwargs: Any) -> Any:
            """As its own, of one prediction."""
            return self.inner.update({self.name: prediction[self.name]}, *args, **kwargs)

        def finalize(self, prediction: Any, *args: Any, **kwargs: Any) -> Any:
            """As its own, of one prediction."""
            return self.inner.finalize({self.name: prediction[self.name]}, *args, **kwargs)

    guided = GuidedDiffusionInferenceFn(base_inference_fn=all_of_them, guidance_fn=fn)
    for name in ("velocity", "epsilon"):
        stepper = OneOf(VelocityStep(corruption_process=theirs, stoch_coeff=0.0), name)
        sampler = DiffusionSampler(
            time_schedule=Grid(), stepper=stepper, num_steps=len(TIMES), store_trajectory=False
        )
        got = sampler(guided, KEY, noise, {"label": labels})[0].xt
        what = f"its VelocityStep reading {name} of all predictions, adg"
        report("hackable_diffusion", VERSION, what, got, want)


if __name__ == "__main__":
    main()
