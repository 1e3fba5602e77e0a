"""Predictions for image files: as JSON, as a mask on the image's own grid, and as a picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medfl.coordinator.files import write_text
from medfl.data.base import Image, SampleInfo
from medfl.data.preprocess import preprocess_image, restore_boxes, restore_mask
from medfl.data.readers import read_path
from medfl.errors import DataError, Fault, Faults, InputError
from medfl.report.grid import FileGrid, file_grid
from medfl.report.pictures import for_picture
from medfl.report.saved import SavedModel
from medfl.tasks.base import Prediction

SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".npz", ".hdr", ".img")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was said about one image and where it was written. faults: what went wrong; then nothing was written."""

    image: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()
    faults: Sequence[Fault] = ()


def predict_files(model: SavedModel, images: Sequence[Path], out: Path) -> Iterator[Predicted]:
    """Predict each image (a file, or the folder of a DICOM series) and write what was found below `out`.

    `<name>.json`, `<name>_overlay.png` (without boxes of low scores; the JSON has them all) and, for segmentation,
    `<name>_mask.nii.gz` (`_mask.png` for 2D images that are not NIfTI). An image that cannot be used is told of in its
    `faults` and does not stop the rest. InputError when two images would be written to the same files.
    """
    names = _names(images)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError.at(f"--out {out}", f"cannot be made: {error.strerror}", "give another folder") from error
    for image, name in zip(images, names, strict=True):
        try:
            yield _predict_file(model, image, out, name)
        except DataError as error:
            yield Predicted(image, faults=error.faults)


def output_name(image: Path) -> str:
    """An image's name without its suffix."""
    name = image.name or image.resolve().name
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or name


def _names(images: Sequence[Path]) -> list[str]:
    names, faults = [output_name(image) for image in images], Faults()
    for name in sorted({name for name in names if names.count(name) > 1}):
        same = ", ".join(str(image) for image, own in zip(images, names, strict=True) if own == name)
        faults.add(same, f"would all be written to {name}.json", "predict them into different --out folders")
    faults.raise_if_any(InputError)
    return names


def _predict_file(model: SavedModel, path: Path, out: Path, name: str) -> Predicted:
    image = read_path(path)
    prediction = predict_image(model, image, path)
    grid = file_grid(path, image)
    result = {
        "image": str(path),
        "study": model.study.name,
        "task": model.study.task.kind,
        "shape": list(grid.shape),
        "axes": grid.axes,
        "affine": None if grid.affine is None else grid.affine.tolist(),
        "notes": list(image.notes),
        **_content(prediction, grid),
    }
    files = [out / f"{name}.json"]
    if prediction.mask is not None:
        files.append(out / f"{name}_mask{'.png' if grid.is_picture else '.nii.gz'}")
        grid.save_mask(prediction.mask, files[-1])
        result["mask"] = files[-1].name
    files.append(out / f"{name}_overlay.png")
    model.task.overlay(_shown(image, model), for_picture(prediction)[0], None, files[-1])
    result["overlay"] = files[-1].name
    write_text(files[0], json.dumps(result, indent=2, allow_nan=False) + "\n")
    return Predicted(path, result, files)


def predict_image(model: SavedModel, image: Image, path: Path) -> Prediction:
    """The prediction in the pixels of `image` as the reader returned it.

    path: named in faults. DataError when the image has another number of axes or channels than the model takes.
    """
    config, task = model.study.data.preprocess, model.study.task
    axes = image.array.ndim - 1
    if axes != task.spatial_dims:
        raise DataError.at(path, f"has {axes} space axes, the model takes {task.spatial_dims}", _KIND.get(axes, ""))
    try:
        sample = {"image": preprocess_image(image, config)}
    except DataError as error:
        faults = (
            Fault(f"{path}, {fault.where}", fault.what, "give images like those of the study") for fault in error.faults
        )
        raise DataError(*faults) from error
    found = model.task.predict(model.network, sample, SampleInfo(path.name, "", image.spacing), model.device)
    if found.mask is not None:
        mask = restore_mask(found.mask, image, config)
        counts = np.bincount(mask.ravel(), minlength=len(task.classes)).tolist()
        return Prediction({"voxels": dict(zip(task.classes, counts, strict=True))}, mask)
    if "boxes" in found.data:
        boxes = restore_boxes(np.asarray(found.data["boxes"], np.float64), image, config)
        return Prediction({**found.data, "boxes": boxes.tolist()})
    return found


_KIND = {
    2: "give a volume: a NIfTI file or the folder of a DICOM series",
    3: "give single pictures or slices",
}


def _content(prediction: Prediction, grid: FileGrid) -> dict[str, Any]:
    """What the JSON says beside the image: numbers in the pixels of the file."""
    data = prediction.data
    if "probabilities" in data:
        likely = max(data["probabilities"], key=data["probabilities"].__getitem__)
        return {"class": likely, "probabilities": dict(data["probabilities"])}
    if "boxes" in data:
        boxes = grid.boxes(np.asarray(data["boxes"], np.float64).reshape(-1, 2 * len(grid.shape)))
        found = zip(boxes.tolist(), data["labels"], data["scores"], strict=True)
        return {"boxes": [{"box": box, "class": label, "score": score} for box, label, score in found]}
    return {"voxels": dict(data["voxels"])}


def _shown(image: Image, model: SavedModel) -> Any:
    """The image on its own grid, in the grey values that the network sees."""
    config = model.study.data.preprocess
    return preprocess_image(image, config.model_copy(update={"size": None, "spacing": None}))
