"""The libraries, their environments, and their examples on docs/interop.md."""

from __future__ import annotations

import dataclasses
import pathlib

SNIPPETS = pathlib.Path(__file__).parent / "snippets"
_OURS = ("jax", "optax", "flax", "orbax-checkpoint")
_FLAX = ("jax", "optax", "flax", "orbax-checkpoint", "chex", "absl-py", "einops")


@dataclasses.dataclass(frozen=True)
class Library:
    """One of them.

    Attributes:
        name: As --only and --checkout call it.
        title: As the page does.
        check: Its script in `experiments.interop.checks`.
        packages: What its environment has; the first names the environment.
        about: What the adapter is, a paragraph.
        example: Python that the page shows.
        python: The oldest minor version of Python 3 that takes it.
        checkout: Whether it is on no package index, and its source has to be given.
    """

    name: str
    title: str
    check: str
    packages: tuple[str, ...]
    about: str
    example: str
    python: int = 11
    checkout: bool = False


LIBRARIES = (
    Library(
        "hackable_diffusion",
        "hackable_diffusion",
        "hackable",
        ("hackable_diffusion", *_OURS),
        "Any guidance that carries no state, as its `GuidanceFn`. Its protocol knows no time that "
        "is denoised to; the grid gives it. A rule works in its own space, and every prediction of "
        "its dict is made again from the result.",
        """\
fn = gj.interop.hackable_diffusion.guidance_fn(
    gj.guidance(gj.adg, omega=net.weight(phi)),
    times,
    gj.processes.rectified_flow(),  # of its RFSchedule
    condition=lambda conditioning: conditioning["label"],
)
inference_fn = GuidedDiffusionInferenceFn(base_inference_fn=base, guidance_fn=fn)
""",
        python=12,
    ),
    Library(
        "diffrax",
        "diffrax",
        "diffrax",
        ("diffrax", *_OURS),
        "`gj.guided` is the guided field. `vector_field` takes it as diffrax's `args`, so that ω "
        "and the parameters are arguments of the solve: a new value doesn't compile again, and any "
        "adjoint sees them.",
        """\
field = gj.guided(denoise, gj.guidance(gj.adg, omega=6.5), cond=labels, uncond=null)
solution = diffrax.diffeqsolve(
    diffrax.ODETerm(gj.interop.diffrax.vector_field),
    diffrax.Heun(),
    t0=1.0,
    t1=0.01,
    dt0=-0.01,
    y0=noise,
    args=field,
)
""",
    ),
    Library(
        "keras",
        "Keras 3, on JAX",
        "keras",
        ("keras", *_OURS),
        "A model as a network with its variables as a pytree, by `stateless_call` in eval mode.",
        """\
network, params = gj.interop.keras.network(model)  # functional: model([x, t, cond])
denoise = gj.denoiser(network, process, prediction="eps", params=params)
""",
    ),
    Library(
        "swirl-dynamics",
        "swirl-dynamics",
        "swirl",
        (*_FLAX, "clu"),
        "Any guidance that carries no state, as a transform of `denoise_fn(x, sigma, cond)`. Its "
        "`guidance_strength` is guidejax's ω. A pass is left out where ω is 0.",
        """\
better = gj.interop.swirl_dynamics.transform(
    gj.guidance(gj.adg, omega=2.0),
    gj.processes.edm(80.0),
    sigmas=scheme.sigma(tspan),
)
sampler = OdeSampler(..., denoise_fn=denoise_fn, guidance_transforms=(better,))
samples = sampler.generate(16, key, cond=cond, guidance_inputs={"uncond": null})
""",
        checkout=True,
    ),
    Library(
        "maxdiffusion",
        "MaxDiffusion",
        "maxdiffusion",
        (
            *_FLAX,
            "torch",
            "transformers<5",
            "huggingface_hub<1",
            "datasets",
            "tensorflow",
            "google-cloud-storage",
            "tokamax",
            "aqtp",
            "grain",
            "tensorboardX",
            "ftfy",
            "opencv-python-headless",
            "ml_collections",
            "requests",
        ),
        "Its UNets, Flux and Wan as denoisers, and the line that guides in its own loops, with the "
        "scale traced: in its Wan pipeline it is static, and each value compiles. Flux's distilled "
        "guidance is an input of the model, `distilled_guidance`, beside true CFG.",
        """\
denoise = gj.interop.maxdiffusion.unet(pipeline.unet, params["unet"])
x0 = gj.sample(key, denoise, noise, cond=text, uncond=null, guidance=guide, times=times)

# in generate.py, for `uncond + guidance_scale * (cond - uncond)`:
guide = gj.guidance(gj.cfg, omega=gj.from_scale(guidance_scale))
noise_pred = gj.interop.maxdiffusion.combine(guide, noise_pred, first="uncond")
""",
        checkout=True,
    ),
    Library(
        "diffuse_nnx",
        "diffuse_nnx",
        "diffuse",
        _FLAX,
        "Its interfaces as denoisers by their `pred`. Its `SiTInterface` has noise at t = 1, as "
        "guidejax has; the SiT published before it has data there, for which there is `data_at=1`.",
        """\
denoise = gj.interop.diffuse_nnx.sit(interface)
x0 = gj.sample(
    key, denoise, noise, cond=labels, uncond=1000, guidance=guide, times=gj.uniform_times(50)
)
""",
        checkout=True,
    ),
    Library(
        "diffusers",
        "diffusers",
        "diffusers",
        ("diffusers", "torch", *_OURS),
        "A scheduled or learned ω as the list of guidance scales of a run, in a JSON file for "
        "PyTorch. Below, the callback that sets them in a pipeline, as it was run; in a loop with "
        "guiders, set `guider.guidance_scale = scales[step]` ahead of each step.",
        """\
times = np.append(process.times(scheduler.timesteps), 0)
gj.interop.torch_export.to_diffusers(guide, times, process, cond, path="scales.json")
""",
    ),
)
COMFYUI = """\
gj.interop.torch_export.to_comfyui(guide, times, process, cond, path="scales.json")
"""
