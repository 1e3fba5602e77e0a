"""A run's numbers for Prometheus. Needs the extra `metrics`."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medfl.coordinator.observer import Observer
from medfl.errors import InputError
from medfl.federation.outcome import RoundPlan
from medfl.learning.messages import SiteInfo
from medfl.privacy.mechanisms.base import MECHANISMS
from medfl.report.dashboard.words import STATES, TAKES_PART
from medfl.study.model import Study

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer


SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600)


class MetricsObserver(Observer):
    """Counts what happens in a registry of its own. Counters start at 0 with the process, as Prometheus expects; gauges
    say how the run stands. Labels are names of sites, states, phases and rules, never of cases."""

    def __init__(self, study: Study) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise InputError.at("--metrics", "is not installed", "pip install 'medfl[metrics]'") from error
        self.registry: CollectorRegistry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "medfl", "registry": self.registry}
        self._study = study
        self._states: dict[str, str] = {}
        self._lock = threading.Lock()
        self._info = Gauge("run_info", "The study that runs; always 1.", ["study", "task"], **own)
        self._planned = Gauge("rounds_planned", "Rounds that the study asks for.", **own)
        self._done = Gauge("rounds_completed", "Rounds that are committed.", **own)
        self._current = Gauge("round", "The round that goes on; 0 between rounds.", **own)
        self._void = Counter("void_rounds", "Rounds whose sum was not opened.", **own)
        self._sites = Gauge("sites", "Sites by state of their connection.", ["state"], **own)
        self._there = Gauge("site_connected", "1 while a site is connected.", ["site"], **own)
        self._updates = Counter("updates", "Answers of sites by outcome and deciding rule.", ["outcome", "rule"], **own)
        self._problems = Counter(
            "site_problems", "Updates of a site that were refused or did not come.", ["site", "outcome"], **own
        )
        self._bytes = Counter("bytes", "Bytes of messages.", ["direction", "purpose"], **own)
        self._site_bytes = Counter("site_bytes", "Bytes of training by site.", ["site", "direction"], **own)
        self._seconds = Histogram("phase_seconds", "Seconds of a round by phase.", ["phase"], buckets=SECONDS, **own)
        self._loss = Gauge("training_loss", "Mean training loss of the last round.", **own)
        self._metric = Gauge("metric", "Global model's metric, newest evaluation.", ["metric", "split"], **own)
        self._epsilon = Gauge("epsilon", "Spent so far; absent without a privacy mechanism.", ["unit"], **own)
        self._budget = Gauge("epsilon_budget", "Budget of the run; absent without one.", ["unit"], **own)
        self._ended = Gauge("run_ended", "1 once the run has ended.", ["stopped_by"], **own)
        self._info.labels(study.name, study.task.kind).set(1)
        self._loss.set(math.nan)
        for state in STATES:
            self._sites.labels(state)
        if study.privacy is not None and study.privacy.epsilon is not None:
            self._budget.labels(self._unit).set(study.privacy.epsilon)

    @property
    def _unit(self) -> str:
        if self._study.privacy is None:
            return ""
        unit: str = MECHANISMS.load(self._study.privacy.kind).unit  # type: ignore[attr-defined]
        return unit

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        self._planned.set(rounds)
        self._done.set(done)
        for info in sites:
            if self._states.get(info.name, "away") in ("away", "connected", "held"):
                self.presence(info.name, "ready")

    def presence(self, site: str, state: str, detail: str = "") -> None:
        with self._lock:
            # a site's own word must not make series without end
            state = state if state in STATES else "other"
            before = self._states.get(site)
            self._states[site] = state
            if before is not None:
                self._sites.labels(before).dec()
            self._sites.labels(state).inc()
            self._there.labels(site).set(state in TAKES_PART)

    def round_started(self, plan: RoundPlan) -> None:
        self._current.set(plan.round)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self._current.set(0)
        self._done.set(record["round"])
        self._void.inc(1 if record["void"] else 0)
        for site, verdict in record["verdicts"].items():
            self._updates.labels(verdict["outcome"], verdict["rule"]).inc()
            if verdict["outcome"] == "refuse":
                self._problems.labels(site, "refuse").inc()
        for outcome in ("failed", "late"):
            for site in record[outcome]:
                self._updates.labels(outcome, "").inc()
                self._problems.labels(site, outcome).inc()
        self._count_bytes(record["bytes"])
        for phase, seconds in record["seconds"].items():
            self._seconds.labels(phase).observe(seconds)
        self._loss.set(math.nan if record["losses"]["mean"] is None else record["losses"]["mean"])
        if record["epsilon"] is not None:
            self._epsilon.labels(self._unit).set(record["epsilon"])
        if record["metrics"]:
            self._measure(record["metrics"])

    def ended(self, summary: Mapping[str, Any]) -> None:
        self._measure(summary["metrics"])
        if summary["privacy"]["epsilon"] is not None:
            self._epsilon.labels(self._unit).set(summary["privacy"]["epsilon"])
        self._ended.labels(summary["stopped_by"]).set(1)

    def _measure(self, metrics: Mapping[str, Any]) -> None:
        for name, entry in metrics["global"].items():
            if entry.get("value") is not None:
                self._metric.labels(name, metrics["split"]).set(entry["value"])

    def _count_bytes(self, sent: Mapping[str, Any]) -> None:
        for direction in ("up", "down"):
            self._bytes.labels(direction, "training").inc(sent.get(f"{direction}_bytes", 0))
            self._bytes.labels(direction, "evaluation").inc(sent.get(f"evaluation_{direction}_bytes", 0))
            for site, own in (sent.get("sites") or {}).items():
                self._site_bytes.labels(site, direction).inc(own[direction])


@dataclass
class MetricsServer:
    """`url` is what Prometheus scrapes."""

    url: str
    _server: "WSGIServer" = field(repr=False)
    _thread: threading.Thread = field(repr=False)

    def stop(self) -> None:
        """Close the port; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def serve_metrics(observer: MetricsObserver, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve the observer's numbers in a daemon thread, without a password: names of sites and how the run goes are
    readable for whoever reaches the port. port: 0 takes a free one. InputError when the port cannot be had."""
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, observer.registry)
    except (OSError, OverflowError) as error:
        raise InputError.at(f"--metrics {port}", f"cannot be used on {host}: {error}", "choose a free port") from error
    name = f"[{host}]" if ":" in host else host
    return MetricsServer(f"http://{name}:{server.server_port}/metrics", server, thread)
