"""Chest-X-ray-like projections with focal or diffuse pneumonia.

A Beer-Lambert projection of a 3D chest (rows head to foot, columns from the patient's right to left as on a film,
depth front to back), so that ribs, heart and diaphragm overlap the lungs.
"""

import numpy as np

from medfl.data.base import FloatArray
from medfl.data.synthetic.base import Canvas, Phantom, line, soft
from medfl.data.synthetic.config import SiteShift

Lung = tuple[tuple[float, ...], tuple[float, ...]]


def chest(rng: np.random.Generator, size: tuple[int, ...], shift: SiteShift) -> Phantom:
    """One chest X-ray of `size` (rows, columns); label 1 is pneumonia."""
    zoom, depth = shift.zoom, 20 if max(size) >= 64 else 12
    shape = (*size, depth)
    axes = (line(size[0], 0, 3, -zoom, zoom), line(size[1], 1, 3, zoom, -zoom), line(depth, 2, 3, -zoom, zoom))
    canvas = Canvas(rng, shape, axes, 2 * zoom / max(size))
    mu, lung, places = _anatomy(canvas)
    label = int(rng.random() < shift.prevalence)
    if label:
        focal = rng.random() < shift.type_mix[0] / sum(shift.type_mix)
        added = _focal(canvas, lung, places) if focal else _diffuse(canvas, lung)
        mu = mu + shift.contrast * added
    vessels: FloatArray = np.abs(canvas.smooth(14))
    clean = _expose(mu + 0.05 * vessels * lung)
    if rng.random() < shift.flip_labels:
        label = 1 - label
    none = np.zeros((0, 4), np.int64)
    return Phantom(clean, label, none, none[:, 0], np.zeros(size, np.uint8), np.zeros(size, bool))


def _anatomy(canvas: Canvas) -> tuple[FloatArray, FloatArray, list[Lung]]:
    """Attenuation of the healthy chest, the lungs as a soft mask, and where they lie."""
    j, ellipsoid = canvas.jitter, canvas.ellipsoid
    body = ellipsoid((0, 0, 0), (1.4, 0.92 + j(0.03), 0.85))
    mu = 0.9 * soft(body, 0.05)
    lung: FloatArray = np.zeros(canvas.shape, np.float32)
    places: list[Lung] = []
    for side in (-1, 1):
        place = ((-0.05 + j(0.04), side * (0.42 + j(0.02)), 0.0), (0.66 + j(0.04), 0.30 + j(0.02), 0.6))
        lung = np.maximum(lung, soft(ellipsoid(*place) + 0.08 * canvas.smooth(4), 0.08))
        places.append(place)
    mu = mu * (1 - 0.82 * lung)
    heart = ellipsoid((0.2 + j(0.03), -0.12 + j(0.03), -0.1), (0.36 + j(0.03), 0.26 + j(0.03), 0.45))
    spine = ellipsoid((0, 0, 0.55), (2, 0.10, 0.18))
    diaphragm = ellipsoid((0.95 + j(0.05), 0, 0), (0.30, 1.2, 1.0))
    mu = mu + 0.55 * soft(heart, 0.1) + 0.8 * soft(spine, 0.1) + 0.5 * soft(diaphragm, 0.1)
    waves = np.sin(17 * (canvas.axes[0] + 0.35 * np.abs(canvas.axes[1]) ** 1.5) + j(1))
    ribs: FloatArray = ((waves > 0.55) & (np.abs(body - 0.82) < 0.08)).astype(np.float32)
    return mu + 0.30 * ribs, lung, places


def _focal(canvas: Canvas, lung: FloatArray, places: list[Lung]) -> FloatArray:
    rng = canvas.rng
    added: FloatArray = np.zeros(canvas.shape, np.float32)
    for _ in range(1 + rng.poisson(0.4)):
        centre, extent = places[rng.integers(len(places))]
        where = tuple(c + r * rng.uniform(-0.6, 0.6) for c, r in zip(centre, extent, strict=True))
        d = canvas.ellipsoid(where, (rng.uniform(0.14, 0.30), rng.uniform(0.14, 0.30), 0.45)) + 0.5 * canvas.smooth(7)
        added += 0.75 * soft(d, 0.25) * lung
    return added


def _diffuse(canvas: Canvas, lung: FloatArray) -> FloatArray:
    patches: FloatArray = np.maximum(canvas.smooth(9) + 0.7 * canvas.smooth(18), 0)
    return 0.42 * patches * lung * soft(canvas.ellipsoid((0.25, 0, 0), (0.75, 0.9, 0.9)), 0.3)


def _expose(mu: FloatArray) -> FloatArray:
    x = 1 - np.exp(-1.3 * mu.sum(axis=2) * 2 / mu.shape[2])
    low, high = np.quantile(x, (0.01, 0.995))
    result: FloatArray = np.clip((x - low) / (high - low), 0, 1.2).astype(np.float32)
    return result
