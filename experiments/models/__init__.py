"""Small networks that the experiments train."""

from experiments.models.classifiers import ConvClassifier as ConvClassifier
from experiments.models.classifiers import MLPClassifier as MLPClassifier
from experiments.models.mlp import ResidualMLP as ResidualMLP
from experiments.models.towers import ConvTower as ConvTower
from experiments.models.towers import PatchTower as PatchTower
from experiments.models.towers import TextTower as TextTower
from experiments.models.transformer import TextToImage as TextToImage
