"""DIR/status.json: what a running coordinator says of itself and of its sites, for `medfl coordinator status`.

Written by a thread of its own, at most twice a second, and every few seconds as a sign of life. Who reads it while it
is written finds the one before. What is known for good is in the journal.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfl.audit.file import rewrite, timestamp, utc_now
from medfl.coordinator.observer import Observer
from medfl.errors import RunError
from medfl.federation.outcome import RoundPlan
from medfl.learning.messages import SiteInfo
from medfl.transport.texts import plain

_TICK = 0.5
_ALIVE = 5.0
_GONE = 20.0
"""Seconds without a sign of life after which a coordinator is taken for gone."""


@dataclass
class Presence:
    """What a site was last heard to do. since: UTC."""

    state: str
    detail: str = ""
    since: str = field(default_factory=lambda: timestamp(utc_now()))


class StatusFile(Observer):
    """Keeps the file up to date from `start` to `close`. Hooks come from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._changed, self._closed = threading.Event(), threading.Event()
        self._told: dict[str, Any] = {"phase": "listening", "round": None}
        self._sites: dict[str, Presence] = {}
        self._writer = threading.Thread(target=self._write, name="status", daemon=True)

    def start(self) -> None:
        """Begin to write; OSError when the file cannot be written at all."""
        self._save()
        self._writer.start()

    def opened(self, sites: Sequence[SiteInfo], rounds: int, done: int) -> None:
        self._tell(phase="running")

    def presence(self, site: str, state: str, detail: str = "") -> None:
        with self._lock:
            self._sites[site] = Presence(plain(state, 40), plain(detail))
        self._changed.set()

    def round_started(self, plan: RoundPlan) -> None:
        self._tell(phase="running", round=plan.round)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self._tell(round=None)

    def ended(self, summary: Mapping[str, Any]) -> None:
        self._tell(phase="ended", round=None)

    def stop(self) -> None:
        """The service ends: nobody is there any more. Nothing happens before `start`."""
        if not self._writer.is_alive():
            return
        self._closed.set()
        self._changed.set()
        self._writer.join()
        with self._lock:
            self._told["phase"], self._told["round"] = "stopped", None
            self._sites.clear()
        self._save()

    def _tell(self, **what: Any) -> None:
        with self._lock:
            self._told.update(what)
        self._changed.set()

    def _write(self) -> None:
        while not self._closed.wait(_TICK):
            self._changed.wait(_ALIVE)
            self._changed.clear()
            if not self._closed.is_set():
                self._save()

    def _save(self) -> None:
        with self._lock:
            sites = {name: asdict(found) for name, found in sorted(self._sites.items())}
            told = {"at": timestamp(utc_now()), **self._told, "sites": sites}
        rewrite(self._path, json.dumps(told, indent=2).encode() + b"\n")


@dataclass(frozen=True)
class Seen:
    """What the file says. alive: whether the coordinator has given a sign of life lately. at: its last one, UTC."""

    alive: bool
    at: str
    phase: str
    round: int | None
    sites: Mapping[str, Presence]


def read_status(path: Path, now: datetime | None = None) -> Seen | None:
    """What a coordinator last said; None when it never ran. RunError when the file is none of its."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        at = datetime.fromisoformat(found["at"]).astimezone(UTC)
        sites = {str(name): Presence(**about) for name, about in found["sites"].items()}
        seen = Seen(False, found["at"], str(found["phase"]), found["round"], sites)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError.at(path, f"cannot be read: {error}", "remove it, or start the coordinator again") from error
    recent = ((now or utc_now()) - at).total_seconds() < _GONE
    return Seen(recent and seen.phase != "stopped", seen.at, seen.phase, seen.round, seen.sites)
