"""Solvers, one a file: each takes x_t to x_s from the guided x0."""

from guidejax.solvers.ancestral import ancestral as ancestral
from guidejax.solvers.base import Evaluate as Evaluate
from guidejax.solvers.base import Solver as Solver
from guidejax.solvers.base import at_data as at_data
from guidejax.solvers.base import slope as slope
from guidejax.solvers.cfgpp import cfgpp as cfgpp
from guidejax.solvers.ddim import ddim as ddim
from guidejax.solvers.dpm import dpmpp_2m as dpmpp_2m
from guidejax.solvers.dpm_solver_2 import dpm_solver_2 as dpm_solver_2
from guidejax.solvers.edm import edm_heun as edm_heun
from guidejax.solvers.euler import euler as euler
from guidejax.solvers.heun import heun as heun
from guidejax.solvers.midpoint import midpoint as midpoint
from guidejax.solvers.rk4 import rk4 as rk4
from guidejax.solvers.unipc import unipc as unipc
