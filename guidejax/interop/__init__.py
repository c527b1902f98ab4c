"""Guidance in other codebases' protocols, and their models as networks here; a file for each.

Each adapter speaks the other side's signatures and imports none of its packages at the top.
docs/interop.md has an example of each, and what came of running it against the real library.
"""

from guidejax.interop import diffrax as diffrax
from guidejax.interop import diffuse_nnx as diffuse_nnx
from guidejax.interop import hackable_diffusion as hackable_diffusion
from guidejax.interop import keras as keras
from guidejax.interop import maxdiffusion as maxdiffusion
from guidejax.interop import swirl_dynamics as swirl_dynamics
from guidejax.interop import torch_export as torch_export
