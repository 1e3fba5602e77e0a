"""Write arrays as PNG, NIfTI and DICOM, the same bytes every time."""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medfl.data.base import Array

_DATE = "20200101"


def write_png(path: Path, pixels: Array) -> None:
    """An array uint8 or uint16 [rows, columns] as a greyscale PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels).save(path)


def write_nifti(path: Path, voxels: Array, spacing: float) -> None:
    """An array [*space] as NIfTI, `spacing` mm a voxel; a volume's axes run to right, anterior, superior."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0]), dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_dicom(path: Path, pixels: Array, spacing: float, patient: str, name: str) -> None:
    """A 2D array [rows, columns] as one DICOM file, or a volume [right, anterior, superior] as a folder of slices.

    int16 pixels are HU of a CT, uint16 pixels a 12-bit radiograph. name: what the identifiers are derived from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 2:
        _slice(pixels, spacing, patient, name, 0, (0.0, 0.0, 0.0)).save_as(path, enforce_file_format=True)
        return
    path.mkdir()
    # DICOM columns run to the patient's left and rows to the back, so both axes are reversed.
    stack = pixels[::-1, ::-1].transpose(2, 1, 0)
    corner = tuple(-(n - 1) * spacing for n in pixels.shape[:2])
    order = np.random.default_rng(int.from_bytes(_digest(name)[:8], "big")).permutation(len(stack))
    for number, (place, plane) in enumerate(zip(order, stack, strict=True)):
        file = path / f"IM{place:04d}.dcm"
        position = (corner[0], corner[1], number * spacing)
        _slice(plane, spacing, patient, name, number, position).save_as(file, enforce_file_format=True)


def _slice(
    pixels: Array, spacing: float, patient: str, name: str, number: int, position: tuple[float, float, float]
) -> Dataset:
    is_ct = pixels.dtype == np.int16
    data = Dataset()
    data.SOPClassUID = CTImageStorage if is_ct else ComputedRadiographyImageStorage
    data.SOPInstanceUID = _uid(f"{name}/{number}")
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(f"{name}/study"), _uid(f"{name}/series")
    data.FrameOfReferenceUID = _uid(f"{name}/frame")
    data.Modality = "CT" if is_ct else "CR"
    data.PatientID, data.PatientName = patient, "SYNTHETIC"
    data.StudyDate, data.InstanceNumber = _DATE, number + 1
    data.PixelSpacing = [spacing, spacing]
    if is_ct:
        data.ImagePositionPatient = [round(value, 6) for value in position]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.SliceThickness = spacing
        data.RescaleType = "HU"
    data.RescaleIntercept, data.RescaleSlope = (-1024 if is_ct else 0), 1
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = (pixels.astype(np.int32) + (1024 if is_ct else 0)).astype("<u2").tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def _uid(text: str) -> str:
    return str(generate_uid(entropy_srcs=[text]))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
