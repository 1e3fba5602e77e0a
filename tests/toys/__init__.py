"""Tiny tasks and sites that implement the contracts without images, for tests of the core."""
