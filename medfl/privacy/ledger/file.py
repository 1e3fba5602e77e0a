"""A ledger in a file: append-only, durable before anything is released, one writer at a time.

    <path>                    the chain, one record a line, readable by its owner only
    <path>.units/salt         the secret salt of the keys' hashes; never leaves the site
    <path>.units/<id>.keys    the salted hashes of a data set's units

How a record becomes durable, and who may write when: `medfl.audit.file`.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medfl.audit.file import ChainFile, Clock, place, require_private, utc_now
from medfl.errors import InputError, RunError
from medfl.privacy.ledger.chain import LEDGER, Record
from medfl.privacy.ledger.chained import Ceiling, ChainedLedger
from medfl.privacy.ledger.units import SALT_BYTES, Keys, commitment, name_of

_RESTORE = LEDGER.restore


class FileLedger(ChainedLedger):
    """Open with `open` or, to look only, with `read`. Several processes may use one file, each with its own object."""

    def __init__(self, path: Path, ceiling: Ceiling | None, clock: Clock, read_only: bool) -> None:
        super().__init__(str(path), ceiling)
        self.path = path
        self._read_only = read_only
        self._chain = ChainFile(path, LEDGER, lambda record: self._book.add(record, str(path)), clock, read_only)

    @classmethod
    def open(cls, path: Path, owner: str, ceiling: Ceiling | None = None, clock: Clock = utc_now) -> "FileLedger":
        """The owner's ledger; a new one when there is none. The whole chain is verified.

        ceiling: what the owner allows in all, by unit. A last line whose writing was cut off is removed, and a record
        says so. RunError names each line that was changed, lost or put in another order, and whatever is missing.
        """
        ledger = cls(path, ceiling, clock, read_only=False)
        if not path.exists():
            ledger._create(owner)
        require_private(path, ledger._folder, ledger._folder / "salt")
        with ledger._turn():
            ledger._salt()
        if ledger.owner != owner:
            raise RunError.at(path, f"is the ledger of {ledger.owner}, not of {owner}", "give each party its own file")
        return ledger

    @classmethod
    def read(cls, path: Path) -> "FileLedger":
        """The ledger as it is now, verified, to look at: nothing is written, created or repaired."""
        if not path.is_file():
            raise InputError.at(path, "is not a file", "give the file of a ledger")
        ledger = cls(path, None, utc_now, read_only=True)
        with ledger._turn():
            return ledger

    @property
    def _folder(self) -> Path:
        return self.path.with_name(self.path.name + ".units")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._read_only and self._book.last:
            yield
            return
        with self._chain.turn():
            self._read_units()
            yield

    def _append(self, kind: str, body: Mapping[str, Any]) -> Record:
        return self._chain.append(kind, body)

    def _create(self, owner: str) -> None:
        """A file with its first record appears whole or not at all, and once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if any(self._folder.glob("*.keys")):
            raise RunError.at(self.path, f"is missing, though {self._folder} belongs to it", _RESTORE)
        salt = self._folder / "salt"
        if not salt.exists():
            place(salt, secrets.token_bytes(SALT_BYTES))
        self._chain.create(self._opening(owner, salt.read_bytes()))

    def _salt(self) -> bytes:
        path = self._folder / "salt"
        salt = path.read_bytes() if path.is_file() else b""
        if commitment(salt) != self._book.commitment:
            what = "is not the salt of this ledger: patients who were charged would look like new ones"
            raise RunError.at(path, what if salt else "is missing", "restore it from the same copy as the ledger")
        return salt

    def _keep(self, dataset: str, keys: Keys) -> None:
        if self._read_only:
            raise RunError.at(self.path, "was opened to look only", "open it as its owner")
        place(self._folder / f"{dataset}.keys", "".join(f"{key}\n" for key in sorted(keys)).encode())

    def _read_units(self) -> None:
        for path in self._folder.glob("*.keys"):
            if path.stem in self._units.known:
                continue
            keys = frozenset(path.read_text(encoding="ascii", errors="replace").split())
            if name_of(keys) != path.stem:
                raise RunError.at(path, "was changed or damaged: it does not match its name", _RESTORE)
            self._units.known[path.stem] = keys
