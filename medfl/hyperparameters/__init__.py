"""Hyper-parameters that move from round to round."""
