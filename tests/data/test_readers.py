"""NIfTI, pictures and npz: values, axes, spacing, and a DataError for anything broken."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from medfl.data.base import Case, Image
from medfl.data.readers import npz, read_image, read_mask, read_path
from medfl.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says of broken files
FUZZ = settings(max_examples=60)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.header.set_slope_inter(header.get("slope"), header.get("inter"))
    nib.save(image, path)
    return path


def picture(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    made = Pillow.fromarray(array)
    (made.convert(mode) if mode else made).save(path)
    return path


# NIfTI


def test_nifti_is_turned_to_ras_with_its_spacing(tmp_path: Path) -> None:
    # Stored axes: 0 = superior -> inferior, 1 = right -> left, 2 = anterior -> posterior ... of 4, 2 and 3 mm.
    array = np.arange(2 * 3 * 5, dtype=np.int16).reshape(2, 3, 5)
    affine = np.array([[0, -2, 0, 9], [0, 0, 3, -7], [4, 0, 0, 1], [0, 0, 0, 1]], dtype=float)
    image = read_path(nifti(tmp_path / "a.nii.gz", array, affine))
    assert image.array.shape == (1, 3, 5, 2)
    assert image.array.dtype == np.float32
    assert image.spacing == (2.0, 3.0, 4.0)
    assert image.affine is not None
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    # The same point of the world holds the same value: the property that a missing flip breaks.
    for voxel in np.ndindex(image.array.shape[1:]):
        world = image.affine @ [*voxel, 1]
        stored = np.rint(np.linalg.inv(affine) @ world)[:3].astype(int)
        assert image.array[(0, *voxel)] == array[tuple(stored)]
    assert not np.array_equal(image.array[0], array.transpose(1, 2, 0))


def test_nifti_slope_is_honoured_and_trailing_axis_dropped(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header["scl_slope"], image.header["scl_inter"] = 2.0, -10.0
    raw = image.to_bytes()
    # nibabel resets the scale while writing: set it in the bytes (scl_slope at 112, scl_inter at 116).
    raw = raw[:112] + np.array([2.0, -10.0], "<f4").tobytes() + raw[120:]
    (tmp_path / "a.nii").write_bytes(raw)
    found = read_path(tmp_path / "a.nii").array
    np.testing.assert_allclose(found[0], array[..., 0] * 2.0 - 10.0)


def test_nifti_4d_is_refused_with_its_shape(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(DataError, match=r"4 axes \(2, 3, 4, 5\).*own"):
        read_path(path)


def test_nifti_pair_micron_and_2d(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.ones((2, 3, 4), np.int16), np.diag([2, 2, 2, 1])), tmp_path / "a.hdr")
    assert read_path(tmp_path / "a.hdr").spacing == (2.0, 2.0, 2.0)
    image = nib.Nifti1Image(np.ones((2, 3, 4), np.int16), np.diag([500, 500, 500, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "b.nii")
    micron = read_path(tmp_path / "b.nii")
    assert micron.spacing == (0.5, 0.5, 0.5)
    assert "micron" in micron.notes[0]
    assert read_path(nifti(tmp_path / "c.nii", np.ones((4, 5), np.int16))).array.shape == (1, 4, 5)


def test_nifti_rgb_becomes_channels(tmp_path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    array = np.zeros((2, 3, 4), kind)
    array["G"] = 7
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    found = read_path(tmp_path / "a.nii.gz").array
    assert found.shape == (3, 2, 3, 4)
    assert found[:, 0, 0, 0].tolist() == [0, 7, 0]


def test_nifti_truncated_and_flipped_gzip_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = nifti(tmp_path / "a.nii.gz", rng.integers(0, 99, (8, 9, 10)).astype(np.int16))
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[: len(whole) // 2], whole[:60], whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.nii\.gz"):
            read_path(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    path.write_bytes(bytes(flipped))
    with pytest.raises(DataError):
        read_path(path)


def test_nifti_that_declares_gigabytes_is_refused_before_memory(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.int16))
    raw = bytearray(path.read_bytes())
    raw[40:56] = np.array([3, 1000, 1000, 1000, 1, 1, 1, 1], "<i2").tobytes()
    for name, content in (("b.nii", bytes(raw)), ("b.nii.gz", gzip.compress(bytes(raw)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"ends after|more than it can hold"):
            read_path(tmp_path / name)


def test_mask_is_integer_and_fractions_are_refused(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6))
    for kind in (np.uint8, np.int16, np.float32, np.float64):
        mask = read_mask(nifti(tmp_path / f"{np.dtype(kind)}.nii.gz", labels.astype(kind)))
        assert mask.array.dtype == np.uint8
        np.testing.assert_array_equal(mask.array[0], labels)
    assert read_mask(nifti(tmp_path / "n.nii", (labels - 1).astype(np.int16))).array.min() == -1
    with pytest.raises(DataError, match=r"not whole numbers, such as 0\.5"):
        read_mask(nifti(tmp_path / "f.nii", labels.astype(np.float32) / 2))
    with pytest.raises(DataError, match="not whole numbers"):
        read_mask(nifti(tmp_path / "x.nii", np.where(labels == 1, np.nan, labels).astype(np.float32)))


# Pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_and_colour_pictures(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 255, (5, 7), np.uint8), rng.integers(0, 255, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(read_path(picture(tmp_path / f"g.{suffix}", grey)).array[0], grey)
    found = read_path(picture(tmp_path / f"c.{suffix}", colour)).array
    np.testing.assert_array_equal(found, colour.transpose(2, 0, 1))


def test_jpeg_16_bit_palette_and_alpha(tmp_path: Path) -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8) * 3, (32, 1))
    jpeg = read_path(picture(tmp_path / "a.jpg", grey)).array
    assert jpeg.shape == (1, 32, 64)
    assert np.abs(jpeg[0] - grey).mean() < 3
    deep = (np.arange(35, dtype=np.uint16) * 1801).reshape(5, 7)
    np.testing.assert_array_equal(read_path(picture(tmp_path / "d.png", deep)).array[0], deep)
    assert read_path(picture(tmp_path / "p.png", np.dstack([grey, grey // 2, grey]), "P")).array.shape[0] == 3
    assert read_path(picture(tmp_path / "q.png", grey, "P")).array.shape[0] == 1
    clear = read_path(picture(tmp_path / "r.png", np.dstack([grey] * 4)))
    assert clear.array.shape[0] == 3
    assert clear.notes == ("transparency ignored",)
    assert read_path(picture(tmp_path / "l.png", grey, "LA")).array.shape[0] == 1
    assert read_path(picture(tmp_path / "1.png", grey, "1")).array.max() == 1
    assert read_path(picture(tmp_path / "k.jpg", np.dstack([grey] * 3), "CMYK")).array.shape[0] == 3


def test_16_bit_colour_png_keeps_its_depth_and_channel_order(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    rgb = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1])
    found = read_path(tmp_path / "a.png").array
    np.testing.assert_array_equal(found, rgb.transpose(2, 0, 1))
    assert found.max() > 255


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((16, 48), np.uint8)
    upright[:, :24] = 200
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to view
    Pillow.fromarray(np.rot90(upright)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_path(tmp_path / "a.jpg")
    assert np.abs(image.array[0] - upright).mean() < 5
    assert "EXIF" in image.notes[0]


def test_palette_masks_give_indices_and_colour_masks_are_refused(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (8, 8), np.uint8)
    indexed = Pillow.fromarray(labels).convert("L")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png").array[0], labels)
    np.testing.assert_array_equal(read_mask(picture(tmp_path / "g.png", np.dstack([labels] * 3))).array[0], labels)
    with pytest.raises(DataError, match="3 different channels"):
        read_mask(picture(tmp_path / "c.png", np.dstack([labels, labels, labels * 2])))


# npz


def test_npz_entries(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 255, (6, 5, 7), np.uint8), rng.integers(0, 255, (6, 5, 7, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", grey=grey, colour=colour, volume=rng.random((2, 4, 5, 6, 1)))
    for index in (3, 0, 5):
        case = Case("k", tmp_path / "a.npz", array="grey", index=index)
        np.testing.assert_array_equal(read_image(case).array[0], grey[index])
        found = read_path(tmp_path / "a.npz", index=index, array="colour").array
        np.testing.assert_array_equal(found, colour[index].transpose(2, 0, 1))
    assert read_path(tmp_path / "a.npz", index=1, array="volume").array.shape == (1, 4, 5, 6)
    for wrong, index in (("grey", 6), ("grey", -1), ("none", 0), ("", 0)):
        with pytest.raises(DataError):
            read_path(tmp_path / "a.npz", index=index, array=wrong)


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_npz_arrays_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setattr(npz, "KEEP", 0)
    array = np.asarray(np.random.default_rng(0).random((9, 4, 5)), np.float32, order=order)  # type: ignore[call-overload]
    np.savez_compressed(tmp_path / "a.npz", x=array)
    for index in (2, 3, 8, 0, 5):
        np.testing.assert_array_equal(read_path(tmp_path / "a.npz", index=index).array[0], array[index])


def test_npz_with_objects_is_refused_without_unpickling(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickle"):
        read_path(tmp_path / "a.npz", index=0)


# Anything


def test_absent_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "a.txt").write_text("patient,site\n")
    (tmp_path / "liar.png").write_text("not a picture at all")
    (tmp_path / "folder").mkdir()
    for name in ("absent.nii.gz", "empty.png", "a.txt", "liar.png", "folder", "nul\0.png"):
        with pytest.raises(DataError) as caught:
            read_path(tmp_path / name)
        assert caught.value.faults[0].what


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    grey = rng.integers(0, 255, (6, 7), np.uint8)
    nifti(folder / "a.nii", rng.integers(0, 3, (3, 4, 5)).astype(np.int16))
    nifti(folder / "a.nii.gz", rng.integers(0, 3, (3, 4, 5)).astype(np.int16))
    nib.save(nib.Nifti2Image(np.ones((2, 2, 2), np.float32), np.eye(4)), folder / "b.nii")
    picture(folder / "a.png", grey)
    picture(folder / "p.png", np.dstack([grey] * 3), "P")
    picture(folder / "d.png", grey.astype(np.uint16) * 9)
    picture(folder / "a.jpg", grey)
    picture(folder / "a.tif", grey)
    np.savez(folder / "a.npz", x=grey[None])
    np.savez_compressed(folder / "b.npz", x=grey[None])
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@FUZZ
@given(data=st.data())
def test_broken_files_raise_only_data_error(data: st.DataObject, small: dict[str, bytes], tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(small)))
    content = bytearray(small[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / name
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    readers: tuple[Callable[[Path], Image], ...] = (lambda p: read_path(p, index=0), read_mask)
    for read in readers:
        try:
            image = read(path)
        except DataError as error:
            assert error.faults
        else:
            assert image.array.ndim - 1 == len(image.spacing)
