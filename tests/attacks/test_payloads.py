"""What a sealed payload says of the image behind it: nothing. The base of what the attacks find."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from attacks.inversion import SIDE, Pictures, hospitals
from attacks.wiretap import Tapped, words
from scipy.stats import chi2, chi2_contingency

FALSE_ALARM = 1e-6
ROUNDS = 6


def uniform(values: npt.NDArray[np.int32]) -> bool:
    """Whether the bytes could be uniform (chi-square)."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return bool(((counts - expected) ** 2 / expected).sum() < chi2.isf(FALSE_ALARM, 255))


def alike(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> bool:
    """Whether bytes of two kinds could come from one distribution (chi-square of the table)."""
    table = np.stack([np.bincount(values.view(np.uint8), minlength=256) for values in (one, other)])
    return bool(chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > FALSE_ALARM)


def unrelated(sealed: npt.NDArray[np.int32], plain: npt.NDArray[np.int32]) -> bool:
    """Whether words sent and words meant are uncorrelated, within 6 standard deviations."""
    return abs(np.corrcoef(sealed, plain)[0, 1]) < 6 / np.sqrt(plain.size)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, npt.NDArray[np.int32]]]:
    """By channel: what the sites of a dark and of a bright image sent in some rounds, and what they meant."""
    images = np.stack([np.full((1, SIDE, SIDE), 0.05), *np.random.default_rng(0).random((2, 1, SIDE, SIDE))])
    images[1, :, 4:12] = 1.0
    data = hospitals(images.astype(np.float32), np.array([0, 1, 1]))
    found = {}
    for channel in ("clear", "masks"):
        tapped = Tapped(tmp_path_factory.mktemp("run") / "journal.db", Pictures(), data, channel, clip=0.01)
        parts: dict[str, list[npt.NDArray[np.int32]]] = {"dark": [], "bright": [], "meant dark": [], "meant bright": []}
        for _ in range(ROUNDS):
            tapped.play()
            for name, at in (("dark", "s00"), ("bright", "s01")):
                parts[name].append(words(tapped.wire.sealed[at]))
                parts[f"meant {name}"].append(words(tapped.wire.plain[at]))
        tapped.close()
        found[channel] = {name: np.concatenate(values) for name, values in parts.items()}
    return found


@pytest.mark.parametrize("image", ["dark", "bright"])
def test_a_masked_payload_is_uniform(image: str, sent: dict[str, dict[str, npt.NDArray[np.int32]]]) -> None:
    assert uniform(sent["masks"][image])
    assert not uniform(sent["clear"][image])


def test_a_masked_payload_does_not_depend_on_the_image(sent: dict[str, dict[str, npt.NDArray[np.int32]]]) -> None:
    assert alike(sent["masks"]["dark"], sent["masks"]["bright"])
    assert not alike(sent["clear"]["dark"], sent["clear"]["bright"])
    for image in ("dark", "bright"):
        assert unrelated(sent["masks"][image], sent["masks"][f"meant {image}"])
        assert not unrelated(sent["clear"][image], sent["clear"][f"meant {image}"])


@pytest.mark.parametrize(("channel", "fresh"), [("masks", True), ("he", True), ("clear", False)])
def test_one_update_is_sealed_differently_each_time(channel: str, fresh: bool, tmp_path: Path) -> None:
    """Two runs of the same round: the updates are the same, bit for bit, and what is sent has nothing in common."""
    if channel == "he":
        pytest.importorskip("tenseal")
    images = np.random.default_rng(0).random((3, 1, SIDE, SIDE)).astype(np.float32)
    seen = []
    for run in "ab":
        tapped = Tapped(tmp_path / run, Pictures(), hospitals(images, np.array([0, 1, 0])), channel, clip=0.01)
        tapped.play()
        tapped.close()
        seen.append(tapped.wire)
    for site in seen[0].plain:
        np.testing.assert_array_equal(*(words(wire.plain[site]) for wire in seen))
        one, other = (words(wire.sealed[site]) for wire in seen)
        length = min(one.size, other.size)
        # by chance two words agree once in 4 billion; headers and paddings of ciphertexts are the same
        assert bool((one[:length] == other[:length]).mean() < 0.01) is fresh
