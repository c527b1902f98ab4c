"""What several tests share."""

import guidejax as gj

# `compiler_options` of a program that runs for longer than it compiles.
RUNS_LONG = {"xla_backend_optimization_level": 1}


def sample(key, denoise, process, noise, **options):
    """`gj.sample` of a bare function (x, t, cond) -> x0 on a process, or of a denoiser of it."""
    if not isinstance(denoise, gj.Denoiser):
        denoise = gj.denoiser(denoise, process, time="t")
    return gj.sample(key, denoise, noise, **options)
