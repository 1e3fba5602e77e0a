"""What the page shows, kept up to date by a run's hooks, which come from any thread."""

import math
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfl.coordinator import records
from medfl.coordinator.journal import Journal, Where, journal_in
from medfl.coordinator.observer import Observer
from medfl.federation.outcome import Contribution, RoundPlan
from medfl.learning.messages import SiteInfo
from medfl.privacy.mechanisms.base import MECHANISMS
from medfl.report.dashboard import figures
from medfl.report.dashboard.words import OUTCOMES, STATES, TAKES_PART, plain
from medfl.report.run import read_run
from medfl.report.text import count, label, listed, number, stopped
from medfl.study.model import Study
from medfl.tasks.base import TASKS

PARTS = ("run", "sites", "rounds", "privacy", "regulator", "traffic", "events")
KEPT_EVENTS = 500


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class LiveState(Observer):
    """A run as it goes on: everything JSON-able, nothing about single patients.

    Each change raises `version`; `changes` returns the parts that changed after one. epoch: a name of this object, for
    readers that knew an earlier one.
    """

    def __init__(self, study: Study) -> None:
        self._begin(study.to_json())

    @classmethod
    def from_run(cls, folder: Path) -> "LiveState":
        """What the run in `folder` did so far, for a coordinator that goes on with it. InputError when there is no run
        or its journal cannot be read."""
        run = read_run(folder)
        state = cls.__new__(cls)
        state._begin(run.study)
        state._rounds = [figures.trimmed(record, state._primary) for record in run.rounds]
        where = journal_in(folder)
        if where is not None:
            state._events.extend(_past(where))
        if run.summary["stopped_by"] is not None:
            state._end(run.summary)
        return state

    def _begin(self, study: Mapping[str, Any]) -> None:
        self.epoch = secrets.token_hex(4)
        self._study = study
        self._primary: str = TASKS.load(study["task"]["kind"]).primary  # type: ignore[attr-defined]
        self._lock = threading.RLock()
        self._versions = dict.fromkeys(PARTS, 1)
        self._made: dict[str, tuple[int, Any]] = {}
        self._rounds: list[dict[str, Any]] = []
        self._sites: dict[str, dict[str, Any]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
        self._live: dict[str, Any] = {
            "phase": "starting",
            "round": None,
            "planned": study["stop"]["rounds"],
            "since": _now(),
            "stopped_by": None,
            "ending": "",
            "final": None,
        }
        self._final: Mapping[str, Any] = {}

    @property
    def version(self) -> int:
        return max(self._versions.values())

    def snapshot(self) -> dict[str, Any]:
        """Everything, with `version` and `epoch`."""
        with self._lock:
            return {"epoch": self.epoch, "version": self.version, **self.changes(0)[1]}

    def changes(self, since: int) -> tuple[int, dict[str, Any]]:
        """The version now, and the parts that changed after version `since`. What is returned is not changed later,
        and must not be changed."""
        with self._lock:
            return self.version, {name: self._part(name) for name in PARTS if self._versions[name] > since}

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        with self._changing("run", "sites", "rounds", "regulator", "traffic", "privacy"):
            self._rounds = self._rounds[:done]
            self._final = {}
            self._live.update(phase="between", planned=rounds, stopped_by=None, final=None)
            for info in sites:
                mine = self._site(info.name)
                mine.update(cases=dict(info.cases), skipped=len(info.skipped))
                if mine["state"] in ("away", "connected", "held", "loading"):
                    mine.update(state="ready", detail="", since=_now())
            going_on = f"; the run goes on after round {done}" if done else ""
            self._note("opened", "", f"{count(len(sites), 'site')} ready for {count(rounds, 'round')}{going_on}")

    def presence(self, site: str, state: str, detail: str = "") -> None:
        with self._changing("sites"):
            said, mine = plain(detail, site), self._site(site)
            # in every round each site trains and is ready again, which the log need not say
            usual = state == "training" or (mine["state"] == "training" and state == "ready" and not said)
            mine.update(state=state, detail=said, since=_now())
            if state not in TAKES_PART:
                mine.update(activity="", progress=None)
            if not usual:
                self._note(state, site, STATES.get(state, state) + (f": {said}" if said else ""))

    def round_started(self, plan: RoundPlan) -> None:
        with self._changing("run", "sites"):
            self._live.update(phase="training", round=plan.round)
            for name in {*self._sites, *plan.cohort}:
                activity = "waiting" if name in plan.cohort else "not in this round" if name in plan.cases else ""
                self._site(name).update(activity=activity, progress=None)
            self._note("round", "", f"round {plan.round} started with {listed(plan.cohort)}")

    def local_progress(self, site: str, done: int, steps: int) -> None:
        with self._changing("sites"):
            self._site(site).update(activity="training", progress={"done": done, "steps": steps})

    def answered(self, site: str, contribution: Contribution) -> None:
        with self._changing("sites"):
            mine, verdict = self._site(site), contribution.verdict
            mine.update(progress=None, loss=records.number(contribution.loss))
            if contribution.failure:
                mine["activity"] = "failed"
                self._note("failed", site, f"failed: {plain(contribution.failure, site)}")
            elif verdict is None:
                mine["activity"] = "kept back"
            else:
                mine["activity"] = OUTCOMES[verdict.outcome]
                if verdict.outcome != "admit":
                    self._note(verdict.outcome, site, f"{OUTCOMES[verdict.outcome]} by {verdict.rule}")

    def evaluating(self, split: str, site: str) -> None:
        with self._changing("run", "sites"):
            self._live["phase"] = "evaluating"
            self._site(site)["activity"] = "evaluated"

    def round_finished(self, record: Mapping[str, Any]) -> None:
        with self._changing("run", "sites", "rounds", "regulator", "traffic", "privacy"):
            self._rounds.append(figures.trimmed(record, self._primary))
            self._live.update(phase="between", round=None)
            for mine in self._sites.values():
                mine.update(activity="", progress=None, loss=None)
            self._note("finished", "", self._finished(self._rounds[-1]))

    def ended(self, summary: Mapping[str, Any]) -> None:
        with self._changing("run", "sites", "traffic", "privacy"):
            self._end(summary)
            self._note("ended", "", f"the run ended. {self._live['ending']}")

    def close(self) -> None:
        with self._changing("run", "sites"):
            if self._live["phase"] != "ended":
                self._live.update(phase="broken off", round=None)
                self._note("broken off", "", "the run was broken off; it can be resumed")

    def _end(self, summary: Mapping[str, Any]) -> None:
        self._final = summary
        found = figures.metrics_of(summary["metrics"], self._primary)
        reason = summary["stopped_by"]
        self._live.update(phase="ended", round=None, stopped_by=reason, final=found)
        self._live["ending"] = stopped(self._study["stop"], reason)
        for mine in self._sites.values():
            mine.update(activity="", progress=None, loss=None)

    def _site(self, name: str) -> dict[str, Any]:
        empty = {"state": "away", "detail": "", "since": _now(), "cases": {}, "skipped": 0}
        return self._sites.setdefault(name, {**empty, "activity": "", "progress": None, "loss": None})

    def _finished(self, record: Mapping[str, Any]) -> str:
        found = ((record["metrics"] or {}).get("global") or {}).get(self._primary) or {}
        words = [f"round {record['round']} finished", f"loss {number(record['losses']['mean'])}"]
        if found.get("n"):
            words.append(f"{label(self._primary)} {number(found['value'])} (n {found['n']})")
        if record["void"]:
            words.append(f"void: {record['void']}")
        return ", ".join(words)

    @contextmanager
    def _changing(self, *parts: str) -> Iterator[None]:
        with self._lock:
            before = len(self._events), self._events[-1]["number"] if self._events else 0
            yield
            after = len(self._events), self._events[-1]["number"] if self._events else 0
            named = (*parts, "events") if before != after else parts
            self._versions.update(dict.fromkeys(named, self.version + 1))

    def _note(self, kind: str, site: str, text: str) -> None:
        last = self._events[-1]["number"] if self._events else 0
        self._events.append({"number": last + 1, "at": _now(), "kind": kind, "site": site, "text": text})

    def _part(self, name: str) -> Any:
        """A part as it is; made once for each of its versions."""
        version = self._versions[name]
        kept = self._made.get(name)
        if kept is None or kept[0] != version:
            makers: dict[str, Callable[[], Any]] = {
                "run": self._run,
                "sites": self._all_sites,
                "rounds": lambda: [figures.row(record, self._primary) for record in self._rounds],
                "privacy": self._privacy,
                "regulator": lambda: figures.regulator(self._rounds),
                "traffic": lambda: self._final.get("traffic") or records.traffic_total(self._rounds, {}),
                "events": lambda: list(self._events),
            }
            self._made[name] = kept = (version, makers[name]())
        return kept[1]

    def _run(self) -> dict[str, Any]:
        study = self._study
        return {
            "study": study["name"],
            "description": study["description"],
            "task": study["task"]["kind"],
            "primary": self._primary,
            "channel": study["update"]["channel"]["kind"],
            "done": len(self._rounds),
            "seconds_left": figures.seconds_left(self._rounds, self._live["planned"]),
            "latest": next((record["metrics"] for record in reversed(self._rounds) if record["metrics"]), None),
            **self._live,
        }

    def _all_sites(self) -> dict[str, Any]:
        totals, unseen = self._totals(), self._study["evaluation"]["unseen"]
        names = sorted({*self._sites, *totals})
        return {name: self._one_site(name, totals.get(name, {}), name in unseen) for name in names}

    def _one_site(self, name: str, total: Mapping[str, Any], unseen: bool) -> dict[str, Any]:
        live = self._sites.get(name) or {"state": "away", "detail": "", "since": "", "cases": {}, "skipped": 0}
        loss = live.get("loss")
        return {
            "role": "unseen" if unseen else "training",
            "activity": "",
            "progress": None,
            **live,
            "last_round": total.get("last_round"),
            "last_loss": total.get("last_loss") if loss is None else loss,
            "last": total.get("last"),
            "outcomes": total.get("outcomes", {}),
            "metrics": total.get("metrics"),
            "metrics_round": total.get("metrics_round"),
            "up_bytes": total.get("up_bytes", 0),
            "down_bytes": total.get("down_bytes", 0),
        }

    def _totals(self) -> dict[str, dict[str, Any]]:
        version = self._versions["rounds"]
        kept = self._made.get("totals")
        if kept is None or kept[0] != version:
            self._made["totals"] = kept = (version, figures.site_totals(self._rounds))
        found: dict[str, dict[str, Any]] = kept[1]
        return found

    def _privacy(self) -> dict[str, Any] | None:
        """What was spent so far of what; None for a study without differential privacy."""
        chosen = self._study.get("privacy")
        if chosen is None:
            return None
        unit: str = MECHANISMS.load(chosen["kind"]).unit  # type: ignore[attr-defined]
        spent = [record["epsilon"] for record in self._rounds if record["epsilon"] is not None]
        final = (self._final.get("privacy") or {}).get("epsilon")
        epsilon = final if final is not None else max(spent, default=0.0 if not self._rounds else None)
        return {
            "mechanism": chosen["kind"],
            "unit": unit,
            "epsilon": epsilon if epsilon is None or math.isfinite(epsilon) else None,
            "delta": chosen["delta"],
            "budget": chosen["epsilon"],
        }


def _past(journal: Where) -> Iterator[dict[str, Any]]:
    """The journal's events as entries of the log; the log keeps the newest."""
    opened = Journal.open(journal, read_only=True)
    try:
        for place, event in enumerate(opened.events(), 1):
            text = _past_text(event)
            if text:
                entry = {"at": event["at"][:19] + "+00:00", "kind": event["kind"], "site": event["site"]}
                yield {"number": place, **entry, "text": text}
    finally:
        opened.close()


def _past_text(event: Mapping[str, Any]) -> str:
    kind, detail, round_ = event["kind"], event["detail"], event["round"]
    if kind == "plan":
        return f"round {round_} started with {listed(detail['cohort'])}"
    if kind == "verdict" and detail["outcome"] == "failed":
        return f"round {round_}: failed: {plain(detail['reason'], event['site'])}"
    if kind == "verdict" and detail["outcome"] != "admit":
        return f"round {round_}: {OUTCOMES.get(detail['outcome'], detail['outcome'])} by {detail.get('rule', '')}"
    if kind in ("void", "budget"):
        return f"round {round_}: {detail['reason']}"
    return ""
