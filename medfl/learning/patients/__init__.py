"""Differential privacy of patients inside a site: sampled, clipped and summed one patient at a time."""
