"""A site's memory of its runs, on disk: what a killed process had answered is answered again.

    <folder>/<run>/round-<number>     order key, reply, private arrays and their SHA-256, in the format of the wire
    <folder>/<run>/opened.json        {round: survivors} of the sums that the site helped to open
    <folder>/<run>/handed-over.json   {order: [round, what its sites were told]} of the updates that were summed later
    <folder>/<run>/lasting            private arrays that no round takes back, such as which images it showed; SHA-256
    <folder>/<run>/training           the last whole local epoch of a training that runs
    <folder>/<run>/ended              there when the coordinator said that the run is over
    <folder>/<run>/pruned.json        there when the rest made way for other runs: `medfl.site.storage`

The answers of the two last rounds are kept: an older one is never asked for again.
"""

import json
import logging
import os
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from medfl.errors import RunError
from medfl.learning.checkpoint import EpochStore, FileEpochStore
from medfl.learning.messages import TrainReply
from medfl.site.storage import ENDED, PRUNED
from medfl.transport.base import Arrays
from medfl.transport.memory import SiteMemory, require_one_sum
from medfl.transport.messages import decode_reply, encode_reply
from medfl.update.memories.base import LASTING
from medfl.update.wire import Buffer, pack_arrays, parts, size, unpack, unpack_arrays

log = logging.getLogger(__name__)

_KEPT = 2
_MOST = 1000
_RUN = re.compile(r"[A-Za-z0-9]{1,64}")
_ROUND = re.compile(r"round-(?P<number>[0-9]{6,})")
_DIGEST = 32
_LASTING = "lasting"


