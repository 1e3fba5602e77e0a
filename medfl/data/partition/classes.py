"""Pathological label skew: each site holds a fixed number of classes (McMahan et al., arXiv 1602.05629)."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medfl.data.partition.base import SharePartition, Shares
from medfl.errors import DataError
from medfl.plugins import PluginConfig


class ClassesConfig(PluginConfig):
    """classes_per_site: how many classes each site holds; a class is shared equally among its sites."""

    kind: Literal["classes"] = "classes"
    classes_per_site: int = Field(2, ge=1)


class Classes(SharePartition[ClassesConfig]):
    Config = ClassesConfig

    def shares(self, counts: npt.NDArray[np.int64], sites: int, rng: np.random.Generator) -> Shares:
        classes, each = len(counts), self.config.classes_per_site
        if not classes <= each * sites or each > classes:
            raise DataError.at(
                "partition classes",
                f"{sites} sites of {each} classes cannot hold {classes} classes",
                f"set classes_per_site between {-(-classes // sites)} and {classes}",
            )
        cycle = rng.permutation(classes)
        held = np.zeros((classes, sites))
        for site in range(sites):
            held[cycle[np.arange(site * each, (site + 1) * each) % classes], site] = 1
        shares: Shares = held / held.sum(axis=1, keepdims=True)
        return shares
