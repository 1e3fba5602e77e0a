"""Classification of whole images, such as pneumonia on chest X-rays, by an SE-ResNet with GroupNorm."""

from medfl.tasks.classification.task import Classification

__all__ = ["Classification"]
