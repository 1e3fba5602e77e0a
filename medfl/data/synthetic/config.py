"""What synthetic images a study asks for, and how its sites differ. Read by every study: no imaging library here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CLASSES = {
    ("chest", "classification"): ("normal", "pneumonia"),
    ("ct", "classification"): ("normal", "lesion"),
    ("ct", "detection"): ("lung nodule", "liver lesion"),
    ("ct", "segmentation"): ("background", "lung", "liver", "lesion"),
}


class SiteShift(BaseModel):
    """How one site differs from the others: its scanner, its protocol and its patients.

    noise: sigma after windowing. noise_correlation, blur: in pixels. gain, offset, gamma: detector response.
    bias_field: amplitude of the smooth shading. zoom: spacing, more than 1 shrinks the anatomy. prevalence:
    P(at least one lesion) or P(pneumonia). radius: lesion radius range in pixels. contrast: lesion contrast
    factor (contrast-agent phase). type_mix: share of lung nodules / liver lesions, or focal / diffuse pneumonia.
    vessels: Poisson mean of the distractors. flip_labels: probability that an image's label is wrong (chest only).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: float = Field(0.02, ge=0)
    noise_correlation: float = Field(0.6, ge=0)
    blur: float = Field(0.5, ge=0)
    gain: float = Field(1.0, gt=0)
    offset: float = 0.0
    gamma: float = Field(1.0, gt=0)
    bias_field: float = Field(0.0, ge=0, lt=1)
    zoom: float = Field(1.0, gt=0)
    prevalence: float = Field(0.5, ge=0, le=1)
    radius: tuple[float, float] = (3.5, 8.0)
    contrast: float = Field(1.0, gt=0)
    type_mix: tuple[float, float] = (0.5, 0.5)
    vessels: float = Field(6.0, ge=0)
    flip_labels: float = Field(0.0, ge=0, le=1)


class SyntheticSpec(BaseModel):
    """What to make.

    generator: "chest" (2D, classification only) or "ct" (2D slices or 3D volumes, all tasks).
    size: pixels of each space axis. cases: images a site. format: "png" (2D), "nifti" or "dicom" (a file an image
    in 2D, a folder of slices a volume). organs: "all" labels background, lung, liver and lesion; "liver" labels the
    liver including its lesions. prevalence: in place of each site's own. spacing: mm a pixel at zoom 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: Literal["chest", "ct"] = "chest"
    task: Literal["classification", "detection", "segmentation"] = "classification"
    size: tuple[int, int] | tuple[int, int, int] = (64, 64)
    cases: int = Field(40, ge=1)
    format: Literal["png", "nifti", "dicom"] = "png"
    organs: Literal["all", "liver"] = "all"
    prevalence: float | None = Field(None, ge=0, le=1)
    spacing: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> "SyntheticSpec":
        if (self.generator, self.task) not in CLASSES:
            raise ValueError(f"the {self.generator} generator has no {self.task} labels; use generator ct")
        if self.generator == "chest" and len(self.size) != 2:
            raise ValueError("a chest X-ray has two axes; use generator ct for volumes")
        if self.format == "png" and len(self.size) != 2:
            raise ValueError("a PNG has two axes; use format nifti or dicom for volumes")
        if min(self.size) < 16:
            raise ValueError("every axis needs at least 16 pixels")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the label numbers."""
        if self.task == "segmentation" and self.organs == "liver":
            return ("background", "liver")
        return CLASSES[self.generator, self.task]
