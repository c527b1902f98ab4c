"""guidejax: guidance for diffusion models as pure JAX functions.

Families are submodules: `processes`, `rules`, `schedules`, `weights`, `solvers`, `objectives`,
`learning`, `metrics`, `analytic`, `particles`, `data`, `models`, `rewards` and `interop`. What
nearly everybody uses stands here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guidejax import analytic as analytic
from guidejax import learning as learning
from guidejax import metrics as metrics
from guidejax import objectives as objectives
from guidejax import particles as particles
from guidejax import processes as processes
from guidejax import rules as rules
from guidejax import schedules as schedules
from guidejax import solvers as solvers
from guidejax import weights as weights
from guidejax._denoisers import Denoiser as Denoiser
from guidejax._denoisers import denoiser as denoiser
from guidejax._field import GuidedField as GuidedField
from guidejax._field import guided as guided
from guidejax._guidance import Guidance as Guidance
from guidejax._guidance import chain as chain
from guidejax._guidance import guidance as guidance
from guidejax._sampling import sample as sample
from guidejax._times import karras_times as karras_times
from guidejax._times import uniform_times as uniform_times
from guidejax.learning import fit as fit
from guidejax.learning import fit_omega as fit_omega
from guidejax.learning import load_omega as load_omega
from guidejax.objectives import rollout as rollout
from guidejax.objectives import self_consistency as self_consistency
from guidejax.processes import Process as Process
from guidejax.rules import adg as adg
from guidejax.rules import apg as apg
from guidejax.rules import autoguidance as autoguidance
from guidejax.rules import cfg as cfg
from guidejax.rules import negative_prompt as negative_prompt
from guidejax.rules import rescale as rescale
from guidejax.schedules import interval as interval
from guidejax.schedules import with_mean as with_mean
from guidejax.solvers import ddim as ddim
from guidejax.solvers import dpmpp_2m as dpmpp_2m
from guidejax.solvers import euler as euler
from guidejax.solvers import heun as heun
from guidejax.weights import OmegaNet as OmegaNet
from guidejax.weights import Weight as Weight
from guidejax.weights import from_scale as from_scale
from guidejax.weights import to_scale as to_scale

if TYPE_CHECKING:
    from guidejax import data as data
    from guidejax import interop as interop
    from guidejax import models as models
    from guidejax import rewards as rewards

__version__ = "0.1.0.dev0"

# Submodules that need an extra or serve few, imported when they are first looked at.
_LAZY = ("data", "interop", "models", "rewards")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"guidejax.{name}")
    raise AttributeError(f"module 'guidejax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
