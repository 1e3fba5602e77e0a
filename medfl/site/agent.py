"""What runs at a hospital: answers what the site's policy and steward allow. What was answered before is answered
again, also after a restart."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from medfl.data.base import Case
from medfl.errors import InputError, RunError
from medfl.learning.messages import SiteFailure, SiteInfo
from medfl.privacy.channels.base import HAND_OVER, Identity
from medfl.site import left_out
from medfl.site.answering import LOOK, Abandoned, Answering
from medfl.site.home import SiteHome, patient_of
from medfl.site.memory import DiskMemory
from medfl.site.roster import check_roster
from medfl.site.storage import prune
from medfl.site.studies import Standing, Studies
from medfl.study.digest import study_hash
from medfl.study.load import refuse_conflicts, study_from_json
from medfl.study.model import Storage
from medfl.study.sources import RunInputs, own_cases
from medfl.transport.memory import SiteMemory
from medfl.transport.messages import encode_reply
from medfl.transport.serving import Serving, info_json, trained
from medfl.update.wire import Buffer, parts

if TYPE_CHECKING:
    from medfl.transport.host import SiteHost

log = logging.getLogger(__name__)

_TELL = 0.5
_PRUNE = 3600.0


def make_host(inputs: RunInputs, cases: Sequence[Case], memory: SiteMemory, identity: Identity) -> "SiteHost":
    """What trains and evaluates; imports torch only now, so that a site is there before."""
    from medfl.transport.host import SiteHost

    (site,) = inputs.sites
    return SiteHost(inputs, {site.name: cases}, {site.name: memory}, {site.name: identity})


HostMaker = Callable[[RunInputs, Sequence[Case], SiteMemory, Identity], "SiteHost"]


class Agent(Answering):
    """A site's: trains and evaluates what its policy and its steward allow."""

    def __init__(self, home: SiteHome, identity: Identity, make: HostMaker = make_host) -> None:
        super().__init__(home.name, home.work, home.audit)
        self.home = home
        self._identity = identity
        self._make = make
        self._studies = Studies(home)
        self._memory = DiskMemory(home.work / "runs")
        self._work = _Work()
        self._storage = home.site.storage
        self._pruned = time.monotonic()

    def about(self) -> dict[str, Any]:
        return {"run": self._work.run, "round": self._work.round}

    def storage(self) -> Storage:
        try:
            self._storage = self.home.site.storage
        except InputError as error:
            # while it is edited what it said before counts
            log.error("%s", error)
        return self._storage

    def over(self) -> None:
        try:
            self._memory.ended()
        except OSError as error:
            log.error("that the run is over cannot be noted, and it is kept for longer: %s", error)

    def work(self) -> None:
        self._prune()
        super().work()

    def _prune(self, spare: str = "") -> None:
        self._pruned = time.monotonic()
        prune(self.home.work / "runs", self.storage(), self.audit, spare)

    def look_around(self) -> None:
        if time.monotonic() - self._pruned >= _PRUNE:
            self._prune(self._work.run)
        pause = self.home.paused
        if pause is not None and self.state[0] == "ready":
            self.say("paused", pause.note)
        elif pause is None and self.state[0] == "paused":
            self.say("ready")

    def do(self, id_: str, kind: str, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        if kind == "join":
            return self._join(id_, header)
        work = self._work
        if work.hash and kind in ("train", "evaluate"):
            self._leave_out_withdrawn()
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
        if kind == "evaluate":
            self._studies.permit_evaluation(work.hash)
        handed = kind == "exchange" and header.get("stage") == HAND_OVER
        if handed:
            self._may_hand_over(header)
        answer = work.serving.answer(kind, header, buffers)
        if handed and answer is not None and len(answer) > 1:
            told = header["message"]
            self.audit.append("handed-over", {"run": work.run, "round": told["round"], "order": told["order"]})
        if kind == "evaluate":
            self.audit.append("evaluated", {"study": work.hash, "run": work.run, "split": str(header["split"])})
        return answer or parts({"answer": "silent"})

    def _join(self, id_: str, header: Mapping[str, Any]) -> list[Buffer]:
        study = study_from_json(header["study"])
        refuse_conflicts(study)
        standing = self._approved(id_, study_hash(study), self._studies.offer(study, "", self.coordinator))
        if standing.state == "rejected":
            self.say("rejected", standing.note)
            raise RunError.at(f"site {self.name}", f"its data steward refuses the study: {standing.note}")
        if self._work.hash != standing.study or self._work.serving is None:
            # nothing of the study before is left: neither its images nor its run
            self._work = _Work()
            self._work.study = study
            info = self._load()
            self._work.hash = standing.study
            shared = {"shared": dict(info.shared)} if info.shared else {}
            self.audit.append("joined", {"study": standing.study, "cases": dict(info.cases), **shared})
        self.say("ready")
        return parts({"answer": "open", "info": info_json(self._work.info)})

    def _approved(self, id_: str, key: str, standing: Standing) -> Standing:
        """Wait for the steward's decision."""
        while standing.state == "held":
            if self.unwanted(id_):
                raise Abandoned.at(f"study {key[:12]}", "was not decided on")
            if self.state[0] != "held":
                self.say("held", f"study {key[:12]} waits for approval")
            time.sleep(LOOK)
            standing = self._studies.standing(key)
        return standing

    def _load(self) -> SiteInfo:
        """Load the site's images, but for those of patients who were withdrawn. When that fails there are none: what
        was loaded before may not be used any more."""
        work = self._work
        if work.study is None:
            raise RunError.at(f"site {self.name}", "has no study")
        self.say("loading")
        work.serving = None
        inputs = RunInputs(study=work.study, sites=(self.home.site,), cache=self.home.cache, ledgers=self.home.ledgers)
        withdrawn = self.home.participation.withdrawn
        try:
            cases = self.home.without_withdrawn(own_cases(inputs))
            work.patients = sorted({patient_of(case) for case in cases if case.split == "train"})
            host = self._make(inputs, cases, self._memory, self._identity)
            (found,) = host.open()
        except InputError as error:
            left_out.keep(self.home.work, {}, error)
            raise left_out.discreet(self.name, error) from error
        left_out.keep(self.home.work, found.skipped)
        if found.skipped:
            log.warning("left out: %s; medfl site status names them", left_out.in_words(found.skipped))
        host.admit()
        work.serving, work.withdrawn = Serving(host), withdrawn
        # the names of files are the hospital's own business
        work.info = replace(found, skipped=left_out.outward_all(found.skipped))
        return work.info

    def _leave_out_withdrawn(self) -> None:
        """Load the images anew when a patient was withdrawn since, or when that did not work the last time."""
        work = self._work
        if work.serving is not None and self.home.participation.withdrawn == work.withdrawn:
            return
        self._load()
        serving, work.serving = work.serving, None
        if serving is not None and work.run:
            serving.answer("begin", dict(work.beginning), [])
            self.home.participation.begin(work.run, work.hash, work.patients)
        work.serving = serving

    def _begin(self, serving: Serving, header: dict[str, Any]) -> list[Buffer]:
        self._prune(str(header["run"]))
        check_roster(self.home.pki / "roster.json", self.name, header.get("roster", {}))
        answer = serving.answer("begin", dict(header), [])
        work = self._work
        if header["run"] != work.run:
            self.audit.append("begun", {"study": work.hash, "run": header["run"]})
        work.run, work.beginning = str(header["run"]), dict(header)
        self.home.participation.begin(work.run, work.hash, work.patients)
        self.say("ready")
        return answer or parts({"answer": "silent"})

    def _may_hand_over(self, header: Mapping[str, Any]) -> None:
        """The steward's word counts until the last moment, also while an update waits for its sum."""
        pause, order = self.home.paused, dict(header["message"]).get("order")
        if pause is not None:
            raise RunError.at(f"site {self.name}", f"is paused by its steward: {pause.note}")
        if type(order) is not int or not self.home.participation.stands(self._work.run, order):
            what = "was not trained, or a patient who took part in it was withdrawn since"
            raise RunError.at(f"site {self.name}, order {order}", what, "ask the site to train again")

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
        work.round = round_
        self.say("training", f"round {round_}")
        ticker = _Ticker(self, id_)
        answer, _ = work.serving.train(header, buffers, ticker)
        self.progress = (0, 0)
        if isinstance(answer, SiteFailure):
            if self.unwanted(id_):
                # broken off by this site itself: asked again, maybe by another process of it, it is trained again
                raise Abandoned.at(f"site {self.name}, round {round_}", "was broken off")
            self.audit.append("failed", {"run": work.run, "round": round_})
            self.say("ready", f"round {round_} failed")
            return trained(answer)
        # the steward's word counts until the last moment
        self._studies.permit(work.hash, work.run, round_)
        pause = self.home.paused
        if pause is not None:
            self.say("paused", pause.note)
            return trained(SiteFailure(self.name, round_, f"site {self.name} was paused by its steward"))
        self.home.participation.trained(work.run, round_, self._memory.order)
        found, digest = encode_reply(answer), sha256()
        for piece in found:
            digest.update(piece)
        told = {"run": work.run, "round": round_, "cases": answer.cases, "message": digest.hexdigest()}
        if answer.shared:
            told["shared"] = answer.shared
        if answer.prototypes is not None:
            told["prototypes"] = answer.prototypes.size
        self.audit.append("trained", told)
        self.say("ready")
        return found


class _Work:
    """The study that the site takes part in."""

    def __init__(self) -> None:
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
        agent.progress = (done, steps)
        if agent.unwanted(self._id):
            raise Abandoned.at(f"site {agent.name}", "stops a training that is not awaited any more")
        now = time.monotonic()
        if now - self._last >= _TELL:
            self._last = now
            agent.hurry()
