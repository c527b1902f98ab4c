"""Rules `rule(cond, uncond, omega, ...) -> guided`, one family a file."""

from guidejax.rules.base import REGISTRY as REGISTRY
from guidejax.rules.base import Bound as Bound
from guidejax.rules.base import Rule as Rule
from guidejax.rules.base import make_rule as make_rule
from guidejax.rules.base import rule as rule
from guidejax.rules.linear import cfg as cfg
from guidejax.rules.rotation import adg as adg
