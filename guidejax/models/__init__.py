"""Public models by their published weights, each a pure function equal to its PyTorch original."""
