"""A TPU's programs without a TPU: what its compiler, on any host, makes of guidejax."""
