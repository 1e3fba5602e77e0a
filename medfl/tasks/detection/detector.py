"""MONAI's RetinaNet detector, made to train without torchvision, on any device and with images without boxes.

MONAI asks torchvision's `Matcher` for its type in every training step, returns a CPU constant as the box loss of a
batch without boxes, and rounds anchor shapes to whole half-pixels; each is overridden here. The network is the only
part with parameters; a detector is made around it for each call and holds no state of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.detector_utils import preprocess_images
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler
from monai.apps.detection.utils.predict_utils import predict_with_inferer
from monai.data.box_utils import box_iou
from monai.inferers import SlidingWindowInferer
from monai.losses import BoxGIoULoss
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor, nn

from medfl.errors import RunError
from medfl.tasks.detection.config import DetectionConfig, SamplerConfig

Images = Tensor | list[Tensor]
Targets = list[dict[str, Tensor]]


class Anchors(AnchorGeneratorWithAnchorShape):  # type: ignore[misc]
    """Anchors of exactly the shapes that the configuration names; rounding would distort those of few pixels."""

    @staticmethod
    def generate_anchors_using_shape(
        anchor_shapes: Tensor, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Tensor:
        half = anchor_shapes / 2
        return torch.cat([-half, half], dim=1).to(dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Network outputs of a batch: values [B, anchors, n] by key, and what they refer to.

    anchors: [anchors, 2 * nd] an image. locations: positions a level. sizes: the images' shapes before padding.
    """

    values: dict[str, Tensor]
    anchors: list[Tensor]
    locations: list[int]
    sizes: list[list[int]]


@lru_cache
def _matcher(candidates: int) -> ATSSMatcher:
    """Cached, as is the sampler: both are stateless, and MONAI logs a line for each that is made."""
    return ATSSMatcher(candidates, box_iou, center_in_gt=False)


@lru_cache
def _sampler(config: SamplerConfig) -> HardNegativeSampler:
    return HardNegativeSampler(config.samples, config.positive_fraction, config.min_negatives, config.pool_size)


