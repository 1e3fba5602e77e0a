"""Synthetic images are made once, whoever is first."""

from pathlib import Path
from typing import Any

import pytest

from medfl.data.synthetic import write
from medfl.study.sources import assign_cases


def test_two_runs_that_make_the_same_images_at_once_share_them(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tiny.inputs().model_copy(update={"cache": tmp_path / "cache"})
    real = write.write_federation

    def second(*arguments: Any) -> Path:
        real(*arguments)
        return real(*arguments)

    monkeypatch.setattr(write, "write_federation", second)
    assert set(assign_cases(inputs).cases) == {"east", "north", "south", "west"}


def test_a_folder_that_cannot_be_made_is_still_an_error(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_federation", fails)
    with pytest.raises(OSError, match="No space"):
        assign_cases(tiny.inputs().model_copy(update={"cache": tmp_path / "cache"}))
