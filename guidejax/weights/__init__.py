"""A number of a guidance as a number, an array, a function or a learned network: a `Weight`."""

from guidejax.weights.base import Step as Step
from guidejax.weights.base import Weight as Weight
from guidejax.weights.base import as_weight as as_weight
from guidejax.weights.base import constant as constant
from guidejax.weights.base import from_scale as from_scale
from guidejax.weights.base import to_scale as to_scale
from guidejax.weights.omega_net import OmegaNet as OmegaNet
from guidejax.weights.omega_net import Range as Range
