"""Learning ω: objectives, the sharded train step, checkpoints."""

from guidejax.learning.checkpoints import load_omega as load_omega
from guidejax.learning.objectives import Batch as Batch
from guidejax.learning.objectives import frechet_moments as frechet_moments
from guidejax.learning.objectives import l2 as l2
from guidejax.learning.objectives import pixels as pixels
from guidejax.learning.objectives import rollout as rollout
from guidejax.learning.objectives import self_consistency as self_consistency
from guidejax.learning.objectives import unit_spread as unit_spread
from guidejax.learning.training import fit_omega as fit_omega
from guidejax.learning.training import init_state as init_state
from guidejax.learning.training import omega_step as omega_step
