"""Settings of the classification task. Free of torch, so that a study can be checked without it."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints, field_validator

from medfl.tasks.base import TaskConfig
from medfl.tasks.networks.config import ResNetConfig

ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ClassificationConfig(TaskConfig):
    """One label an image, by an SE-ResNet with GroupNorm.

    class_balance: how a sample counts in the training loss, from the label counts of its own site. "inverse" weighs
    each class alike, "effective" by its effective number of samples (Cui et al. 2019, arXiv 1901.05555, beta 0.999),
    less steep between large classes; "none" weighs each sample alike. No sample counts more than 20 times as much as
    one of the largest class.
    label_smoothing: share of the target spread over all classes. evaluation_batch: images evaluated at once.
    """

    kind: Literal["classification"] = "classification"
    spatial_dims: Literal[2, 3] = 2
    in_channels: PositiveInt = 1
    classes: tuple[ClassName, ...] = Field(min_length=2)
    network: ResNetConfig = ResNetConfig()
    class_balance: Literal["none", "effective", "inverse"] = "inverse"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    evaluation_batch: PositiveInt = 64

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"class names must differ, but {', '.join(twice)} is there twice")
        return classes

    def traits(self) -> frozenset[str]:
        """The word weights-from-labels says that a sample's loss depends on the labels of the others at its site."""
        return frozenset() if self.class_balance == "none" else frozenset({"weights-from-labels"})
