"""Small networks that the experiments train."""

from guidejax.models.classifiers import ConvClassifier as ConvClassifier
from guidejax.models.classifiers import MLPClassifier as MLPClassifier
from guidejax.models.mlp import ResidualMLP as ResidualMLP
