"""Metrics: how far samples are from data, how they spread, and what guidance did to them.

Metrics of bfloat16 or float16 input come back in float32; those of float64 in float64.
Metrics of whole sets gather samples that an explicit mesh has spread over devices.
NaN or infinite input raises `ValueError` where its values are known; under `jax.jit`, where they
aren't, every result that a NaN enters is NaN.
"""

from guidejax.metrics.diversity import class_diversity as class_diversity
from guidejax.metrics.diversity import mean_pairwise_distance as mean_pairwise_distance
from guidejax.metrics.diversity import vendi_from_kernel as vendi_from_kernel
from guidejax.metrics.diversity import vendi_score as vendi_score
from guidejax.metrics.energy import energy_distance as energy_distance
from guidejax.metrics.energy import grouped_energy_distance as grouped_energy_distance
from guidejax.metrics.energy import pairwise_distance_power as pairwise_distance_power
from guidejax.metrics.frechet import frechet_distance as frechet_distance
from guidejax.metrics.frechet import frechet_from_moments as frechet_from_moments
from guidejax.metrics.frechet import moments as moments
from guidejax.metrics.guidance_scale import branch_angle as branch_angle
from guidejax.metrics.guidance_scale import effective_omega as effective_omega
from guidejax.metrics.guidance_scale import off_line_fraction as off_line_fraction
from guidejax.metrics.manifold import ManifoldScores as ManifoldScores
from guidejax.metrics.manifold import coverage as coverage
from guidejax.metrics.manifold import density as density
from guidejax.metrics.manifold import knn_radii as knn_radii
from guidejax.metrics.manifold import manifold_scores as manifold_scores
from guidejax.metrics.manifold import precision as precision
from guidejax.metrics.manifold import recall as recall
from guidejax.metrics.mmd import kernel_inception_distance as kernel_inception_distance
from guidejax.metrics.mmd import median_bandwidth as median_bandwidth
from guidejax.metrics.mmd import mmd_polynomial as mmd_polynomial
from guidejax.metrics.mmd import mmd_rbf as mmd_rbf
from guidejax.metrics.stages import StageDiagnostics as StageDiagnostics
from guidejax.metrics.stages import stage_diagnostics as stage_diagnostics
