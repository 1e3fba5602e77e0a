"""What a run folder says: its journal first, the files beside it where there is no journal."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfl.coordinator import records
from medfl.coordinator.journal import Journal, Where, journal_in
from medfl.errors import InputError
from medfl.tasks.base import TASKS


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    summary: as in `summary.json`; for a run that has not ended, what its rounds add up to, with `stopped_by` None and
    without metrics and privacy (which `medfl.report.privacy` knows). rounds: as in `rounds.jsonl`. study: the study as
    JSON. faults: simulated fault by site. replaced: whether the study's own images were replaced. started, ended: first
    and last entry of the journal (ISO 8601), "" without one. notes: what a reader should know about where all this
    comes from. name: the run's in its ledgers; noise: its `NoisePlan` as JSON; ledgers: their folder when it started.
    """

    folder: Path
    summary: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    study: Mapping[str, Any]
    faults: Mapping[str, Mapping[str, Any]]
    replaced: bool
    started: str
    ended: str
    notes: tuple[str, ...]
    name: str = ""
    noise: Mapping[str, Any] | None = None
    ledgers: Path | None = None

    @property
    def sites(self) -> list[str]:
        """Every site that is named anywhere, by name."""
        metrics = self.summary.get("metrics") or {}
        named = {*self.summary["data"], *(metrics.get("sites") or {}), *(metrics.get("unseen") or {})}
        return sorted(named.union(*(record["participants"] for record in self.rounds)))


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`; InputError when there is none, or when a file of it cannot be read."""
    where = journal_in(folder)
    if where is not None:
        return _from_journal(folder, where)
    summary = read_json(folder / "summary.json")
    rounds = tuple(_lines(folder / "rounds.jsonl"))
    note = "The folder has no journal: this page was made from summary.json and rounds.jsonl alone."
    return RunRecord(folder, summary, rounds, _saved_study(folder), {}, False, "", "", (note,))


def _from_journal(folder: Path, where: Where) -> RunRecord:
    journal = Journal.open(where, read_only=True)
    try:
        inputs, rounds = journal.fact("inputs"), tuple(journal.rounds())
        times = [event["at"] for event in journal.events()]
        name, noise = _fact(journal, "run") or "", _fact(journal, "noise")
        try:
            summary, notes = journal.fact("summary"), []
        except KeyError:
            summary = _unfinished(inputs, rounds, journal.fact("versions"))
            notes = ["The run has not ended: it goes on, or it was interrupted. There is no final evaluation."]
    finally:
        journal.close()
    notes += _disagreements(folder, summary, rounds)
    faults = {site["name"]: site["fault"] for site in inputs["sites"] if site.get("fault")}
    started, ended = (times[0], times[-1]) if times else ("", "")
    replaced = bool(inputs["data"]) or any(site.get("data") for site in inputs["sites"])
    return RunRecord(
        folder=folder,
        summary=summary,
        rounds=rounds,
        study=inputs["study"],
        faults=faults,
        replaced=replaced,
        started=started,
        ended=ended,
        notes=tuple(notes),
        name=name,
        noise=noise,
        ledgers=Path(inputs["ledgers"]) if "ledgers" in inputs else None,
    )


def _fact(journal: Journal, key: str) -> Any:
    """A fact that journals of earlier versions do not hold; None when it is not there."""
    try:
        return journal.fact(key)
    except KeyError:
        return None


def _unfinished(inputs: Mapping[str, Any], rounds: tuple[Any, ...], versions: Mapping[str, str]) -> dict[str, Any]:
    study = inputs["study"]
    return {
        "study": study["name"],
        "task": study["task"]["kind"],
        "seed": study["seed"],
        "baseline": "pooled" if inputs["pooled"] else inputs["only"],
        "rounds_completed": len(rounds),
        "stopped_by": None,
        "primary": TASKS.load(study["task"]["kind"]).primary,  # type: ignore[attr-defined]
        "parameters": None,
        "metrics": None,
        "privacy": None,
        "traffic": records.traffic_total(rounds, {}),
        "regulator": records.regulator_counts(rounds),
        "data": {},
        "seconds": records.seconds_total(rounds, {}),
        "versions": versions,
    }


def _disagreements(folder: Path, summary: Mapping[str, Any], rounds: tuple[Any, ...]) -> list[str]:
    """Where the files beside the journal say something else: they may have been edited."""
    found = []
    if (folder / "rounds.jsonl").is_file():
        written = [_timeless(record) for record in _lines(folder / "rounds.jsonl")]
        if written != [_timeless(record) for record in rounds]:
            found.append("rounds.jsonl does not agree with the journal; this page shows the journal.")
    if (folder / "summary.json").is_file() and read_json(folder / "summary.json") != summary:
        found.append("summary.json does not agree with the journal; this page shows the journal.")
    return found


def _timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    """A round without its seconds: the time of the commit itself is known only after it."""
    return {key: value for key, value in record.items() if key != "seconds"}


def _saved_study(folder: Path) -> Mapping[str, Any]:
    import yaml

    path = folder / "model" / "study.yaml"
    try:
        study: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError.at(path, f"cannot be read: {error}", "give the folder of a run") from error
    return study


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; InputError when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError.at(path, "does not exist", "give the folder of a run") from error
    except (OSError, ValueError) as error:
        raise InputError.at(path, f"cannot be read as JSON: {error}", "give the folder of a run") from error
    if not isinstance(value, dict):
        raise InputError.at(path, "is not a JSON object", "give the folder of a run")
    return value


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError.at(path, f"cannot be read: {error}", "give the folder of a run") from error
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise InputError.at(f"{path}, line {number}", f"is not JSON: {error}", "restore the file") from error
