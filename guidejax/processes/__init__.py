"""Noising processes x_t = α(t) x0 + σ(t) ε, and what a network predicts of them."""

from guidejax.processes.base import PREDICTIONS as PREDICTIONS
from guidejax.processes.base import Process as Process
from guidejax.processes.base import bridge as bridge
from guidejax.processes.base import convert as convert
from guidejax.processes.base import cosine as cosine
from guidejax.processes.base import edm as edm
from guidejax.processes.base import from_x0 as from_x0
from guidejax.processes.base import linear_vp as linear_vp
from guidejax.processes.base import noise_to as noise_to
from guidejax.processes.base import rectified_flow as rectified_flow
from guidejax.processes.base import to_x0 as to_x0
from guidejax.processes.base import x0_per_unit as x0_per_unit
