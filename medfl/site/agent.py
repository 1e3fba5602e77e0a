"""What runs at a hospital: holds a line to the coordinator, and answers what the site's policy and steward allow.

One thread keeps the line; this one works, one request after another. What is asked is data, never code: a study, a
model, a round's numbers. What was answered before is answered again, also after a restart.
"""

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from medfl import __version__
from medfl.audit.log import AuditLog
from medfl.data.base import Case
from medfl.errors import MedflError, RunError
from medfl.learning.messages import SiteFailure, SiteInfo
from medfl.privacy.channels.base import Identity
from medfl.site.home import SiteHome, patient_of, write_json
from medfl.site.home import now as timestamp
from medfl.site.memory import DiskMemory
from medfl.site.studies import Standing, Studies
from medfl.study.digest import study_hash
from medfl.study.load import study_from_json
from medfl.study.sources import RunInputs, own_cases
from medfl.transport.mail import Line, Mailbox, Outgoing, Wanted
from medfl.transport.memory import SiteMemory
from medfl.transport.messages import encode_reply
from medfl.transport.protocol.medfl_pb2 import Beat, Hello, Welcome
from medfl.transport.serving import Serving, error_json, info_json, trained
from medfl.update.wire import Buffer, parts, unpack

if TYPE_CHECKING:
    from medfl.transport.host import SiteHost

log = logging.getLogger(__name__)

LARGEST = 2**32
"""Bytes of a message from the coordinator."""
_COORDINATOR = "coordinator"
_PILED = 256
_LOOK = 0.5
_TELL = 0.5
_NAMES = re.compile(r"\S*[\d/\\]\S*")


class Abandoned(RunError):
    """What was being done is not wanted any more."""


def make_host(inputs: RunInputs, cases: Sequence[Case], memory: SiteMemory, identity: Identity) -> "SiteHost":
    """What trains and evaluates; imports torch only now, so that a site is there before."""
    from medfl.transport.host import SiteHost

    (site,) = inputs.sites
    return SiteHost(inputs, {site.name: cases}, {site.name: memory}, {site.name: identity})


HostMaker = Callable[[RunInputs, Sequence[Case], SiteMemory, Identity], "SiteHost"]


