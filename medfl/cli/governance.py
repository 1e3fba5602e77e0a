"""`medfl site studies`, `show`, `approve`, `reject`, `status`, `pause`, `resume`, `withdraw` and `audit`."""

import getpass
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.output import Json, print_json, result
from medfl.errors import InputError
from medfl.folders import COORDINATOR, PEER, SITE, refuse_other

if TYPE_CHECKING:
    from medfl.audit.chain import Record
    from medfl.site.home import SiteHome

Home = Annotated[
    Path,
    typer.Option(envvar="MEDFL_SITE_HOME", metavar="HOME", help="The site's home.", show_default=False),
]
Hash = Annotated[str, typer.Argument(help="The study's hash, or its first 8 characters or more.", show_default=False)]
By = Annotated[str | None, typer.Option(help="Who decides; your user name by default.", show_default=False)]


def studies(home: Home, json: Json = False) -> None:
    """List the studies that the coordinator offered, and where each stands.

    Example: medfl site studies --home /srv/medfl
    """
    from medfl.site.home import SiteHome

    rows = _studies(SiteHome.open(home))
    if json:
        print_json({"studies": rows})
        return
    if not rows:
        _say("no study was offered yet")
    for row in rows:
        note = f": {row['note']}" if row["note"] else ""
        by = f" by {row['by']}, {row['at']}" if row["by"] else ""
        _say(f"{row['hash'][:12]}  {row['name']}  {row['state']}{by}{note}")


def show(study: Hash, home: Home, json: Json = False) -> None:
    """Show a study in plain language, and then whole, as it will be run.

    Example: medfl site show 3f5a9c21 --home /srv/medfl
    """
    import yaml

    from medfl.site.home import SiteHome
    from medfl.site.studies import Studies
    from medfl.site.summary import shared_values, summary
    from medfl.study.shared_images import offered

    opened = SiteHome.open(home)
    known = Studies(opened)
    offer = known.find(study)
    shared = offered(offer.study, opened.site)
    told = summary(offer.study, opened.site, values=shared_values(offer.study), shared=shared)
    standing = known.standing(offer.hash)
    if json:
        print_json({**told.to_json(), "state": standing.state, "study_json": offer.study.to_json()})
        return
    _say(told.text())
    _say(f"\nIt is {standing.state}.\n\nThe whole study:\n")
    _say(yaml.safe_dump(offer.study.to_json(), sort_keys=False))


def approve(study: Hash, home: Home, by: By = None, json: Json = False) -> None:
    """Approve a study: exactly this one, for at most the rounds that it says.

    Example: medfl site approve 3f5a9c21 --home /srv/medfl --by "Dr. Steward"
    """
    from medfl.site.home import SiteHome
    from medfl.site.studies import Studies, refusals

    opened = SiteHome.open(home)
    known = Studies(opened)
    standing = known.approve(study, by or getpass.getuser())
    found = known.find(standing.study).study
    refused = [fault.what for fault in refusals(found, opened.site)]
    if json:
        print_json({"hash": standing.study, "state": standing.state, "by": standing.by, "refusals": refused})
        return
    _say(f"approved {standing.study}: {found.name}, {found.stop.rounds} rounds at most, by {standing.by}")
    for what in refused:
        _say(f"the site's policy refuses it all the same: {what}", "bold red")


def reject(
    study: Hash,
    home: Home,
    note: Annotated[str, typer.Option(help="Why; the study lead reads it.", show_default=False)],
    by: By = None,
    json: Json = False,
) -> None:
    """Reject a study, also one that was approved before: no further round is trained.

    Example: medfl site reject 3f5a9c21 --home /srv/medfl --note "no ethics vote for this purpose"
    """
    from medfl.site.home import SiteHome
    from medfl.site.studies import Studies

    standing = Studies(SiteHome.open(home)).reject(study, by or getpass.getuser(), note)
    if json:
        print_json({"hash": standing.study, "state": standing.state, "by": standing.by, "note": standing.note})
    else:
        _say(f"rejected {standing.study}, by {standing.by}: {standing.note}")


