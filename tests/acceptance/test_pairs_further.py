"""The other half of the matrix of `test_pairs.py`."""

from collections.abc import Iterator

import pytest
from toys.combined import Stage
from toys.pairs import settings, troubles

SETTINGS = settings()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        yield Stage(tmp_path_factory.mktemp("stage"), patch)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(SETTINGS), 2), ids=lambda number: str(SETTINGS[number]))
def test_all_pairs_are_refused_or_work(stage: Stage, number: int) -> None:
    assert troubles(stage, SETTINGS, number) == {}