class DiskMemory(SiteMemory):
    """Call `begin` first. One process at a time."""

    def __init__(self, folder: Path, epoch_seconds: float = 5.0) -> None:
        self._root = folder
        self._epoch_seconds = epoch_seconds
        self._folder = folder
        self._checkpoints: FileEpochStore | None = None
        self.order = ""
        """Key of the order that was answered last."""

    def begin(self, run: str) -> None:
        if not _RUN.fullmatch(run):
            raise RunError.at("run", f"{run[:40]!r} cannot be the name of a folder", "ask the study lead")
        folder = self._root / run
        if (folder / PRUNED).exists():
            what = "was pruned: what this site kept of it is gone"
            raise RunError.at(f"run {run}", what, "start another run; storage.keep_days of the site's file says when")
        if not folder.exists() and self._root.is_dir() and sum(1 for _ in self._root.iterdir()) >= _MOST:
            what = f"holds {_MOST} runs already, and a coordinator begins one more"
            raise RunError.at(self._root, what, "its steward removes the folders that hold pruned.json")
        self._folder = folder
        (folder / ENDED).unlink(missing_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._checkpoints = FileEpochStore(self._folder / "training", run, self._epoch_seconds)

    def ended(self) -> None:
        """The coordinator said that the run is over; it may go on all the same."""
        if self._folder != self._root:
            (self._folder / ENDED).touch(mode=0o600)

    @property
    def checkpoints(self) -> EpochStore | None:
        return self._checkpoints

    def rounds(self) -> list[int]:
        """The rounds whose answers are kept."""
        found = (_ROUND.fullmatch(path.name) for path in self._folder.glob("round-*"))
        return sorted(int(name["number"]) for name in found if name)

    def reply(self, key: str) -> TrainReply | None:
        for round_ in reversed(self.rounds()):
            found = self._read(round_)
            if found is not None and found[0] == key:
                self.order = key
                return found[1]
        return None

    def state(self, round_: int) -> Arrays:
        """RunError when a file that should hold them is damaged: to go on without them would be silent loss."""
        lasting = self._lasting()
        earlier = [number for number in self.rounds() if number < round_]
        if not earlier:
            return lasting
        found = self._read(earlier[-1])
        if found is None:
            raise RunError.at(
                self._folder / _name(earlier[-1]), "is damaged", "restore it, or remove it to start with fresh arrays"
            )
        return {**found[2], **lasting}

    def keep(self, key: str, reply: TrainReply, state: Arrays) -> None:
        reply_pieces, state_pieces = encode_reply(reply), pack_arrays({}, state)
        header = {"key": key, "reply": size(reply_pieces)}
        pieces = [*parts(header), *reply_pieces, *state_pieces]
        self._keep_lasting(state)
        # a round that is trained again follows a state before it: nothing newer counts, also when this is killed here
        self._remove(number for number in self.rounds() if number > reply.round)
        _write(self._folder / _name(reply.round), pieces)
        # not by their distance: between two rounds that the site was asked for there may be many
        self._remove(self.rounds()[:-_KEPT])
        self.order = key
        if self._checkpoints is not None:
            self._checkpoints.clear()

    def _lasting(self) -> dict[str, Any]:
        path = self._folder / _LASTING
        try:
            content = memoryview(path.read_bytes())
            body, digest = content[:-_DIGEST], content[-_DIGEST:]
            if sha256(body).digest() != digest:
                raise RunError.at(path, "does not fit its SHA-256")
            return unpack_arrays(body)[1]
        except FileNotFoundError:
            return {}
        except (OSError, RunError) as error:
            what = f"is damaged: which images this site showed cannot be told ({error})"
            raise RunError.at(path, what, "restore it from the backup, or start another run") from error

    def _keep_lasting(self, state: Arrays) -> None:
        """Before the answer that follows from them is kept, or sent. RunError when one is another than before."""
        before = self._lasting()
        found = {name: array for name, array in state.items() if name.startswith(LASTING)}
        changed = [name for name in before.keys() & found.keys() if not np.array_equal(before[name], found[name])]
        if changed:
            what = f"{', '.join(sorted(changed))} would change, which stays as it is for the whole run"
            raise RunError.at(f"run {self._folder.name}", what, "nothing was sent; go on with the next round")
        if found.keys() - before.keys():
            _write(self._folder / _LASTING, pack_arrays({}, {**before, **found}))

    def _remove(self, rounds: Iterable[int]) -> None:
        for number in rounds:
            (self._folder / _name(number)).unlink(missing_ok=True)

    def _read(self, round_: int) -> tuple[str, TrainReply, Arrays] | None:
        path = self._folder / _name(round_)
        try:
            content = memoryview(path.read_bytes())
            body, digest = content[:-_DIGEST], content[-_DIGEST:]
            if sha256(body).digest() != digest:
                raise RunError.at(path, "is damaged: its SHA-256 does not fit")
            start = 8 + int.from_bytes(body[4:8], "little")
            header, _ = unpack(body[:start])
            end = start + int(header["reply"])
            _, arrays = unpack_arrays(body[end:])
            return str(header["key"]), decode_reply(body[start:end]), arrays
        except (OSError, RunError, KeyError, ValueError) as error:
            log.warning("%s is not used: %s", path, error)
            return None

    def answered(self, order: int) -> TrainReply | None:
        found = self._read(order) if order in self.rounds() else None
        return None if found is None else found[1]

    def handing_over(self, order: int, round_: int, told: str) -> None:
        path = self._folder / "handed-over.json"
        known = _told_of(path)
        require_one_sum(known, order, [round_, told])
        if str(order) not in known:
            _write(path, [json.dumps(known | {str(order): [round_, told]}).encode()], digest=False)

    def opening(self, round_: int, survivors: tuple[str, ...]) -> None:
        path = self._folder / "opened.json"
        known = _told_of(path)
        before = known.get(str(round_))
        if before is not None and set(before) != set(survivors):
            raise RunError.at(
                f"round {round_}",
                f"this site helped to open the sum of {', '.join(before)}, and does not open that of "
                f"{', '.join(survivors)}",
                "go on with the next round",
            )
        if before is None:
            known[str(round_)] = sorted(survivors)
            _write(path, [json.dumps(known).encode()], digest=False)


def _told_of(path: Path) -> dict[str, list[Any]]:
    """Which sums were opened, or what was sealed for which; RunError when that cannot be told, for then none may be."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        found = error
    if not isinstance(found, dict) or not all(isinstance(sites, list) for sites in found.values()):
        what = "is damaged: which sums this site took part in cannot be told"
        raise RunError.at(path, what, "restore it from the backup, or start another run")
    return found


def _name(round_: int) -> str:
    return f"round-{round_:06d}"


def _write(path: Path, pieces: Iterable[Buffer], digest: bool = True) -> None:
    """The whole file or none, and on the disk."""
    draft = path.with_name(f".{path.name}.draft")
    found: Any = sha256()
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
                found.update(piece)
            if digest:
                file.write(found.digest())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # of a full disk: what cannot be used must not take its room
        draft.unlink(missing_ok=True)
        raise
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
