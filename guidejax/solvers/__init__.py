"""Solvers, one a file: each takes x_t to x_s from the guided x0."""

from guidejax.solvers._ancestral import ancestral as ancestral
from guidejax.solvers._cfgpp import cfgpp as cfgpp
from guidejax.solvers._ddim import ddim as ddim
from guidejax.solvers._dpm_solver_2 import dpm_solver_2 as dpm_solver_2
from guidejax.solvers._euler import euler as euler
from guidejax.solvers._heun import heun as heun
from guidejax.solvers._midpoint import midpoint as midpoint
from guidejax.solvers._rk4 import rk4 as rk4
from guidejax.solvers._unipc import unipc as unipc
from guidejax.solvers.base import Evaluate as Evaluate
from guidejax.solvers.base import Solver as Solver
from guidejax.solvers.base import at_data as at_data
from guidejax.solvers.base import slope as slope
from guidejax.solvers.dpm import dpmpp_2m as dpmpp_2m
from guidejax.solvers.edm import edm_heun as edm_heun
