"""Which way a site calls its coordinator: by gRPC, or by HTTPS where a proxy lets no HTTP/2 through."""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from medfl.audit.file import rewrite
from medfl.errors import InputError
from medfl.transport.calling import Address, Contact, Welcomed, unheard
from medfl.transport.grpc.channel import open_channel
from medfl.transport.grpc.client import hold
from medfl.transport.https import NOT_OFFERED, Fallback
from medfl.transport.https.client import hold_https
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox
from medfl.transport.protocol.medfl_pb2 import Hello, Welcome

log = logging.getLogger(__name__)

_SLOWEST = 10.0

Way = Literal["grpc", "https"]


@dataclass(frozen=True)
class Habits:
    """tries: by gRPC in a row without a welcome before HTTPS has its turn; patience: seconds that a try may take;
    again: seconds on HTTPS before gRPC is looked at, doubled each time it did not work, up to `seldom`."""

    tries: int = 3
    patience: float = 45.0
    again: float = 600.0
    seldom: float = 6 * 3600.0


class Ways:
    """The site's line, by either way. grpc, https: where the coordinator is, asked before every try; https None: it
    cannot be called so. memory: a file that keeps which way worked."""

    def __init__(
        self,
        grpc: Callable[[], Address],
        https: Callable[[], Address] | None,
        fallback: Fallback,
        memory: Path,
        habits: Habits | None = None,
    ) -> None:
        if fallback is Fallback.ALWAYS and https is None:
            raise InputError.at("--fallback always", NOT_OFFERED, "give --https-port, or ask the study lead")
        self._grpc = grpc
        self._https = https
        self._fallback = fallback
        self._memory = memory
        self._habits = habits or Habits()
        self._worked = self._read()

    def hold(
        self,
        hello: Callable[[], Hello],
        box: Mailbox,
        welcomed: Welcomed,
        stop: threading.Event,
        contact: Contact = unheard,
    ) -> None:
        """As `medfl.transport.grpc.client.hold`."""
        if self._https is None or self._fallback is Fallback.NEVER:
            return hold(self._grpc, hello, box, welcomed, stop, contact)
        if self._fallback is Fallback.ALWAYS:
            return hold_https(self._https, hello, box, welcomed, stop, contact)
        way, again, pause = self._worked or "grpc", self._habits.again / 2, 0.2
        while not stop.is_set():
            turn = _Turn(way, self._habits, welcomed, contact, stop, self._remember)
            if way == "grpc":
                turn.hold(lambda turn: hold(self._grpc, hello, box, turn.welcomed, turn.end, turn.contact))
                again = self._habits.again if turn.ever else min(self._habits.seldom, again * 2)
            else:
                self._hold_https(turn, max(again, self._habits.again), hello, box)
            pause = 0.2 if turn.ever else min(_SLOWEST, pause * 2)
            way = "https" if way == "grpc" else "grpc"
            if not stop.wait(pause):
                log.info("trying by %s", "HTTPS" if way == "https" else "gRPC")
        return None

    def _hold_https(self, turn: "_Turn", again: float, hello: Callable[[], Hello], box: Mailbox) -> None:
        if (https := self._https) is not None:
            threading.Thread(target=self._look, args=(turn, again), name="line-look", daemon=True).start()
            turn.hold(lambda turn: hold_https(https, hello, box, turn.welcomed, turn.end, turn.contact))

    def _look(self, turn: "_Turn", again: float) -> None:
        """Now and then see whether gRPC works by now; the open line is not touched before it does."""
        while not turn.end.wait(again):
            if self.reachable():
                turn.give_up()
                return
            again = min(self._habits.seldom, again * 2)

    def reachable(self, seconds: float = 10.0) -> bool:
        """Whether an HTTP/2 connection to the coordinator can be made."""
        found = self._grpc()
        with open_channel(found.target, found.ca, found.key, found.certificate) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=seconds)
            except grpc.FutureTimeoutError:
                return False
            return True

    @property
    def by_https(self) -> bool:
        """Whether HTTPS is what worked last, or all there is."""
        auto = self._fallback is Fallback.AUTO and self._https is not None
        return self._fallback is Fallback.ALWAYS or (auto and self._worked == "https")

    def _read(self) -> Way | None:
        try:
            found = json.loads(self._memory.read_bytes())["way"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read, gRPC is tried first: %s", self._memory, error)
            return None
        return found if found in ("grpc", "https") else None

    def _remember(self, way: Way) -> None:
        if self._worked != way:
            self._worked = way
            rewrite(self._memory, json.dumps({"way": way}).encode())


class _Turn:
    """One way's turn at the line. end: given to `hold` as what stops it; ever: whether it was welcomed."""

    def __init__(
        self,
        way: Way,
        habits: Habits,
        welcomed: Welcomed,
        contact: Callable[[str, str], None],
        stop: threading.Event,
        remember: Callable[[Way], None],
    ) -> None:
        self.end = threading.Event()
        self.ever = False
        self._way = way
        self._habits = habits
        # HTTPS is tried once, and has the same patience as gRPC when it worked before
        self._tries = habits.tries if way == "grpc" else 1
        self._welcomed = welcomed
        self._contact = contact
        self._stop = stop
        self._remember = remember
        self._up = False
        self._failed = 0
        self._since = time.monotonic()
        self._given_up = False

    def hold(self, go: Callable[["_Turn"], None]) -> None:
        threading.Thread(target=self._watch, name="line-turn", daemon=True).start()
        try:
            go(self)
            if not self._given_up:
                # the run is over
                self._stop.set()
        finally:
            self.end.set()

    def give_up(self) -> None:
        self._given_up = True
        self.end.set()

    def welcomed(self, welcome: Welcome, line: Line) -> None:
        self._up, self.ever, self._failed = True, True, 0
        self._tries = self._habits.tries
        self._remember(self._way)
        self._welcomed(welcome, line)

    def contact(self, state: str, detail: str) -> None:
        self._failed += not self._up
        self._up, self._since = False, time.monotonic()
        self._contact(state, detail)
        if self._failed >= self._tries:
            self.give_up()

    def _watch(self) -> None:
        while not self.end.wait(0.1):
            if self._stop.is_set():
                self.end.set()
            elif not self._up and time.monotonic() - self._since > self._habits.patience:
                self._contact("away", f"no welcome within {self._habits.patience:.0f} s")
                self.give_up()
