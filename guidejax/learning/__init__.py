"""Learning a guidance: the train step under jit, shard_map and pmap, the loop, checkpoints."""

from guidejax.learning import monitors as monitors
from guidejax.learning._fit import fit as fit
from guidejax.learning._fit import fit_omega as fit_omega
from guidejax.learning._hosts import PREEMPTED as PREEMPTED
from guidejax.learning._hosts import Preempted as Preempted
from guidejax.learning.checkpoints import load as load
from guidejax.learning.checkpoints import load_omega as load_omega
from guidejax.learning.evaluations import evaluate as evaluate
from guidejax.learning.training import TrainState as TrainState
from guidejax.learning.training import init_state as init_state
from guidejax.learning.training import train_step as train_step
