"""A wrong detection configuration is refused with all its faults, and checked without torch."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from medfl.plugins import PluginConfig
from medfl.tasks.base import TASKS
from medfl.tasks.detection.config import DEFAULT_ANCHORS, DetectionConfig
from medfl.tasks.networks.seresnet import SEResNet

LAYERS = {"layers": (1, 1, 1), "width": 8}


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        DetectionConfig(
            classes=("lesion", "lesion"),
            backbone=LAYERS,
            pyramid_channels=30,
            anchors=((8.0, 8.0, 8.0),),
            anchor_scales=(1.0, 2.0),
            inference={"patch": (60, 64)},
        )
    text = str(caught.value)
    for part in ("classes", "pyramid_channels is 30", "anchors", "anchor_scales has 2", "multiples of 8"):
        assert part in text, part


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"classes": ()}, "classes"),
        ({"classes": ("a", " ")}, "none empty"),
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"levels": 2}, "levels is 2"),
        ({"backbone": {**LAYERS, "first_stage": 3}}, "first_stage"),
        ({"anchors": ()}, "anchors"),
        ({"anchors": ((8.0, -1.0),)}, "anchors"),
        ({"class_loss": "hinge"}, "class_loss"),
        ({"inference": {"nms_iou": 0.0}}, "nms_iou"),
        ({"sampler": {"positive_fraction": 1.0}}, "positive_fraction"),
        ({"anchor_shapes": ((8, 8),)}, "anchor_shapes"),
    ],
)
def test_a_fault_names_its_key(settings: dict[str, object], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        DetectionConfig(**{"classes": ("lesion",), "backbone": LAYERS, **settings})


def test_defaults_follow_the_dimension() -> None:
    for nd in (2, 3):
        config = DetectionConfig(classes=("lesion",), spatial_dims=nd)
        assert config.anchor_shapes == DEFAULT_ANCHORS[nd]
        assert config.level_scales == (1, 2, 4, 8) and config.strides == (2, 4, 8, 16)


@pytest.mark.parametrize("stem", ["small", "large"])
@pytest.mark.parametrize("stem_pool", [False, True])
@pytest.mark.parametrize("first", [0, 2])
def test_strides_are_those_of_the_backbone(stem: str, stem_pool: bool, first: int) -> None:
    shape = {"stem": stem, "stem_pool": stem_pool, **LAYERS}
    config = DetectionConfig(classes=("a",), backbone={**shape, "first_stage": first}, levels=3 - first + 1)
    backbone = SEResNet(spatial_dims=2, in_channels=1, **shape)
    assert config.strides[:-1] == backbone.feature_strides[first:]
    assert config.strides[-1] == 2 * config.strides[-2] and config.extra_levels == 1


def test_the_task_point_knows_detection() -> None:
    config = TypeAdapter(PluginConfig).validate_python(DetectionConfig(classes=("a",)))
    assert type(TASKS.build(config)).__name__ == "Detection"
    assert TASKS.load("detection").Config is DetectionConfig


def test_checking_a_configuration_imports_no_torch() -> None:
    code = "import sys, medfl.tasks.detection as d; d.Detection.Config(classes=('a',)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
