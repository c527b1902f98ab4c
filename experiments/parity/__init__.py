"""Public models beside their PyTorch originals."""
