"""Statistics of reports: images' colours and contrast, and intervals over seeds."""

from experiments.statistics.images import channel_statistics as channel_statistics
from experiments.statistics.images import clipped_fraction as clipped_fraction
from experiments.statistics.images import rms_contrast as rms_contrast
from experiments.statistics.images import sample_norm as sample_norm
from experiments.statistics.images import sample_rms as sample_rms
from experiments.statistics.images import saturation as saturation
from experiments.statistics.intervals import Interval as Interval
from experiments.statistics.intervals import geometric_mean as geometric_mean
from experiments.statistics.intervals import mean_interval as mean_interval
from experiments.statistics.intervals import (
    paired_difference_interval as paired_difference_interval,
)
from experiments.statistics.intervals import paired_ratio_interval as paired_ratio_interval
