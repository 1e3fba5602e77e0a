"""The two families of problems that federated methods are compared on: least squares, and classes with Gaussian
noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SiteRows:
    features: Array
    targets: Array

    @property
    def hessian(self) -> Array:
        return self.features.T @ self.features / len(self.targets)

    @property
    def optimum(self) -> Array:
        return np.linalg.lstsq(self.features, self.targets, rcond=None)[0]


def least_squares(
    sites: int, size: int, rows: int, spread: float, noise: float = 0.1, condition: float = 1.0, seed: int = 0
) -> list[SiteRows]:
    """Sites whose optima lie `spread` around a common point, and whose columns are scaled up to `condition`."""
    rng = np.random.default_rng(seed)
    common, found = rng.normal(size=size), []
    for _ in range(sites):
        scale = (0.3 + 1.4 * rng.random(size)) * np.linspace(1, condition, size)
        features = rng.normal(size=(rows, size)) * scale
        optimum = common + spread * rng.normal(size=size)
        found.append(SiteRows(features, features @ optimum + noise * rng.normal(size=rows)))
    return found


def loss(sites: list[SiteRows], x: Array) -> float:
    """Mean over the sites of |A x - b|^2 / 2m."""
    return float(np.mean([((site.features @ x - site.targets) ** 2).mean() / 2 for site in sites]))


def optimum(sites: list[SiteRows]) -> Array:
    """The minimum of the sites' mean loss."""
    matrix = np.mean([site.hessian for site in sites], axis=0)
    vector = np.mean([site.features.T @ site.targets / len(site.targets) for site in sites], axis=0)
    return np.linalg.solve(matrix, vector)


def curvature(sites: list[SiteRows]) -> float:
    """The largest curvature of any site."""
    return max(float(np.linalg.eigvalsh(site.hessian)[-1]) for site in sites)


def gaussian_classes(rows: list[int], classes: int, size: int, spread: float, seed: int = 0) -> list[SiteRows]:
    """A site for each number of rows; site i sees mostly the classes around i."""
    rng = np.random.default_rng(seed)
    means = spread * rng.normal(size=(classes, size))
    found = []
    for number, count in enumerate(rows):
        shares = rng.dirichlet(np.full(classes, 0.5))
        labels = rng.choice(classes, count, p=shares)
        labels[: min(3, count)] = number % classes
        found.append(SiteRows(means[labels] + rng.normal(size=(count, size)), labels))
    return found
