"""A ledger that ends with its process: for tests, and for what needs none that outlives it."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from medfl.privacy.ledger.chain import Record, make
from medfl.privacy.ledger.chained import Ceiling, ChainedLedger
from medfl.privacy.ledger.units import SALT_BYTES, Keys

_EPOCH = "1970-01-01T00:00:00.000000Z"


class MemoryLedger(ChainedLedger):
    """clock: gives the time of a record; without one all records have the same."""

    def __init__(self, owner: str, ceiling: Ceiling | None = None, clock: Callable[[], str] = lambda: _EPOCH) -> None:
        super().__init__(f"ledger of {owner}", ceiling)
        self._clock = clock
        self._lock = Lock()
        self._secret = secrets.token_bytes(SALT_BYTES)
        self._records: list[Record] = []
        self._append("open", self._opening(owner, self._secret))

    @property
    def lines(self) -> bytes:
        """What a file would hold."""
        with self._lock:
            return b"".join(record.line() for record in self._records)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            yield

    def _append(self, kind: str, body: Mapping[str, Any]) -> Record:
        record = make(self._book.last, self._clock(), kind, body)
        self._book.add(record, self._where)
        self._records.append(record)
        return record

    def _salt(self) -> bytes:
        return self._secret

    def _keep(self, dataset: str, keys: Keys) -> None:
        """Held in memory with the rest."""
