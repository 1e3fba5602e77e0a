"""Synthetic images: what a site's scanner and patients are like, and the building blocks of the phantoms.

One random generator a (site, set); samples are drawn from it in sequence, so a seed fixes every pixel.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Protocol

import numpy as np
from scipy import ndimage
from scipy.special import expit

from medfl.data.base import Array, FloatArray
from medfl.data.synthetic.config import SiteShift

INTENSITY_MAX = 1.5
"""Scanned images lie in 0..1.5; 1.0 is the top of the display window."""


SITE_SHIFTS: Mapping[str, SiteShift] = MappingProxyType(
    {
        "A-sharp": SiteShift(noise=0.015, blur=0.3, prevalence=0.6, type_mix=(0.8, 0.2)),
        "B-lowdose": SiteShift(noise=0.05, noise_correlation=0.9, blur=0.7, gain=0.92, offset=0.04, prevalence=0.4),
        "C-thick": SiteShift(blur=1.1, gamma=1.25, zoom=1.15, prevalence=0.7, radius=(3.0, 6.0), type_mix=(0.3, 0.7)),
        "D-oldtube": SiteShift(
            noise=0.03,
            blur=0.8,
            gain=1.1,
            offset=-0.05,
            gamma=0.8,
            bias_field=0.2,
            prevalence=0.3,
            contrast=0.8,
            type_mix=(0.2, 0.8),
        ),
        "E-unseen": SiteShift(noise=0.035, blur=0.6, gain=0.97, gamma=1.1, bias_field=0.1),
    }
)
"""Named presets; the last is meant to be kept out of training."""


def site_shifts(count: int) -> dict[str, SiteShift]:
    """The first `count` presets; beyond the presets they repeat under numbered names ("A-sharp-2")."""
    names = list(SITE_SHIFTS)
    rounds = ((index, *divmod(index, len(names))) for index in range(count))
    return {names[at] + (f"-{turn + 1}" if turn else ""): SITE_SHIFTS[names[at]] for _, turn, at in rounds}


@dataclass(frozen=True, slots=True)
class Phantom:
    """One synthetic patient before the scanner.

    clean: float32 [*space], 0..1 at the display window (CT beyond it is clipped). label: class number of the image
    (0 healthy, 1 lesion or pneumonia). boxes: [N, 2 * nd] int64, stop exclusive. types: [N] int64, 0 lung nodule,
    1 liver lesion. mask: uint8 [*space], 0 background, 1 lung, 2 liver, 3 lesion; empty for chest X-rays.
    liver: bool [*space], liver including its lesions.
    """

    clean: FloatArray
    label: int
    boxes: Array
    types: Array
    mask: Array
    liver: Array


class Generator(Protocol):
    """Draws phantoms of one kind of image."""

    def __call__(self, rng: np.random.Generator, size: tuple[int, ...], shift: SiteShift) -> Phantom: ...


class Canvas:
    """Coordinates of a phantom and the shapes drawn in them.

    axes: for each anatomical axis its coordinate -1..1 (times zoom) as an array that broadcasts to `shape`; which
    array axis an anatomical axis runs along, and in which direction, is the generator's choice.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], axes: tuple[FloatArray, ...], px: float):
        self.rng = rng
        self.shape = shape
        self.axes = axes
        self.px = px

    @property
    def dims(self) -> int:
        return len(self.shape)

    @cached_property
    def zeros(self) -> FloatArray:
        return np.zeros(self.shape, np.float32)

    def jitter(self, sigma: float) -> float:
        """A draw of N(0, sigma)."""
        return float(self.rng.normal(0.0, sigma))

    def ellipsoid(self, centre: tuple[float, ...], radii: tuple[float, ...]) -> FloatArray:
        """The implicit function sum_i ((g_i - c_i) / r_i)^2, float32 [*shape]: 1 on the surface."""
        result = self.zeros
        for axis, c, r in zip(self.axes, centre, radii, strict=True):
            result = result + ((axis - np.float32(c)) / np.float32(r)) ** 2
        return result

    def smooth(self, cells: float) -> FloatArray:
        """Normal noise on a lattice of about `cells` cells along the longest axis, up-sampled linearly."""
        longest = max(self.shape)
        lattice = tuple(min(n, max(2, round(cells * n / longest) + 1)) for n in self.shape)
        noise = self.rng.standard_normal(lattice, np.float32)
        return upsample(noise, self.shape)


def line(n: int, axis: int, dims: int, low: float, high: float) -> FloatArray:
    """`n` coordinates from low to high along array axis `axis` of `dims`."""
    shape = [1] * dims
    shape[axis] = n
    return np.linspace(low, high, n, dtype=np.float32).reshape(shape)


def upsample(lattice: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Multilinear interpolation of a lattice to `shape`, corners on corners: one small matrix product an axis."""
    result = lattice
    for axis, n in enumerate(shape):
        result = np.moveaxis(np.tensordot(_interpolation(lattice.shape[axis], n), result, (1, axis)), 0, axis)
    return np.ascontiguousarray(result)


@lru_cache(maxsize=256)
def _interpolation(m: int, n: int) -> FloatArray:
    """The [n, m] matrix that interpolates m values linearly at n places."""
    return ndimage.zoom(np.eye(m, dtype=np.float32), (n / m, 1), order=1)  # type: ignore[no-any-return]


def soft(d: FloatArray, width: float) -> FloatArray:
    """A soft edge: 1 where the implicit function d is below 1, 0 above, over about `width`."""
    return expit(np.clip((1.0 - d) / np.float32(width), -40, 40))  # type: ignore[no-any-return]


def blend(image: FloatArray, mask: FloatArray, value: FloatArray | float) -> FloatArray:
    """`value` where the mask is 1, the image where it is 0."""
    return image + mask * (value - image)


def scan(clean: FloatArray, shift: SiteShift, rng: np.random.Generator) -> FloatArray:
    """What the site's scanner makes of a phantom: blur, response, shading, correlated noise; 0..1.5."""
    x: FloatArray = ndimage.gaussian_filter(clean, shift.blur)
    x = np.clip(shift.gain * x + shift.offset, 0, INTENSITY_MAX) ** np.float32(shift.gamma)
    if shift.bias_field:
        field = Canvas(rng, clean.shape, (), 0.0).smooth(2)
        x = x * (1 + np.float32(shift.bias_field) * field / np.abs(field).max())
    noise: FloatArray = ndimage.gaussian_filter(rng.standard_normal(clean.shape, np.float32), shift.noise_correlation)
    x = x + np.float32(shift.noise) * noise / max(float(noise.std()), 1e-12)
    result: FloatArray = np.clip(x, 0, INTENSITY_MAX).astype(np.float32)
    return result


def phantoms(
    generator: Generator, shift: SiteShift, count: int, size: tuple[int, ...], rng: np.random.Generator
) -> Iterator[tuple[Phantom, FloatArray]]:
    """`count` phantoms with their scanned image float32 [1, *size], drawn from `rng` in sequence."""
    for _ in range(count):
        phantom = generator(rng, size, shift)
        yield phantom, scan(phantom.clean, shift, rng)[None]
