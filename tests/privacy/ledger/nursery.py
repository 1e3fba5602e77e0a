"""A process that starts and outlives the processes which tests kill: `python nursery.py`, commands on stdin.

    <kind> <folder> <noise multiplier> <run> [<run>..]

starts one child a run; their ids are printed, "ready" once each has opened its ledger, and their exit codes when all
have ended.

Kinds: "right" keeps the ledger's order. Fakes: "early" draws and persists before it charges, "redraw" draws anew for a
charge that was made before a crash, "unlocked" takes no lock.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from medfl.audit import file
from medfl.privacy.accounting.base import Budget, GaussianEvent
from medfl.privacy.ledger.base import BudgetError, Charge, Permit
from medfl.privacy.ledger.file import FileLedger
from medfl.privacy.ledger.memory import MemoryLedger

CEILING = Budget(8.0, 1e-5)
OUT_OF_BUDGET = 7


def charge(run: str, round_: int, noise: float) -> Charge:
    return Charge("study", run, round_, "model", "patient", "data", "gaussian", GaussianEvent(noise), 1.0, 1.0)


def open_ledger(folder: Path) -> FileLedger:
    return FileLedger.open(folder / "ledger.jsonl", "north", {"patient": CEILING})


class Releases:
    """What leaves: a file a round, persisted before it is sent, and a log of what was sent."""

    def __init__(self, folder: Path, run: str, noise: float) -> None:
        self.noise = noise
        self.folder = folder / run
        self.folder.mkdir(exist_ok=True)

    def path(self, round_: int) -> Path:
        return self.folder / f"{round_}.bin"

    def persist(self, round_: int) -> None:
        draft = self.folder / "draft"
        draft.write_bytes(os.urandom(64))  # what is killed here is a process, so no fsync is needed
        draft.rename(self.path(round_))

    def send(self, round_: int) -> str:
        digest = hashlib.sha256(self.path(round_).read_bytes()).hexdigest()
        log = os.open(self.folder / "sent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, f"{round_} {digest}\n".encode())
        os.close(log)
        return digest


def right(ledger: FileLedger, out: Releases, run: str) -> None:
    entries, released = ledger.entries(run), dict(ledger.releases(run))
    round_ = 0
    if entries:
        entry, last = list(entries.items())[-1]
        round_ = last.round
        if out.path(round_).exists():
            if entry not in released:  # the same bytes again
                ledger.done(ledger.recall(entry), out.send(round_))
            round_ += 1
    while True:
        permit = ledger.charge(charge(run, round_, out.noise), None)
        _release(ledger, out, permit, round_)
        round_ += 1


def redraw(ledger: FileLedger, out: Releases, run: str) -> None:
    entries, released = ledger.entries(run), dict(ledger.releases(run))
    round_ = 0
    if entries:
        entry, last = list(entries.items())[-1]
        round_ = last.round
        if entry not in released:
            _release(ledger, out, Permit(last, entry), round_)
        round_ += 1
    while True:
        _release(ledger, out, ledger.charge(charge(run, round_, out.noise), None), round_)
        round_ += 1


def early(ledger: FileLedger, out: Releases, run: str) -> None:
    round_ = len(list(out.folder.glob("*.bin")))
    while True:
        out.persist(round_)
        permit = ledger.charge(charge(run, round_, out.noise), None)
        ledger.done(permit, out.send(round_))
        round_ += 1


def unlocked(ledger: FileLedger, out: Releases, run: str) -> None:
    file._lock = lambda descriptor, path: None
    right(ledger, out, run)


def _release(ledger: FileLedger, out: Releases, permit: Permit, round_: int) -> None:
    permit.use()
    out.persist(round_)
    ledger.done(permit, out.send(round_))


KINDS: Mapping[str, Callable[[FileLedger, Releases, str], None]] = {
    "right": right,
    "redraw": redraw,
    "early": early,
    "unlocked": unlocked,
}


def child(kind: str, folder: Path, noise: float, run: str) -> int:
    try:
        ledger = open_ledger(folder)
        os.write(1, b"ready\n")
        KINDS[kind](ledger, Releases(folder, run, noise), run)
    except BudgetError:
        return OUT_OF_BUDGET
    return 0


def main() -> None:
    # what the children need is imported before the first of them starts
    MemoryLedger("north", {"patient": CEILING}).check(charge("run", 0, 20.0), None)
    for line in sys.stdin:
        kind, folder, noise, *runs = line.split()
        pids = []
        for run in runs:
            pid = os.fork()
            if not pid:
                try:
                    os._exit(child(kind, Path(folder), float(noise), run))
                except BaseException as error:
                    os.write(2, f"{error!r}\n".encode())
                    os._exit(1)
            pids.append(pid)
        os.write(1, f"pids {' '.join(map(str, pids))}\n".encode())
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        os.write(1, f"ended {' '.join(map(str, codes))}\n".encode())


if __name__ == "__main__":
    main()
