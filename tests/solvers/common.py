"""The solvers, by name: listed here, a solver is tested by `test_common.py`."""

import jax.numpy as jnp
import pytest

import guidejax as gj
from guidejax import solvers

DETERMINISTIC = {
    "ddim": solvers.ddim,
    "euler": solvers.euler,
    "heun": solvers.heun,
    "edm_heun": solvers.edm_heun,
    "dpmpp_2m": solvers.dpmpp_2m,
    "midpoint": solvers.midpoint,
    "dpm_solver_2": solvers.dpm_solver_2,
    "rk4": solvers.rk4,
    "unipc": solvers.unipc,
}
STOCHASTIC = {
    "ddim churn": lambda: solvers.ddim(churn=0.7),
    "edm_heun gamma": lambda: solvers.edm_heun(gamma=0.2, lo=0.1, hi=5.0, noise=1.003),
    "dpmpp_2m sde": lambda: solvers.dpmpp_2m(churn=1.0),
    "ancestral": solvers.ancestral,
}
RENOISED = {
    "cfgpp ddim": lambda: solvers.cfgpp(solvers.ddim()),
    "cfgpp euler": lambda: solvers.cfgpp(solvers.euler()),
    "cfgpp dpmpp_2m": lambda: solvers.cfgpp(solvers.dpmpp_2m()),
    "cfgpp ancestral": lambda: solvers.cfgpp(solvers.ancestral(), lam=0.3),
}
SOLVERS = DETERMINISTIC | STOCHASTIC | RENOISED
ORDER = {
    "ddim": 1,
    "euler": 1,
    "heun": 2,
    "edm_heun": 2,
    "dpmpp_2m": 2,
    "midpoint": 2,
    "dpm_solver_2": 2,
    "rk4": 4,
    "unipc": 3,
}
# Evaluations of a step, and of a last one that is known to end in data.
EVALUATIONS = {
    "heun": (2, 1),
    "edm_heun": (2, 1),
    "edm_heun gamma": (2, 1),
    "midpoint": (2, 2),
    "dpm_solver_2": (2, 1),
    "rk4": (4, 3),
}
BOTH_WAYS = tuple(name for name, make in DETERMINISTIC.items() if make().both_ways)
PROCESSES = {
    "rectified_flow": gj.processes.rectified_flow(),
    "cosine": gj.processes.cosine(),
    "linear_vp": gj.processes.linear_vp(),
    "edm": gj.processes.edm(sigma_max=20.0, rho=3.0),
}


def on_each_process(fast):
    """Every process, all but one of them in the slow run."""
    marks = {name: () if name == fast else pytest.mark.slow for name in PROCESSES}
    each = [pytest.param(name, marks=mark) for name, mark in marks.items()]
    return pytest.mark.parametrize("process", each)


MEAN, STD = 0.7, 0.4


def flow(process, x, t, s):
    """The probability-flow ODE of N(MEAN, STD²) from x at t to s, exactly."""
    width = lambda t: jnp.sqrt((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2)
    centred = x - process.alpha(t) * MEAN
    return process.alpha(s) * MEAN + centred * width(s) / width(t)
