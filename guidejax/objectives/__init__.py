"""What a learned guidance minimises, one loss an example, and the feature spaces to do it in."""

from guidejax.objectives._rollout import Rollout as Rollout
from guidejax.objectives._rollout import rollout as rollout
from guidejax.objectives._self_consistency import SelfConsistency as SelfConsistency
from guidejax.objectives._self_consistency import l2 as l2
from guidejax.objectives._self_consistency import self_consistency as self_consistency
from guidejax.objectives.base import Batch as Batch
from guidejax.objectives.base import Evaluations as Evaluations
from guidejax.objectives.features import frechet_moments as frechet_moments
from guidejax.objectives.features import pixels as pixels
from guidejax.objectives.features import unit_spread as unit_spread
