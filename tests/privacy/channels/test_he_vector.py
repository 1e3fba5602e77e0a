"""TenSEAL's own vectors: sums right to the grid, nothing on stdout, no key at the coordinator."""

import numpy as np
import pytest

pytest.importorskip("tenseal")

from medfl.errors import RunError
from medfl.privacy.channels.he.vector import SLOTS, CkksVectors

STEP = 2.0**-20


def test_sum_is_right_to_the_grid(capfd: pytest.CaptureFixture[str]) -> None:
    sites = CkksVectors.generate()
    coordinator = sites.public()
    assert sites.has_secret
    assert not coordinator.has_secret
    values = np.random.default_rng(0).integers(-(2**20), 2**20, (3, 2 * SLOTS + 100))
    vectors = (values * STEP).astype(np.float32)
    total = list(sites.encrypt(vectors[0]))
    assert len(total) == 3
    for vector in vectors[1:]:
        total = list(coordinator.add(total, sites.encrypt(vector)))
    assert np.array_equal(sites.decrypt(total, STEP), (values.sum(axis=0) * STEP).astype(np.float32))
    assert capfd.readouterr() == ("", "")


def test_wrong_key_and_length_are_noticed() -> None:
    sites = CkksVectors.generate()
    blobs = list(sites.encrypt(np.ones(10, np.float32)))
    with pytest.raises(RunError, match="off the grid"):
        CkksVectors.generate().decrypt(blobs, STEP)
    with pytest.raises(ValueError, match="shorter"):
        list(sites.add(blobs, []))
