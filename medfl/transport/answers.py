"""What sites answer, read with care: anything may come, and only what is meant to come is taken."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from medfl.errors import Fault, InputError, RunError
from medfl.learning.messages import LedgerHeads, SiteInfo
from medfl.transport.post import Ticket
from medfl.transport.texts import plain
from medfl.update.wire import unpack

_FAULTS, _HEAD, _CASES, _CONSENTS = 20, 200, 2**40, 16
_SILENT = "failed without saying why"


def body(ticket: Ticket) -> tuple[dict[str, Any], list[memoryview]]:
    """Header and buffers of an answer; RunError for a failure and for what the site says went wrong."""
    if ticket.answer is None:
        raise RunError.at(f"site {ticket.site}", ticket.failure)
    header, buffers = unpack(ticket.answer)
    if header.get("answer") == "error":
        found = _faults(header) or [Fault(f"site {ticket.site}", _SILENT)]
        raise (InputError if header.get("input") else RunError)(*found)
    return header, buffers


def _faults(header: Mapping[str, Any]) -> list[Fault]:
    """What a site says went wrong there."""
    said = header.get("faults")
    listed = [fault for fault in said[:_FAULTS] if isinstance(fault, list)] if isinstance(said, list) else []
    return [Fault(*(plain(str(text)) for text in fault)) for fault in listed if len(fault) == len(fields(Fault))]


def failure(site: str, header: Mapping[str, Any]) -> str:
    """Why a site sends no update."""
    said = "; ".join(map(str, _faults(header))) or str(header.get("reason", _SILENT))
    return said if header.get("answer") != "error" or site in said else f"site {site}: {said}"


def heads_of(header: Mapping[str, Any], site: str) -> LedgerHeads | None:
    heads = header.get("heads")
    mine = heads.get(site) if isinstance(heads, dict) else None
    if mine is None:
        return None
    known = isinstance(mine, dict) and mine.keys() == {"head", "kept"}
    if not known or not all(isinstance(head, str) and len(head) <= _HEAD for head in mine.values()):
        raise RunError.at(f"site {site}", "began with heads of a ledger that are none")
    return LedgerHeads(**mine)


def info_of(value: Any) -> SiteInfo:
    try:
        cases = {plain(split, 80): count for split, count in value["cases"].items()}
        skipped = {plain(key, 80): plain(str(reason)) for key, reason in value["skipped"].items()}
        shared = {plain(consent): count for consent, count in value.get("shared", {}).items()}
        name, identity = value["name"], value["identity"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError.at("site", f"joined without saying what it has: {error!r}") from error
    if not all(type(count) is int and 0 <= count <= _CASES for count in (*cases.values(), *shared.values())):
        raise RunError.at("site", "joined with numbers of cases that are none")
    if not isinstance(name, str) or not isinstance(identity, str):
        raise RunError.at("site", "joined without a name and a signing key")
    if len(shared) > _CONSENTS:
        raise RunError.at("site", f"joined with {len(shared)} consents, at most {_CONSENTS} are taken")
    return SiteInfo(name, cases, skipped, identity, shared)
