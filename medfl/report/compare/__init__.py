"""Variants of a study, run with the same seeds and put side by side."""
