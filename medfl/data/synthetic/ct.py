"""CT-like body phantoms, 2D slices or 3D volumes, with lung nodules and liver lesions.

Arrays follow the conventions of `medfl.data.base`: a 2D slice is displayed as a radiologist sees it (rows front to
back, the patient's right on the image's left); a volume runs to the patient's right, to anterior, to superior.
"""

import numpy as np

from medfl.data.base import Array, FloatArray
from medfl.data.synthetic.base import Canvas, Phantom, blend, line, soft
from medfl.data.synthetic.config import SiteShift

WINDOW = (-1000.0, 500.0)
"""Hounsfield units that become 0 and 1."""
LUNG, LIVER, LESION = 1, 2, 3

Ellipsoid = tuple[tuple[float, ...], tuple[float, ...]]


def ct(rng: np.random.Generator, size: tuple[int, ...], shift: SiteShift) -> Phantom:
    """One body section or volume of `size` (2 or 3 numbers)."""
    canvas = _canvas(rng, size, shift.zoom)
    hu, mask, organs = _body(canvas, shift)
    boxes, types, liver = _lesions(canvas, shift, hu, mask, organs)
    clean = np.clip((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1).astype(np.float32)
    box_array = np.array(boxes, np.int64).reshape(-1, 2 * len(size))
    return Phantom(clean, int(bool(boxes)), box_array, np.array(types, np.int64), mask, liver)


def _canvas(rng: np.random.Generator, size: tuple[int, ...], zoom: float) -> Canvas:
    """Anatomical axes: 0 from the patient's left to right, 1 from front to back, 2 from foot to head."""
    axes: tuple[FloatArray, ...]
    if len(size) == 2:
        axes = (line(size[1], 1, 2, zoom, -zoom), line(size[0], 0, 2, -zoom, zoom))
    else:
        axes = (
            line(size[0], 0, 3, -zoom, zoom),
            line(size[1], 1, 3, zoom, -zoom),
            line(size[2], 2, 3, -zoom, zoom),
        )
    return Canvas(rng, size, axes, 2 * zoom / max(size))


def _body(canvas: Canvas, shift: SiteShift) -> tuple[FloatArray, Array, dict[int, list[Ellipsoid]]]:
    """The healthy anatomy in HU, its mask, and where the organs lie."""
    j, deep = canvas.jitter, canvas.dims == 3

    def at(*values: float, z: float = 0.0) -> tuple[float, ...]:
        return (*values, z) if deep else values

    body = canvas.ellipsoid(at(j(0.03), j(0.03)), at(0.86 + j(0.03), 0.72 + j(0.03), z=3.0))
    hu = -1000 + 900 * soft(body, 0.03) + 145 * soft(1.18 * body, 0.03)
    texture = 12 * canvas.smooth(10) + 8 * canvas.smooth(24)
    mask = np.zeros(canvas.shape, np.uint8)
    lungs = [
        (
            at(side * (0.40 + j(0.02)), -0.12 + j(0.04), z=0.25 + j(0.05)),
            at(0.28 + j(0.02), 0.38 + j(0.03), z=0.62),
        )
        for side in (-1, 1)
    ]
    for lung in lungs:
        d = canvas.ellipsoid(*lung) + 0.06 * canvas.smooth(5)
        hu = blend(hu, soft(d, 0.05), -830 + 25 * canvas.smooth(14))
        mask[d < 1] = LUNG
    liver = (
        at(0.40 + j(0.03), 0.34 + j(0.03), z=-0.35 + j(0.05)),
        at(0.34 + j(0.03), 0.24 + j(0.02), z=0.5),
    )
    d = canvas.ellipsoid(*liver) + 0.10 * canvas.smooth(4)
    hu = blend(hu, soft(d, 0.06), 115 + texture)
    mask[d < 1] = LIVER
    hu = hu + 450 * soft(canvas.ellipsoid(at(0.0, 0.52), at(0.12, 0.12, z=3.0)), 0.08)
    hu = hu + 120 * soft(canvas.ellipsoid(at(-0.08 + j(0.02), 0.30), at(0.06, 0.06, z=3.0)), 0.10)
    hu = hu + _ribs(canvas, body)
    return _vessels(canvas, shift, hu, lungs) + 0.3 * texture, mask, {LUNG: lungs, LIVER: [liver]}


def _ribs(canvas: Canvas, body: FloatArray) -> FloatArray:
    angle = 9 * np.arctan2(canvas.axes[1], canvas.axes[0]) + canvas.jitter(1)
    if canvas.dims == 3:
        angle = angle + 6 * canvas.axes[2]
    ribs: FloatArray = ((np.abs(body - 0.80) < 0.03) & (np.sin(angle) > 0.45)).astype(np.float32)
    return 350 * ribs


def _vessels(canvas: Canvas, shift: SiteShift, hu: FloatArray, lungs: list[Ellipsoid]) -> FloatArray:
    """Distractors: what looks like a nodule and is none."""
    rng = canvas.rng
    for _ in range(rng.poisson(shift.vessels)):
        centre, extent = lungs[rng.integers(len(lungs))]
        where = tuple(c + r * rng.uniform(-0.7, 0.7) for c, r in zip(centre, extent, strict=True))
        radii = canvas.px * rng.uniform(0.7, 1.6, canvas.dims)
        if rng.random() < 0.6:
            radii[rng.integers(canvas.dims)] *= rng.uniform(3, 8)
        hu = blend(hu, soft(canvas.ellipsoid(where, tuple(radii)), 0.3), 40.0)
    return hu


def _lesions(
    canvas: Canvas, shift: SiteShift, hu: FloatArray, mask: Array, organs: dict[int, list[Ellipsoid]]
) -> tuple[list[list[int]], list[int], Array]:
    """Draw the lesions into `hu` and `mask`; their boxes, their types, and the liver with its lesions."""
    rng = canvas.rng
    boxes: list[list[int]] = []
    types: list[int] = []
    liver = mask == LIVER
    count = 1 + min(3, rng.poisson(0.7)) if rng.random() < shift.prevalence else 0
    for _ in range(count):
        kind = int(rng.random() >= shift.type_mix[0] / sum(shift.type_mix))
        places = organs[LIVER if kind else LUNG]
        centre, extent = places[rng.integers(len(places))]
        radii = rng.uniform(*shift.radius) * canvas.px * rng.uniform(0.75, 1.3, canvas.dims)
        where = tuple(
            c + max(0.0, r - own) * rng.uniform(-0.65, 0.65) for c, r, own in zip(centre, extent, radii, strict=True)
        )
        core = canvas.ellipsoid(where, tuple(radii))
        ragged = core + 0.25 * canvas.smooth(12)
        value = 115 - 170 * shift.contrast * rng.uniform(0.8, 1.2) if kind else 30 + 40 * rng.uniform()
        hu[...] = blend(hu, soft(ragged, 0.15), value)
        inside = core < 1.15
        if np.count_nonzero(inside) < 2**canvas.dims:
            continue
        boxes.append(_bounding_box(inside))
        types.append(kind)
        lesion = inside & (ragged < 1)
        mask[lesion] = LESION
        liver = liver | lesion if kind else liver & ~lesion
    return boxes, types, liver


def _bounding_box(inside: Array) -> list[int]:
    spans = [
        np.flatnonzero(inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis)))
        for axis in range(inside.ndim)
    ]
    return [int(span[0]) for span in spans] + [int(span[-1]) + 1 for span in spans]
