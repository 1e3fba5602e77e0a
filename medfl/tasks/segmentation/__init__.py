"""Segmentation of images and volumes by a U-Net, with a wider teacher that stays at the site if one is wanted."""

from medfl.tasks.segmentation.task import Segmentation

__all__ = ["Segmentation"]
