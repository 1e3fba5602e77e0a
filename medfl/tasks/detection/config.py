"""Settings of the detection task. Imports no torch, so that a study is checked without it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from medfl.tasks.base import TaskConfig
from medfl.tasks.networks.config import ResNetConfig

Shape = tuple[PositiveFloat, ...]

DEFAULT_ANCHORS: dict[int, tuple[Shape, ...]] = {
    2: ((6.0, 6.0), (9.0, 6.0), (6.0, 9.0)),
    3: ((6.0, 8.0, 4.0), (8.0, 6.0, 5.0), (10.0, 10.0, 6.0)),
}
"""Anchor shapes of the finest level in pixels when the study gives none (3D: MONAI's LUNA16 configuration)."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneConfig(ResNetConfig):
    """The backbone (see `ResNetConfig`), and the first of its stages that the pyramid sees: 1 leaves out the finest
    map, which costs most."""

    first_stage: Annotated[int, Field(ge=0)] = 0


class SamplerConfig(_Section):
    """Anchors that `class_loss: bce_hard_negative` trains on (the LUNA16 recipe).

    samples: anchors an image. positive_fraction: at most this share of them are positives. pool_size: the negatives
    are drawn from this many times as many of the highest-scoring ones. min_negatives: at least so many an image.
    """

    samples: PositiveInt = 64
    positive_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    pool_size: Annotated[float, Field(ge=1)] = 20.0
    min_negatives: PositiveInt = 16


class FocalConfig(_Section):
    """Focal loss, summed over anchors and divided by the positives (Lin et al. 2017, arXiv 1708.02002)."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.25
    gamma: Annotated[float, Field(ge=0)] = 2.0


class InferenceConfig(_Section):
    """From network outputs to boxes.

    score_threshold: boxes below are dropped. candidates: highest-scoring boxes kept a level before suppression.
    nms_iou: of two boxes of a class that overlap more, the lower-scoring one is dropped. detections: most an image.
    patch: window of the sliding-window inference in pixels, an entry a space axis; images that are not larger are
    seen whole, and so are all without it. overlap: share of a window that its neighbour sees too.
    """

    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.02
    candidates: PositiveInt = 300
    nms_iou: Annotated[float, Field(gt=0, le=1)] = 0.22
    detections: PositiveInt = 50
    patch: tuple[PositiveInt, ...] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25


class DetectionConfig(TaskConfig):
    """Lesion detection by RetinaNet (Lin et al. 2017) with optional context and attention in the pyramid.

    classes: lesion classes in the order of the label numbers, without background.
    pyramid_channels: width of the pyramid and of the heads, a multiple of 8. levels: pyramid levels; None is one for
    each stage of the backbone from `first_stage` on, more add levels of stride 2 each.
    context: multi-rate dilated convolutions after each lateral. attention: each level is gated by the deeper one.
    anchors: shapes in pixels of the finest level, one length a space axis; every site has the same, so they stand in
    the study and are never fitted to a site's boxes. anchor_scales: their factor at each level, None is 1, 2, 4, ...
    class_loss: focal loss over all anchors, or BCE over sampled ones. box_loss: generalised IoU of decoded boxes, or
    smooth L1 of encoded ones (beta 1/9). BCE with smooth L1 is MONAI's LUNA16 recipe; after 200 steps on
    blood cells (BCCD) it had reached mAP@0.5 0.50, the defaults 0.79.
    atss_candidates: anchor positions a level that may match a box (ATSS, Zhang et al. 2020, arXiv 1912.02424).
    """

    kind: Literal["detection"] = "detection"
    spatial_dims: Literal[2, 3] = 2
    in_channels: PositiveInt = 1
    backbone: BackboneConfig = BackboneConfig()
    pyramid_channels: PositiveInt = 64
    levels: PositiveInt | None = None
    context: bool = True
    attention: bool = True
    anchors: tuple[Shape, ...] | None = None
    anchor_scales: tuple[PositiveFloat, ...] | None = None
    class_loss: Literal["bce_hard_negative", "focal"] = "focal"
    sampler: SamplerConfig = SamplerConfig()
    focal: FocalConfig = FocalConfig()
    box_loss: Literal["smooth_l1", "giou"] = "giou"
    box_loss_weight: PositiveFloat = 1.0
    atss_candidates: PositiveInt = 4
    inference: InferenceConfig = InferenceConfig()

    @property
    def extra_levels(self) -> int:
        """Pyramid levels below the backbone's last stage."""
        return 0 if self.levels is None else self.levels - self._stages

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image a position of each level, fine to coarse."""
        first = (2 if self.backbone.stem == "large" else 1) * (2 if self.backbone.stem_pool else 1)
        return tuple(first * 2 ** (self.backbone.first_stage + level) for level in range(self._levels))

    @property
    def anchor_shapes(self) -> tuple[Shape, ...]:
        """Anchor shapes of the finest level."""
        return self.anchors if self.anchors is not None else DEFAULT_ANCHORS[self.spatial_dims]

    @property
    def level_scales(self) -> tuple[float, ...]:
        """Factor of the anchor shapes at each level."""
        return self.anchor_scales or tuple(2.0**level for level in range(self._levels))

    @property
    def _stages(self) -> int:
        return len(self.backbone.blocks()[0]) - self.backbone.first_stage

    @property
    def _levels(self) -> int:
        return self._stages if self.levels is None else self.levels

    @model_validator(mode="after")
    def _consistent(self) -> "DetectionConfig":
        faults = [*_class_faults(self.classes), *self._pyramid_faults(), *self._shape_faults()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _pyramid_faults(self) -> list[str]:
        faults = []
        if self.pyramid_channels % 8:
            faults.append(f"pyramid_channels is {self.pyramid_channels}: the heads need a multiple of 8")
        if self._stages < 1:
            first, stages = self.backbone.first_stage, len(self.backbone.blocks()[0])
            faults.append(f"backbone.first_stage is {first}: the backbone has {stages} stages, counted from 0")
        elif self.extra_levels < 0:
            faults.append(f"levels is {self.levels}: the backbone gives {self._stages}; drop stages from its layers")
        elif len(self.level_scales) != self._levels:
            faults.append(f"anchor_scales has {len(self.level_scales)} entries: one for each of {self._levels} levels")
        return faults

    def _shape_faults(self) -> list[str]:
        faults = []
        nd = self.spatial_dims
        if not self.anchor_shapes or any(len(shape) != nd for shape in self.anchor_shapes):
            faults.append(f"anchors: give at least one shape, each of {nd} lengths in pixels")
        patch = self.inference.patch
        if patch is not None and self._stages >= 1 and (len(patch) != nd or any(p % self.strides[-1] for p in patch)):
            faults.append(f"inference.patch is {list(patch)}: give {nd} multiples of {self.strides[-1]}")
        return faults


def _class_faults(classes: tuple[str, ...]) -> list[str]:
    if not classes:
        return ["classes is empty: name at least one lesion class"]
    if len(set(classes)) < len(classes) or any(not name.strip() for name in classes):
        return [f"classes are {list(classes)}: each name once, none empty"]
    return []
