"""The Partition contract: which hospital a patient belongs to, for experiments on one pool of images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medfl.data.base import Case
from medfl.data.split import by_patient, patient_of, stratum
from medfl.errors import DataError
from medfl.plugins import C, Plugin, PluginPoint

COMMON = "common"
"""Cases of this site belong to nobody (a shared test set); partitions leave them alone."""

Shares = npt.NDArray[np.float64]


class Partition(Plugin[C], ABC):
    """Gives every case a site; a patient is never at two sites."""

    @abstractmethod
    def assign(self, cases: Sequence[Case], sites: Sequence[str], seed: int) -> tuple[Case, ...]:
        """The cases with `site` set to one of `sites`, in the given order; cases of site "common" stay.

        Raises DataError when the cases cannot be given to these sites.
        """


class SharePartition(Partition[C], ABC):
    """A partition that says only which share of each class a site gets.

    Patients are dealt class by class in the shares that the plug-in draws once, for
    each split separately, so that a site's val and test cases have the label mix of its train cases. The result
    depends on the set of cases and the seed, not on their order.
    """

    def assign(self, cases: Sequence[Case], sites: Sequence[str], seed: int) -> tuple[Case, ...]:
        if not sites or len(set(sites)) != len(sites):
            raise DataError.at("sites", f"{list(sites)} are not distinct names", "name every site once")
        groups = by_patient(case for case in cases if case.site != COMMON)
        shared = sorted({patient_of(case) for case in cases if case.site == COMMON} & groups.keys())
        if shared:
            raise DataError.at(
                COMMON, f"patients are also elsewhere: {', '.join(shared[:5])}", "put each patient in one place"
            )
        rng = np.random.default_rng(seed)
        patients = sorted(groups)
        label = {patient: max(stratum(case) for case in groups[patient]) for patient in patients}
        split = {patient: max(case.split for case in groups[patient]) for patient in patients}
        classes = sorted(set(label.values()))
        counts = np.array([sum(label[p] == c and split[p] in ("train", "") for p in patients) for c in classes])
        shares = self.shares(counts, len(sites), rng)
        site: dict[str, str] = {}
        for name in sorted(set(split.values())):
            for row, value in enumerate(classes):
                members = [p for p in patients if split[p] == name and label[p] == value]
                rng.shuffle(members)
                homes = np.repeat(np.arange(len(sites)), quota(shares[row], len(members), row)).tolist()
                site.update({p: sites[home] for p, home in zip(members, homes, strict=True)})
        return tuple(case if case.site == COMMON else replace(case, site=site[patient_of(case)]) for case in cases)

    @abstractmethod
    def shares(self, counts: npt.NDArray[np.int64], sites: int, rng: np.random.Generator) -> Shares:
        """What share of each class each site gets: [classes, sites], rows sum to 1.

        counts: training patients of each class (patients without a split count as training patients).
        """


def quota(shares: npt.NDArray[np.float64], n: int, turn: int = 0) -> npt.NDArray[np.int64]:
    """`n` patients in whole numbers by largest remainder; `turn` rotates who wins a tie."""
    exact = shares * n
    result = np.floor(exact + 1e-9).astype(np.int64)
    order = np.roll(np.arange(len(shares)), -turn)
    order = order[np.argsort(-(exact - result)[order], kind="stable")]
    result[order[: n - result.sum()]] += 1
    return result


PARTITIONS = PluginPoint(
    "partition",
    "medfl.partitions",
    {
        "iid": "medfl.data.partition.iid:Iid",
        "dirichlet": "medfl.data.partition.dirichlet:Dirichlet",
        "classes": "medfl.data.partition.classes:Classes",
        "column": "medfl.data.partition.column:Column",
    },
)
