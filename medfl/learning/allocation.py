"""How the C library treats memory that a training step frees."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_KEPT = 2**29
_LARGE = 2**25
"""Bytes, both. glibc allows no more for the second."""
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, up to 512 MiB, for what is asked for next; whether it does from now on.

    By default it gives freed memory back to the system when that is a few megabytes, which every step of a training
    frees, so that the system zeroes and maps all of it again for the next step: a tenth of a training's time on CPUs.
    Whoever has set glibc's own variables is left alone, and so is another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in _OWN):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE) and mallopt(_TRIM_THRESHOLD, _KEPT))