class Agent:
    """One site's. A transport keeps a line to `box`; `work` answers until told to stop."""

    def __init__(self, home: SiteHome, identity: Identity, make: HostMaker = make_host) -> None:
        self.home = home
        self.name = home.name
        self.session = token_hex(16)
        self.stop = threading.Event()
        self._identity = identity
        self._make = make
        self._audit: AuditLog = home.audit
        self._studies = Studies(home)
        self._memory = DiskMemory(home.work / "runs")
        self._requests: queue.Queue[tuple[str, memoryview]] = queue.Queue()
        self._seen: dict[str, None] = {}
        self._unwanted: set[str] = set()
        self._state: tuple[str, str] = ("away", "")
        self._progress = (0, 0)
        self._line: Line | None = None
        self._work = _Work()
        self.box = Mailbox(
            home.work / "spool",
            self._wanted,
            self._arrived,
            delivered=self._delivered,
            beat=self._beat,
            forgotten=self._forgotten,
            unstored=self._unstored,
        )

    # the line's thread

    def hello(self) -> Hello:
        return Hello(
            name=self.name,
            session=self.session,
            software=f"medfl {__version__}",
            audit=self._audit.head,
            kept=self._audit.kept.get(_COORDINATOR, ""),
        )

    def welcomed(self, welcome: Welcome, line: Line) -> None:
        """A line is open."""
        if welcome.kept and not self._audit.holds(welcome.kept):
            self._audit.append("log-cut", {"known-to": _COORDINATOR, "head": welcome.kept})
            log.error("the coordinator kept a head of this site's audit log that the log does not hold: it was cut")
        if welcome.audit:
            self._audit.keep(_COORDINATOR, welcome.audit)
        self._line, self._work.coordinator = line, welcome.coordinator
        self.say(*(self._state if self._state[0] != "away" else ("connected", "")))

    def _wanted(self, id_: str, size: int) -> Wanted:
        if size > LARGEST:
            raise RunError.at("coordinator", f"announced a message of {size} bytes, {LARGEST} are the limit")
        return "have" if id_ in self._seen else "take"

    def _arrived(self, id_: str, message: memoryview, came: int) -> None:
        if self._requests.qsize() >= _PILED:
            raise RunError.at("coordinator", f"asks faster than the site answers: {_PILED} requests wait")
        self._seen[id_] = None
        while len(self._seen) > 4096:
            self._seen.pop(next(iter(self._seen)))
        self._unwanted.discard(id_)
        self._requests.put((id_, message))

    def _delivered(self, id_: str) -> None:
        """The answer is there. Asked again, by a coordinator that lost it, the site answers again."""
        self._seen.pop(id_, None)
        self.box.clear(keep=self._seen.__contains__)

    def _forgotten(self, id_: str) -> None:
        if id_ in self._seen:
            self._unwanted.add(id_)
            self._seen.pop(id_, None)

    def _unstored(self, id_: str, error: OSError) -> None:
        log.error("a request cannot be stored: %s", error)
        what = f"could not store the request: {error.strerror}"
        answer = parts(error_json(RunError.at(f"site {self.name}", what, "make room on its disk")))
        self.box.send(Outgoing(id_, answer))

    def _beat(self) -> Beat:
        done, steps = self._progress
        return Beat(state=self._state[0], detail=self._state[1], done=done, steps=steps)

    def say(self, state: str, detail: str = "") -> None:
        """What the site is doing, for the coordinator and for `medfl site status`."""
        if (state, detail) != self._state:
            log.info("%s%s", state, f": {detail}" if detail else "")
        self._state = state, detail
        told = {"at": timestamp(), "state": state, "detail": detail, "session": self.session}
        about = {"coordinator": self._work.coordinator, "run": self._work.run, "round": self._work.round}
        write_json(self.home.status, told | about)
        if self._line is not None:
            self._line.hurry()

    # the working thread

    def work(self) -> None:
        """Answer requests until told to stop."""
        while not self.stop.is_set():
            try:
                id_, message = self._requests.get(timeout=_LOOK)
            except queue.Empty:
                self._look_around()
                continue
            if id_ not in self._unwanted:
                self._answer(id_, message)
            if id_.startswith("train"):
                # a process that is killed now finds the order again and need not load the model once more
                self.box.clear(keep=id_.__eq__)

    def _look_around(self) -> None:
        pause = self.home.paused
        if pause is not None and self._state[0] == "ready":
            self.say("paused", pause.note)
        elif pause is None and self._state[0] == "paused":
            self.say("ready")

    def _answer(self, id_: str, message: memoryview) -> None:
        try:
            header, buffers = unpack(message)
            answer = self._do(id_, str(header.pop("do", "")), header, buffers)
        except Abandoned as error:
            log.info("%s", error)
            self.say("ready")
            # asked again, it is done again
            self._seen.pop(id_, None)
            return
        except MedflError as error:
            log.warning("%s", error)
            answer = parts(error_json(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.exception("request %s", id_)
            what = f"a request could not be read: {type(error).__name__}"
            answer = parts(error_json(RunError.at(f"site {self.name}", what, "use one version of medfl")))
        except (OSError, MemoryError, RuntimeError) as error:
            log.exception("request %s", id_)
            what = f"could not answer: {type(error).__name__}"
            answer = parts(error_json(RunError.at(f"site {self.name}", what, "its steward finds more in its log")))
        self.box.send(Outgoing(id_, answer))

    def _do(self, id_: str, kind: str, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        if kind == "join":
            return self._join(id_, header)
        work = self._work
        if work.serving is None:
            raise RunError.at(f"site {self.name}", "was asked before it joined a study")
        if header.get("site", self.name) != self.name:
            raise RunError.at(f"site {self.name}", "was asked in another site's name")
        if kind == "begin":
            return self._begin(work.serving, header)
        if kind == "train":
            return self._train(id_, header, buffers)
        if kind not in ("evaluate", "exchange"):
            raise RunError.at(f"site {self.name}", f"was asked to {kind[:40]!r}, which no coordinator may")
        self._studies_allow()
        answer = work.serving.answer(kind, header, buffers)
        if kind == "evaluate":
            self._audit.append("evaluated", {"study": work.hash, "run": work.run, "split": str(header["split"])})
        return answer or parts({"answer": "silent"})

    def _join(self, id_: str, header: Mapping[str, Any]) -> list[Buffer]:
        study = study_from_json(header["study"])
        standing = self._approved(id_, study_hash(study), self._studies.offer(study, "", self._work.coordinator))
        if standing.state == "rejected":
            self.say("rejected", standing.note)
            raise RunError.at(f"site {self.name}", f"its data steward refuses the study: {standing.note}")
        if self._work.hash != standing.study or self._work.serving is None:
            self._work.hash, self._work.study = standing.study, study
            info = self._load()
            self._audit.append("joined", {"study": standing.study, "cases": dict(info.cases)})
        self.say("ready")
        return parts({"answer": "open", "info": info_json(self._work.info)})

    def _approved(self, id_: str, key: str, standing: Standing) -> Standing:
        """Wait for the steward's decision."""
        while standing.state == "held":
            if self.stop.is_set() or id_ in self._unwanted:
                raise Abandoned.at(f"study {key[:12]}", "was not decided on")
            if self._state[0] != "held":
                self.say("held", f"study {key[:12]} waits for approval")
            time.sleep(_LOOK)
            standing = self._studies.standing(key)
        return standing

    def _load(self) -> SiteInfo:
        """Load the site's images, but for those of patients who were withdrawn."""
        work = self._work
        if work.study is None:
            raise RunError.at(f"site {self.name}", "has no study")
        self.say("loading")
        inputs = RunInputs(study=work.study, sites=(self.home.site,), cache=self.home.cache, ledgers=self.home.ledgers)
        work.withdrawn = self.home.participation.withdrawn
        cases = self.home.without_withdrawn(own_cases(inputs))
        work.patients = sorted({patient_of(case) for case in cases if case.split == "train"})
        host = self._make(inputs, cases, self._memory, self._identity)
        (found,) = host.open()
        host.admit()
        work.serving = Serving(host)
        for key, reason in found.skipped.items():
            log.warning("left out %s: %s", key, reason)
        # the names of files are the hospital's own business
        skipped = {f"case {n}": _NAMES.sub("..", reason) for n, reason in enumerate(found.skipped.values(), 1)}
        work.info = replace(found, skipped=skipped)
        return work.info

    def _begin(self, serving: Serving, header: dict[str, Any]) -> list[Buffer]:
        self._check_roster(header.get("roster", {}))
        answer = serving.answer("begin", dict(header), [])
        work = self._work
        if header["run"] != work.run:
            self._audit.append("begun", {"study": work.hash, "run": header["run"]})
        work.run, work.beginning = str(header["run"]), dict(header)
        self.home.participation.begin(work.run, work.hash, work.patients)
        self.say("ready")
        return answer or parts({"answer": "silent"})

    def _check_roster(self, roster: Mapping[str, str]) -> None:
        """The other sites' signing keys, pinned when they are first seen: a coordinator that swaps one could otherwise
        listen in on masked sums."""
        path = self.home.pki / "roster.json"
        known: dict[str, str] = _json(path) if path.exists() else {}
        changed = sorted(site for site, key in roster.items() if known.get(site, key) != key)
        if changed:
            raise RunError.at(
                f"site {self.name}",
                f"knows {', '.join(changed)} by another signing key than the coordinator gives out",
                f"ask them, not the study lead; if they confirm it, remove them from {path.name}",
            )
        if roster.keys() - known.keys():
            write_json(path, known | dict(roster))

    def _studies_allow(self) -> None:
        standing = self._studies.standing(self._work.hash)
        if not standing.approved:
            raise RunError.at(f"site {self.name}", f"its data steward has {standing.state} the study {standing.note}")

    def _train(self, id_: str, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        work, round_ = self._work, int(header["round"])
        if work.run == "" or work.serving is None:
            raise RunError.at(f"site {self.name}", "was asked to train before the run began")
        pause = self.home.paused
        if pause is not None:
            return trained(SiteFailure(self.name, round_, f"site {self.name} is paused by its steward: {pause.note}"))
        self._studies.permit(work.hash, work.run, round_)
        if self.home.participation.withdrawn != work.withdrawn:
            self._load()
            work.serving.answer("begin", dict(work.beginning), [])
            self.home.participation.begin(work.run, work.hash, work.patients)
        work.round = round_
        self.say("training", f"round {round_}")
        ticker = _Ticker(self, id_)
        answer, _ = work.serving.train(header, buffers, ticker)
        self._progress = (0, 0)
        if isinstance(answer, SiteFailure):
            self._audit.append("failed", {"run": work.run, "round": round_})
            self.say("ready", f"round {round_} failed")
            return trained(answer)
        self.home.participation.trained(work.run, round_)
        self._audit.append("trained", {"run": work.run, "round": round_, "cases": answer.cases})
        self.say("ready")
        return encode_reply(answer)


class _Work:
    """The study that the site takes part in."""

    def __init__(self) -> None:
        self.coordinator = ""
        self.hash = ""
        self.study: Any = None
        self.run = ""
        self.round = 0
        self.beginning: dict[str, Any] = {}
        self.serving: Serving | None = None
        self.info = SiteInfo("", {})
        self.patients: list[str] = []
        self.withdrawn: frozenset[str] = frozenset()


class _Ticker:
    """Counts local steps; ends the training when nobody wants it any more."""

    def __init__(self, agent: Agent, id_: str) -> None:
        self._agent = agent
        self._id = id_
        self._last = 0.0

    def __call__(self, done: int, steps: int) -> None:
        agent = self._agent
        agent._progress = (done, steps)
        if agent.stop.is_set() or self._id in agent._unwanted:
            raise Abandoned.at(f"site {agent.name}", "stops a training that is not awaited any more")
        now = time.monotonic()
        if now - self._last >= _TELL and agent._line is not None:
            self._last = now
            agent._line.hurry()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
