"""The studies that the coordinator offered to a site, and what its data steward decided.

    HOME/studies/<hash>.json            the study as it was offered, written once
    HOME/studies/<hash>.decision.json   the steward's decision; a running agent sees it at its next look

A decision is about exactly one hash. An approval covers at most the rounds that the study says, over all its runs, and
so at most their epsilon, and metrics of a few models a round; after that it takes another one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medfl.audit.file import place
from medfl.errors import Faults, InputError, RunError
from medfl.site.home import SiteHome, now, write_json
from medfl.study.digest import study_hash
from medfl.study.load import study_from_json
from medfl.study.model import Site, Study
from medfl.study.refusals import policy_refusals
from medfl.study.shared_images import reads_shared

State = Literal["held", "approved", "rejected"]
POLICY = "the site's policy"
"""Who approved a study that nobody was asked about."""

SHORTEST = 8
"""Fewest characters that a study's hash may be shortened to."""

_DECISION = ".decision.json"
_MOST = 1000
"""Files: a coordinator that offers study after study does not fill the disk."""
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a study may do at this site. by, at, note: of the decision. Of the study, when it was approved: before,
    rounds that had been trained; again, rounds that had been trained again from another order."""

    study: str
    state: State
    by: str = ""
    at: str = ""
    note: str = ""
    before: int = 0
    again: int = 0

    @property
    def approved(self) -> bool:
        return self.state == "approved"


@dataclass(frozen=True, slots=True)
class Offer:
    """A study as it was offered first. at: UTC."""

    hash: str
    study: Study
    coordinator: str
    run: str
    at: str


class Studies:
    """Several processes may use one home, each with its own object."""

    def __init__(self, home: SiteHome) -> None:
        self._home = home
        self._known: dict[str, tuple[object, Standing]] = {}

    def offer(self, study: Study, run: str, coordinator: str) -> Standing:
        """Keep a study that the coordinator offers, if it is new; where it stands. RunError when there are too many."""
        key = study_hash(study)
        path = self._offer_file(key)
        if not path.exists():
            if sum(1 for _ in self._home.studies.glob("*.json")) >= _MOST:
                what = f"holds {_MOST} offers and decisions already, and a coordinator offers one more"
                raise RunError.at(self._home.studies, what, "its steward removes those that nobody needs")
            told = {"hash": key, "coordinator": coordinator, "run": run, "at": now(), "study": study.to_json()}
            detail = {"study": key, "name": study.name, "run": run, "coordinator": coordinator}
            self._home.audit.append("offered", detail)
            place(path, json.dumps(told, indent=2).encode() + b"\n")
            standing = self.standing(key)
            if standing.approved:
                self._home.audit.append("approved", {"study": key, "by": standing.by})
        return self.standing(key)

    def standing(self, key: str) -> Standing:
        """Where a study stands now, by its whole hash. InputError when it was never offered."""
        files = (self._offer_file(key), self._decision_file(key), self._home.site_file)
        stamp = tuple(map(_stamp, files))
        if key not in self._known or self._known[key][0] != stamp:
            self._known[key] = stamp, self._standing(key)
        return self._known[key][1]

    def permit(self, key: str, run: str, round_: int) -> None:
        """RunError when this round of this run must not be trained: the study is not approved, has no such round, or
        the approval is used up. A round that was trained before may be trained again, from another order as often as
        `repeats` says."""
        where = f"study {key[:12]}, round {round_}"
        standing, rounds = self.standing(key), self.find(key).study.stop.rounds
        if not standing.approved:
            remedy = f"medfl site approve {key[:12]}" if standing.state == "held" else ""
            raise RunError.at(
                where, f"is {standing.state} at this site" + (standing.note and f": {standing.note}"), remedy
            )
        if not 1 <= round_ <= rounds:
            raise RunError.at(where, f"the study has {rounds} rounds", "offer a study that says how many it needs")
        if standing.by == POLICY:
            return
        trained = self._home.participation.rounds_of_study(key)
        if len(trained - {(run, round_)}) - standing.before >= rounds:
            what = f"the approval of {standing.at} was for {rounds} rounds, which were trained"
            raise RunError.at(where, what, f"ask the data steward: medfl site approve {key[:12]}")
        if (run, round_) in trained and self._again(key) - standing.again >= repeats(rounds):
            what = (
                f"was trained before; since the approval of {standing.at}, {repeats(rounds)} rounds were asked for "
                "again with other models or values, and no more are answered again"
            )
            raise RunError.at(where, what, f"ask the study lead why; the data steward may approve {key[:12]} again")

    def permit_evaluation(self, key: str) -> None:
        """RunError when the approval is used up: metrics of enough models would tell who was trained on. The images of
        a study's public site may be asked about as often as there are updates."""
        standing = self.standing(key)
        if standing.by == POLICY:
            return
        study = self.find(key).study
        most = evaluations(study.stop.rounds)
        if study.evaluation.public != self._home.site.name and self._home.audit.evaluations(key) >= most:
            what = f"since the approval of {standing.at}, metrics were told {most} times, and no more are"
            remedy = f"ask the study lead why; the data steward may approve {key[:12]} again"
            raise RunError.at(f"study {key[:12]}", what, remedy)

    def _again(self, key: str) -> int:
        """How many trainings of a study were of a round that had been trained before, from another order."""
        done = self._home.participation
        return done.trainings_of_study(key) - len(done.rounds_of_study(key))

    def approve(self, key: str, by: str) -> Standing:
        """Let a study train for as many rounds as it says, from now on."""
        key = self.find(key).hash
        before = len(self._home.participation.rounds_of_study(key))
        return self._decide(Standing(key, "approved", by, now(), before=before, again=self._again(key)))

    def reject(self, key: str, by: str, note: str) -> Standing:
        """Refuse a study; the note is told to the coordinator. InputError when it is empty."""
        if not note.strip():
            raise InputError.at("--note", "is empty", "say why, in words that the study lead may read")
        return self._decide(Standing(self.find(key).hash, "rejected", by, now(), note.strip()))

    def all(self) -> list[Offer]:
        """All studies that were offered, in the order of their first offers."""
        files = [path for path in self._home.studies.glob("*.json") if not path.name.endswith(_DECISION)]
        return sorted((_read_offer(path) for path in files), key=lambda offer: (offer.at, offer.hash))

    def find(self, prefix: str) -> Offer:
        """The study whose hash begins so. InputError when there is none, more than one, or the prefix is too short."""
        if len(prefix) < SHORTEST or not set(prefix) <= set("0123456789abcdef"):
            raise InputError.at(prefix, "is not the beginning of a study's hash", f"give {SHORTEST} characters or more")
        files = sorted(path for path in self._home.studies.glob(f"{prefix}*.json") if not path.name.endswith(_DECISION))
        if len(files) != 1:
            what = "fits no study that was offered" if not files else f"fits {len(files)} studies"
            raise InputError.at(prefix, what, "medfl site studies lists them" if not files else "give more characters")
        return _read_offer(files[0])

    def _decide(self, standing: Standing) -> Standing:
        if standing.by == POLICY:
            raise InputError.at("--by", f"{POLICY!r} is nobody's name", "give the name of the person who decides")
        # written down first: no decision counts that the log does not have
        told = {"study": standing.study, "by": standing.by}
        self._home.audit.append(standing.state, told | ({"note": standing.note} if standing.note else {}))
        write_json(self._decision_file(standing.study), asdict(standing))
        return standing

    def _standing(self, key: str) -> Standing:
        offer, path = self.find(key), self._decision_file(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return self._undecided(offer)
        return _decision(path, text, key)

    def _undecided(self, offer: Offer) -> Standing:
        site = self._home.site
        if site.policy.approve == "ask":
            return Standing(offer.hash, "held", note="waits for the data steward")
        if found := [fault.what for fault in refusals(offer.study, site)]:
            return Standing(offer.hash, "held", note="the site's policy does not allow it: " + "; ".join(found))
        return Standing(offer.hash, "approved", POLICY, offer.at)

    def _offer_file(self, key: str) -> Path:
        return self._home.studies / f"{key}.json"

    def _decision_file(self, key: str) -> Path:
        return self._home.studies / f"{key}{_DECISION}"


def repeats(rounds: int) -> int:
    """How many rounds an approval lets be trained again from another order, as when a coordinator lost some."""
    return max(3, rounds // 10)


def evaluations(rounds: int) -> int:
    """How often an approval lets metrics be told: of each split after each round, and after those that are repeated."""
    return len(_SPLITS) * (rounds + repeats(rounds))


def refusals(study: Study, site: Site, cases: Mapping[str, int] | None = None) -> Faults:
    """Everything in a study that the site's policy does not allow. cases: by split; None where they are not known yet:
    then what depends on their number is left to the moment when the images are loaded."""
    faults, where = Faults(), f"site {site.name}, policy"
    if study.task.kind not in site.policy.tasks:
        allowed = ", ".join(site.policy.tasks) or "nothing"
        faults.add(where, f"the study trains {study.task.kind}, the site allows {allowed}", "change policy.tasks")
    trains = site.name not in study.evaluation.unseen and (cases is None or cases.get("train", 0) > 0)
    minimum = max(site.policy.minimum_cases, study.data.minimum_cases)
    if trains and cases is not None and cases["train"] < minimum:
        faults.add(where, f"{cases['train']} training cases are fewer than the {minimum} asked for", "add images")
    if trains and reads_shared(study) and not site.shared:
        faults.add(
            f"site {site.name}",
            f"the study's data plan {study.local.plan.kind} trains on images beside the site's own, and its file names "
            "none under `shared`",
            "add them with their consent, or refuse the study",
        )
    known = dict.fromkeys(_SPLITS, 1) if cases is None else cases
    known = {split: number for split, number in known.items() if number}
    faults.extend(policy_refusals(study, site.name, site.policy, known))
    return faults


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read_offer(path: Path) -> Offer:
    """RunError when the file does not hold the study that it is named after."""
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        study = study_from_json(told["study"])
        found = Offer(study_hash(study), study, str(told["coordinator"]), str(told["run"]), str(told["at"]))
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise RunError.at(path, f"is not a study that was offered: {error}", _CHANGED) from error
    if path.stem != found.hash:
        raise RunError.at(path, f"holds the study {found.hash[:12]}, not the one it is named after", _CHANGED)
    return found


def _decision(path: Path, text: str, key: str) -> Standing:
    try:
        found = Standing(**json.loads(text))
        if found.study != key or found.state not in ("approved", "rejected") or found.by == POLICY:
            raise ValueError("it is not a decision about this study")
    except (ValueError, TypeError) as error:
        raise RunError.at(path, f"cannot be read: {error}", "decide again: medfl site approve, or reject") from error
    return found


_CHANGED = "it was changed, or written by another version of medfl: remove it and have the study offered again"
