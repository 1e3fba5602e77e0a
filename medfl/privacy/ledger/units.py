"""Data sets as sets of salted hashes of their units' keys: whether two overlap, without the keys. Pure.

Budgets of disjoint data sets do not add up (parallel composition); those of overlapping ones sum as if they were equal.
A data set that was never registered counts as overlapping with every other one.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from medfl.errors import InputError

SALT_BYTES = 32

Keys = frozenset[str]


def hashed(keys: Iterable[str], salt: bytes) -> Keys:
    """HMAC-SHA-256 of each key under the ledger's salt; InputError when there is none, or an empty one."""
    found = set(keys)
    if not found or "" in found:
        what = "has no units" if not found else "has a unit without a key"
        raise InputError.at("data set", what, "give the key of every patient (or site) that it is about")
    return frozenset(hmac.new(salt, key.encode(), hashlib.sha256).hexdigest() for key in found)


def name_of(keys: Keys) -> str:
    """The data set's id: SHA-256 of its sorted salted hashes, so that the same units give the same id."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def commitment(salt: bytes) -> str:
    """What a ledger says about its salt without giving it away: another salt would make known data sets look new."""
    return hashlib.sha256(b"medfl ledger salt" + salt).hexdigest()


class Units:
    """The registered data sets."""

    def __init__(self) -> None:
        self.known: dict[str, Keys] = {}
        self._found: dict[tuple[str, str], bool] = {}

    def overlap(self, one: str, other: str) -> bool:
        """Whether the two share a unit, as far as is known."""
        if one == other or one not in self.known or other not in self.known:
            return True
        if (one, other) not in self._found:
            self._found[one, other] = not self.known[one].isdisjoint(self.known[other])
        return self._found[one, other]

    def overlapping(self, dataset: str, among: Iterable[str]) -> list[str]:
        """Those of `among` that share a unit with the data set, itself included."""
        return [other for other in among if self.overlap(dataset, other)]

    def together(self, datasets: Sequence[str]) -> set[frozenset[str]]:
        """For each unit the data sets that it is in, once for all units in the same ones. Data sets that were never
        registered are taken to hold every unit."""
        unknown = [dataset for dataset in datasets if dataset not in self.known]
        found: dict[str, list[str]] = {}
        for dataset in datasets:
            for key in self.known.get(dataset, ()):
                found.setdefault(key, []).append(dataset)
        return {frozenset((*names, *unknown)) for names in found.values()} or {frozenset(unknown)}

    def groups(self, datasets: Sequence[str]) -> list[list[str]]:
        """Data sets that are linked by overlaps, directly or through others."""
        groups: list[list[str]] = []
        for dataset in datasets:
            linked = [group for group in groups if self.overlapping(dataset, group)]
            merged = [*(name for group in linked for name in group), dataset]
            groups = [*(group for group in groups if group not in linked), merged]
        return groups
