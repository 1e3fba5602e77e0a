"""Copies of images are found wherever they lie, and little is read to find them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.data import copies as module
from medfl.data import fingerprint
from medfl.data.base import Case
from medfl.data.copies import copies, place_of
from medfl.data.readers import npz
from medfl.errors import DataError


def files(folder: Path, **contents: bytes) -> list[Case]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [Case(name, folder / name) for name in contents]


def entries(path: Path, values: Any, array: str = "images") -> list[Case]:
    np.savez_compressed(path, **{array: np.asarray(values)})
    return [Case(f"{path.name}/{n}", path, array=array, index=n) for n in range(len(values))]


def test_a_copy_under_another_name_is_found_and_a_change_of_one_byte_is_none(tmp_path: Path) -> None:
    tested = files(tmp_path / "a", first=b"x" * 100, second=b"y" * 100)
    given = files(tmp_path / "b", other=b"x" * 100, near=b"x" * 99 + b"z", longer=b"x" * 101, third=b"q" * 100)
    stamps = tmp_path / "stamps"
    assert copies(given, tested, stamps) == given[:1]
    # the fake that goes by places alone finds none
    assert not {place_of(case) for case in given} & {place_of(case) for case in tested}
    assert copies(given, [], stamps) == copies([], tested, stamps) == []
    gone = Case("gone", tmp_path / "gone")
    assert copies([*given, gone], [*tested, gone], stamps) == given[:1], "what cannot be read is left out at loading"


def test_only_files_of_equal_size_are_read_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = files(tmp_path / "a", **{f"n{size}": b"x" * size for size in range(50)})
    given = files(tmp_path / "b", m7=b"x" * 7, m100=b"x" * 100)
    asked, real = list[str](), module.fingerprints
    monkeypatch.setattr(module, "fingerprints", lambda paths, stamps: real(asked_of(paths, asked), stamps))
    assert copies(given, tested, tmp_path / "stamps") == given[:1]
    assert sorted(asked) == ["m7", "n7"]


def asked_of(paths: Any, asked: list[str]) -> list[Path]:
    found = list(paths)
    asked += [path.name for path in found]
    return found


def test_a_series_is_its_folder_and_its_name(tmp_path: Path) -> None:
    files(tmp_path / "a" / "scan", one=b"1" * 10, two=b"2" * 10)
    files(tmp_path / "b" / "less", one=b"1" * 10)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    first, second = (Case(series, tmp_path / "a" / "scan", array=series) for series in ("1.2", "1.3"))
    copy, less = Case("copy", tmp_path / "c" / "scan", array="1.2"), Case("less", tmp_path / "b" / "less", array="1.2")
    assert copies([copy, less], [first], tmp_path / "stamps") == [copy]
    assert copies([copy, less], [second], tmp_path / "stamps") == []


def test_an_entry_is_known_in_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (12, 6, 6), np.uint8)
    tested = entries(tmp_path / "a.npz", pictures)
    given = entries(tmp_path / "b.npz", np.concatenate([pictures[[5]], pictures[[6]] + 1, pictures[[11]]]), "others")
    assert copies(given, tested, tmp_path / "stamps") == [given[0], given[2]]
    assert copies(given, given[1:2], tmp_path / "stamps") == [given[1]]
    flat = entries(tmp_path / "c.npz", pictures.reshape(12, 4, 9))
    monkeypatch.setattr(npz.NpzReader, "read", None)
    assert copies(flat, tested, tmp_path / "stamps") == [], "other shapes are not read"


def test_a_broken_archive_or_a_folder_without_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = entries(tmp_path / "a.npz", np.zeros((2, 6, 6)))
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:60])
    with pytest.raises(DataError, match=r"b\.npz"):
        copies([Case("x", tmp_path / "b.npz", array="images", index=0)], tested, tmp_path / "stamps")
    given = files(tmp_path / "c", one=b"1" * 10, two=b"1" * 10)
    # files that were written just now are not remembered
    monkeypatch.setattr(fingerprint, "SETTLED_NS", -1)
    (tmp_path / "stamps").write_text("a file")
    with pytest.raises(DataError, match="MEDFL_CACHE"):
        copies(given[:1], given[1:], tmp_path / "stamps")
