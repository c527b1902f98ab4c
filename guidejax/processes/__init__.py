"""Noising processes x_t = α(t) x0 + σ(t) ε, and what a network predicts of them.

t = 0 is data, t = 1 is noise. A process is a pytree; write your own by subclassing `Process`.
"""

from guidejax.processes.base import PREDICTIONS as PREDICTIONS
from guidejax.processes.base import Process as Process
from guidejax.processes.base import bridge as bridge
from guidejax.processes.base import check as check
from guidejax.processes.base import convert as convert
from guidejax.processes.base import from_x0 as from_x0
from guidejax.processes.base import initial_noise as initial_noise
from guidejax.processes.base import noise_to as noise_to
from guidejax.processes.base import to_x0 as to_x0
from guidejax.processes.base import x0_per_unit as x0_per_unit
from guidejax.processes.continuous import cosine as cosine
from guidejax.processes.continuous import edm as edm
from guidejax.processes.continuous import linear_vp as linear_vp
from guidejax.processes.continuous import rectified_flow as rectified_flow
from guidejax.processes.continuous import shifted as shifted
from guidejax.processes.tables import Discrete as Discrete
from guidejax.processes.tables import discrete as discrete
from guidejax.processes.tables import linear as linear
from guidejax.processes.tables import scaled_linear as scaled_linear
from guidejax.processes.tables import squared_cosine as squared_cosine
from guidejax.processes.tables import zero_terminal_snr as zero_terminal_snr
