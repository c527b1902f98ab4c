"""Public models by their published weights, each a pure function equal to its PyTorch original."""

from guidejax.models import clip as clip
from guidejax.models import dit as dit
from guidejax.models import inception as inception
from guidejax.models import preprocess as preprocess
from guidejax.models import sd3 as sd3
from guidejax.models import siglip as siglip
from guidejax.models import stable_diffusion as stable_diffusion
from guidejax.models import stable_diffusion_3 as stable_diffusion_3
from guidejax.models import t5 as t5
from guidejax.models import tokenizer as tokenizer
from guidejax.models import unet as unet
from guidejax.models import vae as vae
