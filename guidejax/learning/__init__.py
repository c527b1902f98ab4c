"""Learning ω: objectives, the sharded train step, checkpoints."""

from guidejax.learning.checkpoints import load_omega as load_omega
from guidejax.learning.training import fit_omega as fit_omega
from guidejax.learning.training import init_state as init_state
from guidejax.learning.training import omega_step as omega_step