def status(home: Home, json: Json = False) -> None:
    """Show the site's identity, its certificate, its studies, and what its agent did last.

    Example: medfl site status --home /srv/medfl
    """
    from medfl.site.home import SiteHome
    from medfl.site.storage import Use

    opened = SiteHome.open(home)
    found = _status(opened)
    if json:
        print_json(found)
        return
    _say(f"site {found['site']}")
    for name in ("identity", "certificate_expires"):
        _say(f"{name.replace('_', ' ')}: {found[name] or 'not enrolled yet'}")
    pause = found["paused"]
    _say(f"paused since {pause['at']} by {pause['by']}: {pause['note']}" if pause else "takes orders: not paused")
    agent = found["agent"]
    _say("agent: never ran" if agent is None else _agent(agent))
    for state, number in Counter(row["state"] for row in found["studies"]).items():
        _say(f"studies {state}: {number}")
    _say(f"storage: {Use(**found['storage'])} in {opened.work}")
    _print_left_out(found["left_out"])


def pause(
    home: Home,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    by: By = None,
    json: Json = False,
) -> None:
    """Take no orders until `medfl site resume`.

    Example: medfl site pause --home /srv/medfl --note "scanner maintenance"
    """
    from medfl.site.home import SiteHome

    found = SiteHome.open(home).pause(by or getpass.getuser(), note)
    if json:
        print_json({"paused": True, "at": found.at, "by": found.by, "note": found.note})
    else:
        _say(f"paused by {found.by}; medfl site resume ends it")


def resume(home: Home, by: By = None, json: Json = False) -> None:
    """Take orders again.

    Example: medfl site resume --home /srv/medfl
    """
    from medfl.site.home import SiteHome

    was = SiteHome.open(home).resume(by or getpass.getuser())
    if json:
        print_json({"paused": False, "was_paused": was})
    else:
        _say("takes orders again" if was else "was not paused")


