"""Gaussians and mixtures whose denoisers are exact: the ground truth that theory rests on."""

from guidejax.analytic._mixture import Mixture as Mixture
from guidejax.analytic._mixture import gaussian as gaussian
from guidejax.analytic._mixture import mixture as mixture
from guidejax.analytic._stagewise import contraction as contraction
from guidejax.analytic._stagewise import nearest_mode as nearest_mode
from guidejax.analytic._stagewise import stagewise as stagewise
from guidejax.analytic._stagewise import within_mode_std as within_mode_std
from guidejax.analytic.classes import ClassMixture as ClassMixture
from guidejax.analytic.classes import by_class as by_class
from guidejax.analytic.classes import denoiser as denoiser
from guidejax.analytic.classes import with_unconditional as with_unconditional
