"""The solvers, by name: listed here, a solver is tested by `test_common.py`."""

import jax.numpy as jnp

import guidejax as gj
from guidejax import solvers

DETERMINISTIC = {
    "ddim": solvers.ddim,
    "euler": solvers.euler,
    "heun": solvers.heun,
    "edm_heun": solvers.edm_heun,
    "dpmpp_2m": solvers.dpmpp_2m,
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
ORDER = {"ddim": 1, "euler": 1, "heun": 2, "edm_heun": 2, "dpmpp_2m": 2}
TWO_STAGE = ("heun", "edm_heun", "edm_heun gamma")
PROCESSES = {
    "rectified_flow": gj.processes.rectified_flow(),
    "cosine": gj.processes.cosine(),
    "linear_vp": gj.processes.linear_vp(),
    "edm": gj.processes.edm(sigma_max=20.0, rho=3.0),
}
MEAN, STD = 0.7, 0.4


def flow(process, x, t, s):
    """The probability-flow ODE of N(MEAN, STD²) from x at t to s, exactly."""
    width = lambda t: jnp.sqrt((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2)
    centred = x - process.alpha(t) * MEAN
    return process.alpha(s) * MEAN + centred * width(s) / width(t)