def withdraw(
    home: Home,
    patients: Annotated[
        list[str] | None, typer.Argument(help="Identifiers of patients, as in the data set.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A text file with one identifier a line.", show_default=False)
    ] = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Leave patients out from now on, and tell which runs and rounds had them.

    Identifiers are kept as keyed hashes, and in no log. What a finished round has learnt stays in its model.

    Example: medfl site withdraw --file withdrawn.txt --home /srv/medfl
    """
    from medfl.site.home import SiteHome
    from medfl.site.withdrawal import withdraw as run

    named = [*(patients or []), *(_lines(file) if file else [])]
    if not any(name.strip() for name in named):
        raise InputError.at("PATIENT", "names nobody", "give identifiers, or --file with one a line")
    found = run(SiteHome.open(home), [name for name in named if name.strip()], by or getpass.getuser())
    if json:
        print_json(found.to_json())
        return
    _say(f"withdrawn from now on: {len(found.patients)}")
    if found.problem:
        _say(f"whether this site has images of them could not be seen: {found.problem}", "bold red")
    for patient in found.unknown:
        _say(f"{patient} is in no data set and no run that this site knows; kept all the same")
    for patient in found.patients:
        if patient not in found.parts and patient not in found.unknown:
            _say(f"{patient}: no run was trained on images of this patient")
    for patient, parts in found.parts.items():
        for part in parts:
            rounds = ", ".join(map(str, part.rounds)) or "none finished"
            _say(f"{patient} was in run {part.run} of study {part.study[:12]}, rounds {rounds}")


Verify = Annotated[bool, typer.Option("--verify", help="Verify the chain and say no more than that.")]
Head = Annotated[
    str | None, typer.Option(help="A head that another party kept, which must be in the log.", show_default=False)
]
Last = Annotated[int, typer.Option("--tail", min=1, help="How many of the last entries to show.")]


def audit(home: Home, verify: Verify = False, head: Head = None, tail: Last = 20, json: Json = False) -> None:
    """Show the site's audit log, or verify it. Exit code 1 when it was changed. Nothing is written.

    Example: medfl site audit --home /srv/medfl --verify
    """
    refuse_other(home, SITE, PEER)
    audit_command(home / "audit.log", verify, head, tail, json)


def audit_coordinator(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.", show_default=False)],
    verify: Verify = False,
    head: Head = None,
    tail: Last = 20,
    json: Json = False,
) -> None:
    """Show the coordinator's audit log, or verify it. Exit code 1 when it was changed. Nothing is written.

    Example: medfl coordinator audit coordinator --verify
    """
    refuse_other(folder, COORDINATOR)
    audit_command(folder / "audit.log", verify, head, tail, json)


def audit_command(
    path: Path, verify: bool = False, head: str | None = None, tail: int = 20, json: bool = False
) -> None:
    """Print an audit log's last entries, or that it is whole; RunError naming every line that was changed, is missing,
    out of order or cut."""
    from medfl.audit.log import read_log

    found, records = read_log(path, head)
    whole = {"valid": True, "owner": found.owner, "records": found.count, "head": found.head, "kept": dict(found.kept)}
    shown = [] if verify else records[-tail:]
    if json:
        print_json(whole | ({} if verify else {"entries": [_entry(record) for record in shown]}))
        return
    for record in shown:
        _say(f"{record.sequence:>6}  {record.time[:19]}Z  {record.kind:<12}  {_detail(record.body)}")
    _say(f"the log of {found.owner} is whole: {found.count} records, head {found.head}")
    for party, kept in found.kept.items():
        _say(f"head of {party} that was kept last: {kept}")


def _entry(record: "Record") -> dict[str, Any]:
    return {"seq": record.sequence, "time": record.time, "kind": record.kind, "detail": dict(record.body)}


def _studies(home: "SiteHome") -> list[dict[str, Any]]:
    from medfl.site.studies import Studies

    known = Studies(home)
    rows = []
    for offer in known.all():
        standing = known.standing(offer.hash)
        rows.append(
            {
                "hash": offer.hash,
                "name": offer.study.name,
                "task": offer.study.task.kind,
                "rounds": offer.study.stop.rounds,
                "trained": len(home.participation.rounds_of_study(offer.hash)),
                "offered": offer.at,
                "coordinator": offer.coordinator,
                "state": standing.state,
                "by": standing.by,
                "at": standing.at,
                "note": standing.note,
            }
        )
    return rows


def _status(home: "SiteHome") -> dict[str, Any]:
    from dataclasses import asdict

    from medfl.site.left_out import read as read_left_out
    from medfl.site.status import certificate_of, read_status
    from medfl.site.storage import use_of

    pause, subject = home.paused, certificate_of(home)
    return {
        "site": home.name,
        "identity": None if subject is None else subject.identity,
        "certificate_expires": None if subject is None else subject.expires,
        "paused": None if pause is None else asdict(pause),
        "agent": read_status(home),
        "studies": _studies(home),
        "storage": asdict(use_of(home.work, home.site.storage)),
        "left_out": read_left_out(home.work),
    }


def _print_left_out(found: "Mapping[str, Any] | None") -> None:
    """Images that could not be used: their names stay at the site."""
    if found is None:
        return
    for fault in found["faults"]:
        _say(f"images: {fault}", "bold red")
    if found["cases"]:
        _say(f"images left out: {len(found['cases'])}")
    for key, reason in found["cases"].items():
        _say(f"  {key}: {reason}")


def _agent(agent: Mapping[str, Any]) -> str:
    told = f"agent: {agent.get('state')}, last heard of {agent.get('at')}, coordinator {agent.get('coordinator')}"
    if agent.get("run"):
        told += f", run {agent['run']}, round {agent.get('round')}"
    return told + (f": {agent['detail']}" if agent.get("detail") else "")


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError.at(path, "is not a text file", "write one identifier a line, in UTF-8") from error


def _detail(detail: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in detail.items())


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)


def _say(text: str, style: str = "") -> None:
    result().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
