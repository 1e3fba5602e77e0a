"""What an auditor is shown about a run, and what of it was checked: from the journal, the ledgers and the saved model.

Nothing is written, and a run that goes on meanwhile is not disturbed. No path of the machine is in the answer.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from medfl.audit.log import AuditLog
from medfl.coordinator.files import load_model
from medfl.coordinator.journal import Journal, journal_in
from medfl.errors import InputError, MedflError, RunError
from medfl.privacy.ledger.file import FileLedger
from medfl.study.digest import study_hash
from medfl.study.load import study_from_json
from medfl.update.vector import Layout
from medfl.update.wire import as_bytes

Check = dict[str, Any]
"""{"check", "ok", "detail"}; ok is None where there was nothing to compare, and detail says why."""


_SAVED = "the saved model is the journal's"


@dataclass(frozen=True)
class _Run:
    """What the journal says. Read in this order, so that a run that goes on cannot contradict itself."""

    facts: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    messages: Sequence[Mapping[str, Any]]
    pending: int | None
    ended: bool
    model: str | None
    unread: Check | None


def evidence(run_folder: Path) -> dict[str, Any]:
    """The evidence of a run, finished or not; JSON-able.

    run: its name, study, sites, versions and noise plan. rounds: what was committed. verdicts, upgrades: of the audit
    trail. releases: what was charged and opened. heads: of every chain that lies beside the run. checks: a list of
    {"check", "ok", "detail"}. InputError when the folder holds no journal that this version reads.
    """
    where = journal_in(run_folder)
    if where is None:
        raise InputError.at(run_folder, "holds no journal", "give the folder of a run")
    journal = Journal.open(where, read_only=True)
    try:
        run = _read(journal)
    finally:
        journal.close()
    ledgers, chains = _ledgers(_ledger_folder(run, run_folder))
    releases = _releases(ledgers.get("coordinator"), run.facts["run"])
    log, checked = _audit_log(run_folder)
    return {
        "run": _about(run),
        "rounds": [_round(record) for record in run.rounds],
        "verdicts": [event for event in run.events if event["kind"] == "verdict"],
        "upgrades": [event for event in run.events if event["kind"] == "upgrade"],
        "releases": releases,
        "heads": {**{f"ledger {party}": ledger.head for party, ledger in ledgers.items()}, **log},
        "checks": [
            _contiguous(run),
            _verdicts_agree(run),
            _counted_once(run),
            *chains,
            _charges(run, ledgers.get("coordinator"), releases),
            *checked,
            _model(run, run_folder),
        ],
    }


def _read(journal: Journal) -> _Run:
    names = ("run", "schema", "inputs", "layout", "noise", "versions")
    try:
        facts = {name: journal.fact(name) for name in names}
    except KeyError as error:
        raise InputError.at(journal.where, f"says nothing of {error}", "use the version that wrote it") from error
    rounds, events, messages = list(journal.rounds()), list(journal.events()), list(journal.messages())
    release = _fact(journal, "release")
    model, unread = _state(journal)
    # journals of earlier versions do not name the sites that were there
    facts["sites"] = _fact(journal, "sites") or facts["inputs"]["sites"]
    pending = None if release is None else int(release["outcome"]["plan"]["round"])
    return _Run(facts, rounds, events, messages, pending, bool(_fact(journal, "summary")), model, unread)


def _state(journal: Journal) -> tuple[str | None, Check | None]:
    """The hash of the journal's model, or why there is none to be had."""
    try:
        kept = journal.state()
    except RunError as error:
        # who audits a database may have no right to its arrays
        closed = isinstance(error.__cause__, DBAPIError)
        return None, {"check": _SAVED, "ok": None if closed else False, "detail": str(error)}
    return (None if kept is None else hashlib.sha256(as_bytes(kept[1]["model"])).hexdigest()), None


def _fact(journal: Journal, key: str) -> Any:
    try:
        return journal.fact(key)
    except KeyError:
        return None


def _about(run: _Run) -> dict[str, Any]:
    study = study_from_json(run.facts["inputs"]["study"])
    return {
        "run": run.facts["run"],
        "study": study.name,
        "study_hash": study_hash(study),
        "task": study.task.kind,
        "seed": study.seed,
        "sites": sorted(site["name"] for site in run.facts["sites"]),
        "layout": Layout.from_json(run.facts["layout"]).digest,
        "noise": run.facts["noise"],
        "versions": run.facts["versions"],
        "schema": run.facts["schema"],
        "ended": run.ended,
        "opened_and_not_committed": run.pending,
        "model_sha256": run.model,
    }


