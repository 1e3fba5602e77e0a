"""Additive encryption without rounds: Y. Aono et al., "Privacy-Preserving Deep Learning via Additively Homomorphic
Encryption", IEEE TIFS 2018 (arXiv 1706.00394).

The coordinator keeps the encrypted sum of all updates. A site's update is added whenever it arrives; sites, which share
the secret key, fetch the sum and decrypt it. Against the paper, in which a site that fetches before and after another's
upload sees that update, the coordinator gives a sum away only when `minimum` sites have added to it since the last one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import MedflError, RunError
from medfl.privacy.channels.base import MINIMUM_SITES, Identity, IntVector, Roster
from medfl.privacy.channels.he import blobs
from medfl.privacy.channels.he.chunks import SLOTS, chunks_of, count
from medfl.privacy.channels.he.keys import fresh_id
from medfl.privacy.channels.he.scheme import SchemeName, dump, scheme_of
from medfl.privacy.channels.he.statements import digest, signed_text, unhex
from medfl.privacy.channels.he.sums import RunningSum, decrypted
from medfl.privacy.identity import verify
from medfl.update.base import Payload
from medfl.update.wire import Buffer

MOST_ADDITIONS = 1 << 16
"""Updates whose encryption errors leave both schemes exact."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The life of one key. bound: largest absolute value of one update; additions: updates for which it has room.

    When they are used up, a new epoch with a new key starts from the decrypted model.
    """

    run: str
    size: int
    bound: int
    scheme: SchemeName = "bfv"
    minimum: int = MINIMUM_SITES
    key: str = field(default_factory=fresh_id)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def error(self, party: str, what: str, remedy: str = "") -> MedflError:
        return RunError.at(f"{party}, run {self.run!r} (key {self.key[:8]})", what, remedy)

    def text(self, facts: Mapping[str, Any]) -> bytes:
        return signed_text("asynchronous update", self.to_json(), facts)

    def check(self, roster: Roster, site: str, signature: Any, facts: Mapping[str, Any]) -> None:
        """RunError unless `site` signed these facts of an update."""
        try:
            verify(roster, site, unhex(signature), self.text({"site": site, **facts}))
        except (RunError, ValueError) as error:
            raise self.error(site, f"did not sign this update: {error}", "nothing of it was used") from error


def new_key(scheme: SchemeName) -> bytes:
    """A fresh secret key for the sites; never for the coordinator."""
    made = scheme_of(scheme)
    return dump(made.secret_key())


class EncryptedModel:
    """The coordinator's side of one epoch."""

    def __init__(self, epoch: Epoch, roster: Roster) -> None:
        self._epoch, self._roster = epoch, roster
        scheme = scheme_of(epoch.scheme)
        if epoch.minimum < MINIMUM_SITES:
            raise epoch.error("coordinator", f"needs {MINIMUM_SITES} sites in a sum, not {epoch.minimum}")
        self.room = min(scheme.capacity // epoch.bound, MOST_ADDITIONS)
        """Updates for which there is room."""
        self.additions = 0
        self._sum = RunningSum(scheme, epoch.size, seeded=True)
        self._last: dict[str, dict[str, Any]] = {}
        self._since: set[str] = set()
        self._given: Payload | None = None

    def add(self, site: str, payload: Payload) -> None:
        """Add a site's update; RunError, with the sum as before, when it is not whole, not the site's next, or when the
        next sum could wrap."""
        epoch = self._epoch
        if self.additions == self.room:
            raise epoch.error(
                site, f"came when {self.room} updates of up to {epoch.bound} had filled the sum", "start a new epoch"
            )
        if payload.codec != "he" or payload.size != epoch.size or payload.meta.get("key") != epoch.key:
            raise epoch.error(site, "sealed another shape, or with another key", "nothing of it was used")
        sequence = payload.meta.get("sequence")
        expected = self._last.get(site, {}).get("sequence", 0) + 1
        if sequence != expected:
            raise epoch.error(site, f"sent update {sequence!r}, {expected} is the next", "nothing was added twice")
        facts = {"sequence": sequence, "digest": digest(payload.buffers)}
        epoch.check(self._roster, site, payload.meta.get("signature"), facts)
        try:
            self._sum.add(payload.buffers)
        except blobs.BadBlobError as error:
            raise epoch.error(site, f"sealed an update that {error}", "nothing of it was used") from error
        self.additions += 1
        self._since.add(site)
        self._last[site] = {**facts, "signature": payload.meta["signature"]}

    def fetch(self) -> Payload:
        """The encrypted sum for the sites: a new one if enough sites have added to it since the last, else the last;
        RunError when there is none yet."""
        if len(self._since) >= self._epoch.minimum:
            self._since = set()
            meta = {"key": self._epoch.key, "last": dict(self._last)}
            self._given = Payload("he", self._epoch.size, self._sum.save(), meta)
        if self._given is None:
            raise self._epoch.error(
                "coordinator", f"{len(self._since)} sites are in the sum, {self._epoch.minimum} are needed", "wait"
            )
        return self._given


class AsynchronousSite:
    """A site's side of one epoch. secret: the bytes of the shared key (`new_key`), which sites gave each other."""

    def __init__(self, identity: Identity, roster: Roster, epoch: Epoch, secret: Buffer) -> None:
        self._identity, self._roster, self._epoch = identity, roster, epoch
        self._scheme = scheme_of(epoch.scheme)
        try:
            self._secret = self._scheme.load_key("symmetric", secret)
        except blobs.BadBlobError as error:
            raise epoch.error(identity.name, f"has a key that {error}") from error
        self._sequence = 0

    def seal(self, values: npt.NDArray[np.int32]) -> Payload:
        """The update [size] as it may leave."""
        epoch = self._epoch
        if values.shape != (epoch.size,) or max(int(values.max()), -int(values.min())) > epoch.bound:
            raise epoch.error(
                self._identity.name, f"has an update that is not {epoch.size} values of at most {epoch.bound}"
            )
        self._sequence += 1
        buffers = blobs.join(self._scheme.encrypted("symmetric", self._secret, chunks_of(values)))
        facts = {"site": self._identity.name, "sequence": self._sequence, "digest": digest(buffers)}
        signature = self._identity.sign(epoch.text(facts)).hex()
        meta = {"key": epoch.key, "sequence": self._sequence, "signature": signature}
        return Payload("he", epoch.size, buffers, meta)

    def open(self, payload: Payload) -> IntVector:
        """The sum [size] of all updates; RunError when it is not one of enough sites, or cannot be what it says."""
        epoch, last = self._epoch, payload.meta.get("last")
        last = last if isinstance(last, Mapping) else {}
        if payload.codec != "he" or payload.size != epoch.size or payload.meta.get("key") != epoch.key:
            raise epoch.error("coordinator", "sent another shape, or a sum under another key")
        for site, entry in last.items():
            if not isinstance(entry, Mapping):
                raise epoch.error(str(site), "is in the sum without having signed for it")
            facts = {name: entry.get(name) for name in ("sequence", "digest")}
            epoch.check(self._roster, site, entry.get("signature"), facts)
        if len(last) < epoch.minimum:
            raise epoch.error("coordinator", f"sent a sum of {len(last)} sites, {epoch.minimum} are needed")
        try:
            chunks = list(decrypted(self._scheme, self._secret, payload.buffers, count(epoch.size)))
        except blobs.BadBlobError as error:
            raise epoch.error("coordinator", f"sent a sum that {error}") from error
        total = np.concatenate([chunk[:SLOTS] for chunk in chunks])[: epoch.size]
        most = epoch.bound * sum(entry["sequence"] for entry in last.values())
        if int(np.abs(total).max()) > most:
            raise epoch.error("coordinator", f"sent a sum beyond {most}, which these updates cannot reach")
        return total
