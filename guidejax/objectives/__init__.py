"""What a learned guidance minimises, one loss an example."""

from guidejax.objectives.base import Batch as Batch
from guidejax.objectives.base import frechet_moments as frechet_moments
from guidejax.objectives.base import l2 as l2
from guidejax.objectives.base import pixels as pixels
from guidejax.objectives.base import rollout as rollout
from guidejax.objectives.base import self_consistency as self_consistency
from guidejax.objectives.base import unit_spread as unit_spread
