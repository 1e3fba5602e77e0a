"""Settings of the segmentation task. Free of torch, so that a study can be checked without it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, model_validator

from medfl.tasks.base import TaskConfig
from medfl.tasks.networks.config import UNetConfig

ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

SMALLEST_RATIO = 10
"""A teacher with fewer than this many times the student's parameters does not pay for the distillation."""


class InferenceConfig(BaseModel):
    """How images are seen when the network is used.

    patch: window of the sliding-window inference in voxels, an entry a space axis; images that are not larger are
    seen whole, and so are all without it. overlap: share of a window that its neighbour sees too.
    batch: windows that go through the network at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: tuple[PositiveInt, ...] | None = None
    overlap: float = Field(default=0.25, ge=0.0, lt=1.0)
    batch: PositiveInt = 4


class SegmentationConfig(TaskConfig):
    """A class for each pixel or voxel, by a U-Net.

    classes: names in the order of the mask's numbers; class 0 is the background.
    network: the U-Net that travels (the student). teacher: a wider U-Net that stays at each site and from which the
    student may learn by distillation, at least ten times its size; None when there is none.
    batch_dice: soft Dice over the voxels of a whole batch rather than of each image; steadier where many images show
    no foreground, but then the loss of an image depends on the others of its batch.
    hausdorff: also report the 95th percentile of the Hausdorff distance ("hd95"), which takes longer than the network.
    """

    kind: Literal["segmentation"] = "segmentation"
    spatial_dims: Literal[2, 3] = 2
    in_channels: PositiveInt = 1
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=255)
    network: UNetConfig = UNetConfig(width=16, depth=3)
    teacher: UNetConfig | None = None
    batch_dice: bool = False
    hausdorff: bool = False
    inference: InferenceConfig = InferenceConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "SegmentationConfig":
        faults = [*self._class_faults(), *self._patch_faults(), *self._teacher_faults()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _class_faults(self) -> list[str]:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        return [f"classes has {', '.join(twice)} twice"] if twice else []

    def _patch_faults(self) -> list[str]:
        patch = self.inference.patch
        if patch is None or len(patch) == self.spatial_dims:
            return []
        return [f"inference.patch is {list(patch)}: give {self.spatial_dims} lengths in voxels"]

    def _teacher_faults(self) -> list[str]:
        if self.teacher is None:
            return []
        student, teacher = self.parameters(self.network), self.parameters(self.teacher)
        if teacher >= SMALLEST_RATIO * student:
            return []
        return [
            f"the teacher has {teacher} parameters and the network {student}: the teacher must have at least "
            f"{SMALLEST_RATIO} times as many; make teacher.width larger or network.width smaller"
        ]

    def parameters(self, network: UNetConfig) -> int:
        """Number of parameters that a U-Net has in this task."""
        return network.parameters(self.spatial_dims, self.in_channels, len(self.classes))
