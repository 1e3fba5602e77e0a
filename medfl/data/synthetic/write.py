"""Write a synthetic federation to disk: real image files, masks and a datalist, the same bytes for the same seed."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfl.data.base import Array, Case, Datalist, FloatArray
from medfl.data.manifest import save_datalist
from medfl.data.synthetic.base import INTENSITY_MAX, Generator, Phantom, scan
from medfl.data.synthetic.chest import chest
from medfl.data.synthetic.config import SiteShift, SyntheticSpec
from medfl.data.synthetic.ct import WINDOW, ct
from medfl.data.synthetic.files import write_dicom, write_nifti, write_png
from medfl.errors import DataError

GENERATORS: dict[str, Generator] = {"chest": chest, "ct": ct}
SECOND_IMAGE = 0.15
"""Share of patients with a second image: the same anatomy scanned again."""


@dataclass(frozen=True, slots=True)
class _Shot:
    """One image to write."""

    site: str
    patient: str
    name: str
    phantom: Phantom
    image: FloatArray
    spacing: float


def write_federation(out: Path, spec: SyntheticSpec, shifts: Mapping[str, SiteShift], seed: int) -> Path:
    """Write the images of every site below `out` and return the path of `out/datalist.json`.

    shifts: site name -> its shift. Splits stay empty (`medfl.data.split`). The folder appears whole or not at all;
    equal arguments give equal bytes. Raises DataError when `out` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError.at(out, "exists and is not empty", "give a folder that does not exist yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        cases = [_write(temporary, spec, shot) for site in shifts for shot in _shots(spec, site, shifts[site], seed)]
        name = f"synthetic {spec.generator} {spec.task}"
        modality = "CT" if spec.generator == "ct" else "CR"
        datalist = Datalist(name, spec.task, spec.classes, tuple(cases), temporary, modality)
        save_datalist(datalist, temporary / "datalist.json")
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out / "datalist.json"


def site_rng(seed: int, site: str) -> np.random.Generator:
    """The generator of one site's images; independent of the other sites and of their order."""
    digest = hashlib.sha256(f"{seed}/{site}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _shots(spec: SyntheticSpec, site: str, shift: SiteShift, seed: int) -> Iterator[_Shot]:
    if spec.prevalence is not None:
        shift = shift.model_copy(update={"prevalence": spec.prevalence})
    rng, generate = site_rng(seed, site), GENERATORS[spec.generator]
    written, number = 0, 0
    while written < spec.cases:
        number += 1
        phantom = generate(rng, tuple(spec.size), shift)
        images = 1 + int(rng.random() < SECOND_IMAGE)
        for turn in range(min(images, spec.cases - written)):
            image = scan(phantom.clean, shift, rng)
            name = f"{number:04d}" + ("b" if turn else "a")
            yield _Shot(site, f"{site}-{number:04d}", name, phantom, image, spec.spacing * shift.zoom)
        written += images


def _write(root: Path, spec: SyntheticSpec, shot: _Shot) -> Case:
    key = f"{shot.site}/images/{shot.name}{_suffix(spec)}"
    _write_image(root / key, spec, shot)
    phantom = shot.phantom
    label: int | Path | tuple[int, ...] = phantom.label
    boxes = None
    if spec.task == "detection":
        label = tuple(int(kind) for kind in phantom.types)
        boxes = tuple(tuple(float(edge) for edge in box) for box in phantom.boxes)
    elif spec.task == "segmentation":
        label = root / f"{shot.site}/masks/{shot.name}{'.nii.gz' if _has_affine(spec) else '.png'}"
        mask = phantom.mask if spec.organs == "all" else phantom.liver.astype(np.uint8)
        write_nifti(label, mask, shot.spacing) if _has_affine(spec) else write_png(label, mask)
    return Case(key, root / key, label, boxes, shot.patient, shot.site)


def _suffix(spec: SyntheticSpec) -> str:
    if spec.format == "dicom":
        return ".dcm" if len(spec.size) == 2 else ""
    return ".png" if spec.format == "png" else ".nii.gz"


def _has_affine(spec: SyntheticSpec) -> bool:
    return spec.format == "nifti" or len(spec.size) == 3


def _write_image(path: Path, spec: SyntheticSpec, shot: _Shot) -> None:
    if spec.format == "png":
        is_chest = spec.generator == "chest"
        kind, top = (np.uint8, 255) if is_chest else (np.uint16, 65535)
        write_png(path, _quantised(shot.image, kind, top))
    elif spec.format == "nifti":
        write_nifti(path, _stored(spec, shot.image), shot.spacing)
    else:
        write_dicom(path, _stored(spec, shot.image), shot.spacing, shot.patient, f"{shot.site}/{shot.name}")


def _stored(spec: SyntheticSpec, image: FloatArray) -> Array:
    """HU as int16 for CT, 12 bits for X-rays."""
    if spec.generator == "ct":
        hu: Array = np.rint(image * (WINDOW[1] - WINDOW[0]) + WINDOW[0]).astype(np.int16)
        return hu
    return _quantised(image, np.uint16, 4095)


def _quantised(image: FloatArray, kind: type[np.unsignedinteger[Any]], top: int) -> Array:
    """0..1.5 as the integers 0..top."""
    result: Array = np.rint(image / INTENSITY_MAX * top).astype(kind)
    return result