class Detector(RetinaNetDetector):  # type: ignore[misc]
    """Losses and boxes of a network that `build_network` made from the same configuration."""

    def __init__(self, network: nn.Module, config: DetectionConfig) -> None:
        super().__init__(network, Anchors(config.level_scales, config.anchor_shapes))
        self.config = config
        self.set_target_keys("box", "label")
        self.proposal_matcher = _matcher(config.atss_candidates)
        if config.class_loss == "bce_hard_negative":
            self.fg_bg_sampler = _sampler(config.sampler)
        if config.box_loss == "giou":
            self.set_box_regression_loss(BoxGIoULoss(reduction="mean"), encode_gt=False, decode_pred=True)
        inference = config.inference
        self.set_box_selector_parameters(
            score_thresh=inference.score_threshold,
            topk_candidates_per_level=inference.candidates,
            nms_thresh=inference.nms_iou,
            detections_per_img=inference.detections,
        )

    def outputs(self, images: Images, *, windows: bool = False) -> Outputs:
        """Run the network on images [B, C, *s] or a list of [C, *s], padded at their ends to the coarsest stride;
        with `windows`, images larger than the configured patch are seen patch by patch."""
        sizes = [list(image.shape[1:]) for image in images]
        padded, _ = preprocess_images(_stacked(images), self.spatial_dims, self.size_divisible)
        window = self._window(padded.shape[2:]) if windows else None
        if window is None:
            maps = self.network(padded)
        else:
            maps = predict_with_inferer(padded, self.network, [self.cls_key, self.box_reg_key], window)
        anchors = self.anchor_generator(padded, maps[self.cls_key])
        locations = [level.shape[2:].numel() for level in maps[self.cls_key]]
        values = {key: self._reshape_maps(maps[key]) for key in (self.cls_key, self.box_reg_key)}
        return Outputs(values, anchors, locations, sizes)

    def _window(self, size: Sequence[int]) -> Any | None:
        """The sliding window for images of this size, None where the image is seen whole. Windows start at multiples
        of the coarsest stride, else the maps of neighbouring windows would not lie on one grid."""
        patch = self.config.inference.patch
        if patch is None or all(s <= p for s, p in zip(size, patch, strict=True)):
            return None
        roi = [min(s, p) for s, p in zip(size, patch, strict=True)]
        stride = self.config.strides[-1]
        steps = [max(stride, int(r * (1 - self.config.inference.overlap)) // stride * stride) for r in roi]
        # MONAI takes int(roi * (1 - overlap)): half a pixel more keeps the product from falling below the step.
        overlap = [max(0.0, 1 - (step + 0.5) / r) for step, r in zip(steps, roi, strict=True)]
        return SlidingWindowInferer(roi, sw_batch_size=1, overlap=overlap, mode="gaussian")

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Class loss plus weighted box loss of a batch, a scalar."""
        losses: Mapping[str, Tensor] = self.compute_loss(outputs.values, targets, outputs.anchors, outputs.locations)
        return losses[self.cls_key] + self.config.box_loss_weight * losses[self.box_reg_key]

    def training_loss(self, images: Images, targets: Targets) -> Tensor:
        """The loss of a batch with gradient; RunError when the network's outputs are not finite."""
        try:
            return self.loss(self.outputs(images), targets)
        except ValueError as error:
            if "NaN or Inf" not in str(error):
                raise
            remedy = "lower the learning rate or clip the gradient"
            raise RunError.at("detection loss", f"training diverged: {error}", remedy) from error

    def boxes(self, outputs: Outputs) -> Targets:
        """The boxes of each image, highest score first: "box" [N, 2 * nd], "label" [N], "label_scores" [N]."""
        found: Targets = self.postprocess_detections(outputs.values, outputs.anchors, outputs.sizes, outputs.locations)
        return found

    def compute_anchor_matched_idxs(
        self, anchors: list[Tensor], targets: Targets, num_anchor_locs_per_level: Sequence[int]
    ) -> list[Tensor]:
        """The number of the box that each anchor of each image is matched with, negative for none (ATSS)."""
        matches = []
        for anchor, target in zip(anchors, targets, strict=True):
            if len(target["box"]) == 0:
                matches.append(torch.full((len(anchor),), -1, dtype=torch.int64, device=anchor.device))
                continue
            _, matched = self.proposal_matcher(
                target["box"], anchor, num_anchor_locs_per_level, self.num_anchors_per_loc
            )
            matches.append(matched)
        return matches

    def compute_cls_loss(self, cls_logits: Tensor, targets: Targets, matched_idxs: list[Tensor]) -> Tensor:
        """Mean BCE over sampled anchors, or the focal loss over all anchors divided by the positives."""
        if self.config.class_loss != "focal":
            loss: Tensor = super().compute_cls_loss(cls_logits, targets, matched_idxs)
            return loss
        images = zip(cls_logits, targets, matched_idxs, strict=True)
        pairs = [self.get_cls_train_sample_per_image(*image) for image in images]
        logits, wanted = (torch.cat(part) for part in zip(*pairs, strict=True))
        positives = torch.cat([matched >= 0 for matched in matched_idxs]).sum()
        focal: Tensor = sigmoid_focal_loss(logits, wanted, self.config.focal.gamma, self.config.focal.alpha)
        return focal.sum() / positives.clamp(min=1)

    def compute_box_loss(
        self, box_regression: Tensor, targets: Targets, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Tensor:
        """Mean over the matched anchors; a batch without any gives a zero that still reaches every parameter."""
        if not any(bool((matched >= 0).any()) for matched in matched_idxs):
            return box_regression.sum() * 0.0
        loss: Tensor = super().compute_box_loss(box_regression, targets, anchors, matched_idxs)
        return loss


def _stacked(images: Images) -> Tensor:
    """[B, C, *s] of images that may differ in shape, padded with zeros at their ends, which moves no box."""
    if isinstance(images, Tensor):
        return images
    space = [max(sizes) for sizes in zip(*(image.shape[1:] for image in images), strict=True)]
    stacked = images[0].new_zeros(len(images), len(images[0]), *space)
    for place, image in zip(stacked, images, strict=True):
        place[(slice(None), *(slice(0, n) for n in image.shape[1:]))] = image
    return stacked
