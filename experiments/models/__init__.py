"""Small networks that the experiments train."""

from experiments.models.classifiers import ConvClassifier as ConvClassifier
from experiments.models.classifiers import MLPClassifier as MLPClassifier
from experiments.models.mlp import ResidualMLP as ResidualMLP
from experiments.models.transformer import TextToImage as TextToImage
