"""Lesion detection: RetinaNet with context and attention in its feature pyramid, 2D and 3D."""

from medfl.tasks.detection.task import Detection

__all__ = ["Detection"]