def _round(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("round", "participants", "late", "failed", "refused", "moved", "void", "epsilon")
    return {name: record.get(name) for name in names}


def _check(name: str, wrong: Sequence[str], right: str) -> Check:
    return {"check": name, "ok": not wrong, "detail": "; ".join(wrong) or right}


def _nothing(name: str, why: str) -> Check:
    return {"check": name, "ok": None, "detail": why}


def _contiguous(run: _Run) -> Check:
    found = [record["round"] for record in run.rounds]
    wrong = [] if found == [*range(1, len(found) + 1)] else [f"the committed rounds are {found}"]
    return _check("rounds are contiguous", wrong, f"{len(found)} rounds, from 1")


def _verdicts_agree(run: _Run) -> Check:
    """A round's record and the audit trail name the same sites."""
    trail = Counter((event["round"], event["site"]) for event in run.events if event["kind"] == "verdict")
    committed = {record["round"] for record in run.rounds}
    told = Counter(
        (record["round"], site) for record in run.rounds for site in {**record["verdicts"], **record["failed"]}
    )
    trail = Counter({key: count for key, count in trail.items() if key[0] in committed})
    wrong = [
        f"round {round_}, site {site}: {told[round_, site]} in the record, {trail[round_, site]} in the trail"
        for round_, site in sorted(told.keys() | trail.keys())
        if told[round_, site] != trail[round_, site]
    ]
    return _check("each verdict is in the audit trail", wrong, f"{trail.total()} verdicts")


def _counted_once(run: _Run) -> Check:
    name = "each admitted update is counted once"
    counts = Counter((found["round"], found["site"]) for found in run.messages if found["kind"] == "update")
    if not counts:
        return _nothing(name, "the run counts no messages: its sites are in the coordinator's process")
    admitted = {
        (record["round"], site)
        for record in run.rounds
        for site, verdict in record["verdicts"].items()
        if verdict["outcome"] in ("admit", "down-weight")
    }
    wrong = [f"round {key[0]}, site {key[1]}: counted {counts[key]} times" for key in sorted(admitted | counts.keys())
             if counts[key] > 1 or (key in admitted and not counts[key])]  # fmt: skip
    others = counts.total() - len(admitted)
    return _check(name, wrong, f"{len(admitted)} admitted, each counted once; {others} others came")


def _ledger_folder(run: _Run, folder: Path) -> Path | None:
    """Where the run's ledgers are: as it wrote them, or in a folder that was moved."""
    folders = (Path(run.facts["inputs"].get("ledgers", folder)), folder / "ledgers", folder.parent / "ledgers")
    return next((found for found in folders if (found / "coordinator.ledger").is_file()), None)


def _ledgers(folder: Path | None) -> tuple[dict[str, FileLedger], list[Check]]:
    """The ledgers that are whole by party, and a check for each that lies there."""
    ledgers, checks = dict[str, FileLedger](), list[Check]()
    for path in sorted(folder.glob("*.ledger")) if folder is not None else ():
        name = f"ledger of {path.stem} is a whole chain"
        try:
            ledgers[path.stem] = FileLedger.read(path)
            checks.append(_check(name, [], f"{ledgers[path.stem].verified()['records']} records"))
        except (MedflError, OSError) as error:
            checks.append(_check(name, [_without_folder(error, path)], ""))
    return ledgers, checks


def _without_folder(error: Exception, path: Path) -> str:
    return str(error).replace(f"{path.parent}/", "")


def _releases(ledger: FileLedger | None, run: str) -> list[dict[str, Any]]:
    """Every charge of the run at the coordinator, in order; digest: SHA-256 of what it released, None for nothing."""
    if ledger is None:
        return []
    digests = dict(ledger.releases(run))
    entries = ledger.entries(run)
    with ledger.reading() as (book, _):
        times = dict(book.times)
    return [
        {"round": charge.round, "release": charge.release, "unit": charge.unit, "charged_at": times[entry],
         "entry": entry, "digest": digests.get(entry), "randomness": charge.randomness}
        for entry, charge in entries.items()
    ]  # fmt: skip


def _charges(run: _Run, ledger: FileLedger | None, releases: Sequence[Mapping[str, Any]]) -> Check:
    """Each private round that moved the model was charged, and none released twice. Charges beyond those are what
    deaths and sums that stayed closed cost; they are told."""
    name = "the ledger's charges are the journal's private rounds"
    if run.facts["noise"] is None:
        return _nothing(name, "the study promises no differential privacy")
    if ledger is None:
        return _nothing(name, "the coordinator's ledger is not there, or is not whole")
    moved = {record["round"] for record in run.rounds if record["moved"]}
    charged = Counter(release["round"] for release in releases)
    released = Counter(release["round"] for release in releases if release["digest"])
    wrong = [f"round {round_} moved the model and was not charged" for round_ in sorted(moved - charged.keys())]
    wrong += [f"round {round_} was released {count} times" for round_, count in sorted(released.items()) if count > 1]
    late = sorted(round_ for round_ in charged if round_ > len(run.rounds) + 1)
    wrong += [f"round {round_} was charged and is not in the journal" for round_ in late]
    beyond = charged - Counter(moved)
    more = f", and charged in vain: {dict(sorted(beyond.items()))}" if beyond else ""
    return _check(name, wrong, f"{len(moved)} rounds, {charged.total()} charges{more}")


def _audit_log(folder: Path) -> tuple[dict[str, str], list[Check]]:
    """Head and check of the coordinator's audit log, which lies beside a service's run folder."""
    path, name = folder.resolve().parent / "audit.log", "the audit log is a whole chain"
    if not path.is_file():
        return {}, []
    try:
        found = AuditLog.verify(path)
    except (MedflError, OSError) as error:
        return {}, [_check(name, [_without_folder(error, path)], "")]
    return {"audit log": found.head}, [_check(name, [], f"{found.count} records")]


def _model(run: _Run, folder: Path) -> Check:
    name = _SAVED
    if run.unread is not None:
        return run.unread
    if not run.ended or run.model is None:
        return _nothing(name, "the run has not ended" if not run.ended else "no round was committed")
    layout = Layout.from_json(run.facts["layout"])
    try:
        saved = hashlib.sha256(as_bytes(load_model(folder / "model", layout))).hexdigest()
    except (InputError, RunError) as error:
        return _check(name, [_without_folder(error, folder / "model")], "")
    wrong = [] if saved == run.model else [f"model.safetensors holds {saved[:12]}, the journal {run.model[:12]}"]
    return _check(name, wrong, f"SHA-256 of the parameters {saved}")
