"""What networks see: each image standardised as a whole."""

import numpy as np
import torch

from medfl.data.augment.base import AugmentConfig, augment
from medfl.tasks.images import network_input

CPU = torch.device("cpu")


def test_gain_and_offset_of_a_scanner_do_not_matter() -> None:
    images = np.random.default_rng(0).random((3, 1, 16, 16)).astype(np.float32)
    seen = network_input(images, CPU)
    scale = np.array([700.0, 1.0, 0.01], np.float32).reshape(3, 1, 1, 1)
    torch.testing.assert_close(network_input(images * scale + 10 * scale, CPU), seen, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(seen.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(dim=(1, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = np.random.default_rng(0).random((4, 2, 8, 8, 8)).astype(np.float32)
    torch.testing.assert_close(network_input(images, CPU)[2:3], network_input(images[2:3], CPU))


def test_the_array_is_neither_changed_nor_has_to_be_writable() -> None:
    images = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)
    before = images.copy()
    images.flags.writeable = False
    network_input(images, CPU)
    assert np.array_equal(images, before)


def test_a_constant_image_stays_finite() -> None:
    assert torch.isfinite(network_input(np.full((1, 1, 8, 8), 0.3, np.float32), CPU)).all()


def test_a_patch_gets_the_values_it_has_in_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    volume = rng.random((1, 12, 12, 12), dtype=np.float32)
    volume[:, 6:] += 3
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[11] = 1
    config = AugmentConfig(patch=(6, 12, 12), foreground=1.0)
    patch = augment({"image": volume, "label": mask}, config, 0, "k", 0)
    expected = network_input(volume[None], CPU)[:, :, 6:]
    seen = network_input(patch["image"][None], CPU, patch["statistics"][None])
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    # The fake that standardises the patch by itself.
    assert (network_input(patch["image"][None], CPU) - expected).abs().max() > 0.5
