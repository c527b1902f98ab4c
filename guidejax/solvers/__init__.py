"""Solvers, one a file: each takes x_t to x_s from the guided x0."""

from guidejax.solvers.base import Denoised as Denoised
from guidejax.solvers.base import Solver as Solver
from guidejax.solvers.ddim import ddim as ddim
