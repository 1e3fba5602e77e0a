"""The sites that the datalist itself names."""

from collections.abc import Sequence
from typing import Literal

from medfl.data.base import Case
from medfl.data.partition.base import COMMON, Partition
from medfl.data.split import by_patient
from medfl.errors import DataError, Faults
from medfl.plugins import PluginConfig


class ColumnConfig(PluginConfig):
    """No settings."""

    kind: Literal["column"] = "column"


class Column(Partition[ColumnConfig]):
    """Keeps each case's site; DataError for cases of no or of an unknown site and for patients at two sites."""

    Config = ColumnConfig

    def assign(self, cases: Sequence[Case], sites: Sequence[str], seed: int) -> tuple[Case, ...]:
        faults, known = Faults(), {*sites, COMMON}
        for name in sorted({case.site for case in cases} - known):
            count = sum(case.site == name for case in cases)
            what = f"{count} cases are of site {name!r}" if name else f"{count} cases have no site"
            faults.add("partition column", what, f"use one of {', '.join(sorted(known))} or another partition")
        for patient, group in sorted(by_patient(cases).items()):
            if len({case.site for case in group}) > 1:
                faults.add(patient, "is at several sites", "give the patients of each site their own identifiers")
        faults.raise_if_any(DataError)
        return tuple(cases)
