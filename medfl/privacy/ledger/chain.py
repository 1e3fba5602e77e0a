"""The hash chain of a ledger: which records there are, and how a ledger that was put back to an older copy is found."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from medfl.audit import chain
from medfl.audit.chain import Form, Record, Tail, is_hash
from medfl.errors import Faults, RunError

__all__ = ["LEDGER", "Record", "Tail", "compare", "is_hash", "make", "read"]

_RESTORE = "restore the newest whole copy whose head the other parties know"

LEDGER = Form(
    name="a ledger",
    remedy="nothing may be released until this is clear: keep the file as it is, find out who or what changed it, and "
    + _RESTORE,
    restore=f"{_RESTORE}; nothing may be released before that",
    room="nothing may be released; make room, then go on",
    kinds=frozenset({"open", "plan", "charge", "done", "witness", "repair"}),
)


def make(last: Record | None, time: str, kind: str, body: Mapping[str, Any]) -> Record:
    """The ledger's record that follows `last`. RunError when its time lies before the last one's."""
    return chain.make(LEDGER, last, time, kind, body)


def read(data: bytes, where: str, after: Record | None = None) -> Tail:
    """The ledger's records in `data`, which follow the record `after`; RunError as of `medfl.audit.chain.read`."""
    return chain.read(LEDGER, data, where, after)


def compare(
    where: str,
    chain: Collection[str],
    kept: Mapping[str, str],
    witnessed: Mapping[str, Sequence[str]],
    present: Mapping[str, str],
) -> None:
    """RunError when a ledger was put back to an older copy, this one or another party's.

    chain: hashes of this chain. kept: the head of this chain that each other party kept. witnessed: the heads of each
    other party that this chain kept, in order. present: the head that each other party has now.
    """
    faults = Faults()
    for party, head in kept.items():
        if head not in chain:
            what = f"{party} has seen its record {head[:12]}, which is not in it: an older copy or another ledger"
            faults.add(where, what, "restore the newest copy; charges made since would be forgotten")
    for party, head in present.items():
        earlier = witnessed.get(party, ())
        if head in earlier and head != earlier[-1]:
            what = f"its head {head[:12]} is older than {earlier[-1][:12]}, which {where} has seen: an older copy"
            faults.add(f"ledger of {party}", what, f"{party} must restore the newest copy before it takes part again")
    faults.raise_if_any(RunError)
