"""Who adds which noise to what: the three modes of differential privacy."""
