"""Public models by their published weights, each a pure function equal to its PyTorch original."""

from guidejax.models import clip as clip
from guidejax.models import preprocess as preprocess
from guidejax.models import siglip as siglip
from guidejax.models import t5 as t5
from guidejax.models import tokenizer as tokenizer
