"""Where a coordinator's run stands, put together from its folder: settings, register, journal and status file.

Everything is opened for reading; a coordinator that runs meanwhile is not disturbed.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medfl.coordinator.journal import Journal, journal_in
from medfl.coordinator.register import PeerState, Register
from medfl.coordinator.settings import CoordinatorHome
from medfl.coordinator.status import Seen, read_status
from medfl.tasks.base import TASKS

_DETAIL = 100


@dataclass(frozen=True)
class SiteLine:
    """One peer. register: as `medfl coordinator peers` says. now: what it does, while the coordinator runs.
    admitted, missed: rounds that its update counted in, and rounds that it failed or was refused in."""

    name: str
    role: str
    register: str
    now: str = "-"
    detail: str = ""
    last_round: int = 0
    admitted: int = 0
    missed: int = 0


@dataclass(frozen=True)
class Overview:
    """run: its identifier, None before there is one. last: loss and primary metric of the last committed round.
    stopped_by: "" while the run is not over. events: of the journal, without what is in other fields."""

    name: str
    study: str
    planned: int
    seen: Seen | None
    run: str | None = None
    completed: int = 0
    stopped_by: str = ""
    last: Mapping[str, float | None] = field(default_factory=dict)
    sites: tuple[SiteLine, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as plain values; `seen` becomes `service`."""
        found = asdict(self)
        found["service"] = found.pop("seen")
        if found["service"] is not None:
            del found["service"]["sites"]
        return found


def overview(folder: Path, tail: int = 5) -> Overview:
    """The state of the coordinator in `folder`, with the last `tail` events. InputError when it is none, or its journal
    cannot be read."""
    home = CoordinatorHome.open(folder)
    study, seen = home.study(), read_status(home.folder / "status.json")
    register = Register.open(home.registry)
    try:
        peers = register.peers()
    finally:
        register.close()
    facts, records, events = _journal(home, tail)
    primary = TASKS.load(study.task.kind).primary  # type: ignore[attr-defined]
    return Overview(
        name=home.settings.name,
        study=study.name,
        planned=study.stop.rounds,
        seen=seen,
        run=facts.get("run"),
        completed=len(records),
        stopped_by=str((facts.get("summary") or {}).get("stopped_by", "")),
        last=_last(records, primary),
        sites=tuple(_line(peer, seen, records) for peer in peers),
        events=events,
    )


def _journal(
    home: CoordinatorHome, tail: int
) -> tuple[dict[str, Any], list[dict[str, Any]], tuple[Mapping[str, Any], ...]]:
    """Facts, records of the rounds, last events; nothing of each before there is a run."""
    where = journal_in(home.run)
    if where is None:
        return {}, [], ()
    journal = Journal.open(where, read_only=True)
    try:
        facts = {"run": journal.fact("run"), "summary": _fact(journal, "summary")}
        events = deque(journal.events(), maxlen=tail)
        return facts, list(journal.rounds()), tuple(map(_event, events))
    finally:
        journal.close()


def _fact(journal: Journal, key: str) -> Any:
    try:
        return journal.fact(key)
    except KeyError:
        return None


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    detail = event["detail"]
    told = {name: detail[name] for name in ("outcome", "rule", "reason", "cohort") if detail.get(name)}
    words = ", ".join(" ".join(map(str, text)) if isinstance(text, list) else str(text) for text in told.values())
    return {**{name: event[name] for name in ("at", "round", "site", "kind")}, "detail": words[:_DETAIL]}


def _last(records: list[dict[str, Any]], primary: str) -> dict[str, float | None]:
    if not records:
        return {}
    metrics = next((record["metrics"] for record in reversed(records) if record["metrics"]), None)
    value = None if metrics is None else metrics["global"].get(primary, {}).get("value")
    return {"loss": records[-1]["losses"]["mean"], primary: value}


def _line(peer: PeerState, seen: Seen | None, records: list[dict[str, Any]]) -> SiteLine:
    now = seen.sites.get(peer.name) if seen is not None and seen.alive else None
    rounds = [record for record in records if peer.name in record["verdicts"]]
    missed = sum(peer.name in record["failed"] or peer.name in record["refused"] for record in records)
    counted = sum(record["verdicts"][peer.name]["outcome"] in ("admit", "down-weight") for record in rounds)
    return SiteLine(
        name=peer.name,
        role=peer.role,
        register=peer.state,
        now="-" if now is None else now.state,
        detail="" if now is None else now.detail,
        last_round=rounds[-1]["round"] if rounds else 0,
        admitted=counted,
        missed=missed,
    )
