"""One zstd frame from a peer: whole, within its bound, or refused before it is expanded."""

import pytest
import zstandard

from medfl.errors import RunError
from medfl.update.inflate import inflate

CONTENT = bytes(range(200)) * 5
DECLARED = zstandard.compress(CONTENT)
UNDECLARED = zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT)


def test_a_frame_within_its_bounds_comes_back() -> None:
    assert inflate(DECLARED, 1000, 1000) == CONTENT
    assert inflate(DECLARED, 0, 5000) == CONTENT
    assert inflate(zstandard.compress(b""), 0, 0) == b""


@pytest.mark.parametrize(("least", "most"), [(0, 999), (1001, 5000)])
def test_a_frame_of_another_size_is_not_expanded(least: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(zstandard, "ZstdDecompressor")
    with pytest.raises(RunError, match="would expand to 1000 bytes"):
        inflate(DECLARED, least, most)


def test_what_declares_nothing_is_refused_unless_it_may_stream() -> None:
    with pytest.raises(RunError, match="would expand to -1 bytes"):
        inflate(UNDECLARED, 0, 5000)
    assert inflate(UNDECLARED, 0, 5000, streamed=True) == CONTENT
    with pytest.raises(RunError, match="do not decompress"):
        inflate(UNDECLARED, 0, 999, streamed=True)


@pytest.mark.parametrize("packed", [b"", b"no frame", DECLARED[:-1], DECLARED + b"x", DECLARED + DECLARED])
@pytest.mark.parametrize("streamed", [False, True])
def test_anything_but_one_whole_frame_is_refused(packed: bytes, streamed: bool) -> None:
    with pytest.raises(RunError, match="do not decompress"):
        inflate(packed, 0, 5000, streamed)
