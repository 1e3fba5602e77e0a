"""`medfl coordinator start`: the rounds of `medfl simulate`, over sites that call from other machines."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medfl.audit.log import AuditLog
from medfl.coordinator.journal import journal_in
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import Runner
from medfl.coordinator.settings import CoordinatorHome
from medfl.errors import InputError
from medfl.keys import Ask
from medfl.study.model import Study
from medfl.study.sources import Assignment, RunInputs
from medfl.transport.grpc.enrolment import EnrolmentServer
from medfl.transport.grpc.server import FederationServer
from medfl.transport.https.server import HttpsServer
from medfl.transport.invitation import join_address
from medfl.transport.limits import RateLimit
from medfl.transport.peers import Role
from medfl.transport.post import Post
from medfl.transport.reception import Reception
from medfl.transport.remote import Patience, Remote, Terms
from medfl.update.vector import FloatVector, Layout

log = logging.getLogger(__name__)

_ENROLMENTS = RateLimit(rate=0.5, burst=20)


class CoordinatorService:
    """One coordinator: its servers from `open` to `close`, and one run."""

    def __init__(self, folder: Path, observer: Observer, ask: Ask | None = None) -> None:
        self.home = CoordinatorHome.open(folder)
        self.study = self.home.study()
        self.audit = AuditLog.open(self.home.audit, "coordinator")
        self._observer = observer
        self._lock = threading.Lock()
        self._heads = RateLimit(rate=1 / 30, burst=10)
        authority = self.home.authority(ask)
        self._key, self._certificate = self.home.server_credentials(authority, ask)
        self.register = self.home.register(authority, self.note)
        name = self.home.settings.name
        self.post = Post(name, self.home.spool, observer.presence, witness=self._witness)
        self._federation = FederationServer(self.post, self.register, self.note, evidence=self._evidence)
        reception = Reception(self.register, self.note, _ENROLMENTS)
        self._enrolment = EnrolmentServer(reception)
        open_ = reception if self.home.settings.https_enrol else None
        self._https = HttpsServer(self.post, self.register, self.note, reception=open_)
        self.port = self.enrol_port = self.https_port = 0

    def note(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Into the audit log."""
        with self._lock:
            self.audit.append(kind, dict(detail))

    def _witness(self, party: str, head: str, kept: str) -> tuple[str, str]:
        name = f"site {party}"
        before = self.audit.kept.get(name, "")
        # who calls again and again with another head must not fill the log
        if self._heads.allow(party):
            if kept and not self.audit.holds(kept):
                self.note("log-cut", {"known-to": name, "head": kept})
            if head:
                self.audit.keep(name, head)
        return self.audit.head, before

    def _evidence(self) -> dict[str, Any]:
        from medfl.coordinator.evidence import evidence

        return evidence(self.home.run)

    def open(self) -> None:
        """Listen for sites."""
        settings, ca = self.home.settings, self.home.ca_certificate.read_bytes()
        self.port = self._federation.start(f"{settings.listen}:{settings.port}", self._key, self._certificate, ca)
        self.enrol_port = self._enrolment.start(
            f"{settings.listen}:{settings.enrol_port}", self._key, self._certificate
        )
        ports = {"port": self.port, "enrol-port": self.enrol_port}
        if settings.https_port is not None:
            address = join_address(settings.listen, settings.https_port)
            self.https_port = ports["https-port"] = self._https.start(address, self._key, self._certificate, ca)
        self.note("listening", ports)

    def run(self, minimum: int | None = None, wait: float = float("inf")) -> dict[str, Any]:
        """Begin the run, or go on with it, and see it to its end; the summary. minimum: sites that must have joined;
        wait: seconds after which the run begins without the others."""
        federation = self.study.federation
        expected = frozenset(self.home.settings.sites) or self._known("site")
        least = minimum or federation.quorum
        if minimum is not None:
            expected = frozenset()
        elif not expected:
            raise InputError.at(self.home.folder, "nobody was invited", "medfl coordinator invite DIR SITE")
        # no round can be opened without its key holder
        expected |= {holder} if (holder := getattr(self.study.update.channel, "key_holder", None)) else frozenset()
        patience = Patience(start=wait, deadline=federation.deadline or float("inf"), misses=federation.prune_after)
        remote = Remote(self.post, Terms(self.study.to_json(), expected, least, patience), initial_model(self.study))
        inputs = RunInputs(study=self.study, cache=self.home.folder / "cache", ledgers=self.home.ledgers)
        resumes = journal_in(self.home.run) is not None
        assignment = Assignment({}, frozenset(self.study.evaluation.unseen))
        journal = self.home.settings.journal
        runner = Runner(inputs, self.home.run, remote, assignment, self._observer, journal, durable=True)
        try:
            runner.resume() if resumes else runner.start()
            self.note("run", {"resumed": resumes})
            summary = runner.run()
        finally:
            runner.close()
        self.post.close("the run is over", over=True)
        self.note("finished", {"rounds": summary["rounds_completed"], "stopped-by": summary["stopped_by"]})
        return summary

    def _known(self, role: Role) -> frozenset[str]:
        """Everybody in this role that was invited and not revoked."""
        found = [peer for peer in self.register.peers() if peer.state in ("invited", "enrolled")]
        return frozenset(peer.name for peer in found if peer.role == role)

    def close(self) -> None:
        """End all lines; sites come back when there is a coordinator again."""
        self.post.close("the coordinator stops", over=False)
        self._https.stop()
        self._federation.stop()
        self._enrolment.stop()
        self.register.close()


def initial_model(study: Study) -> Callable[[], tuple[FloatVector, Layout]]:
    """Makes the freshly initialised network's vector; imports torch only then."""

    def make() -> tuple[FloatVector, Layout]:
        from medfl.learning.flat import initial_vector
        from medfl.study.build import build_task

        return initial_vector(build_task(study), study.seed)

    return make
