"""Homomorphic encryption of the round's sum (see `channel`)."""

from medfl.privacy.channels.he.channel import He, HeConfig

__all__ = ["He", "HeConfig"]
