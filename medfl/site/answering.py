"""How a party answers a coordinator: one thread keeps the line, this one works, one request after another.

What is asked is data, never code. A request that comes again is answered again.
"""

import logging
import queue
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from secrets import token_hex
from typing import Any

from medfl import __version__
from medfl.audit.log import AuditLog
from medfl.errors import MedflError, RunError
from medfl.site.home import now as timestamp
from medfl.site.home import write_json
from medfl.site.storage import require_room, use_of
from medfl.study.model import Storage
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox, Outgoing, Wanted
from medfl.transport.protocol.medfl_pb2 import Beat, Hello, Welcome
from medfl.transport.serving import error_json
from medfl.update.wire import Buffer, parts, unpack

log = logging.getLogger(__name__)

LARGEST = 2**32
"""Bytes of a message from the coordinator."""
LOOK = 0.5
"""Seconds between two looks at what the steward decided."""
_COORDINATOR = "coordinator"
_PILED = 256
_MAKE_ROOM = "its steward makes room on its disk, or raises storage.quota_gib in its file"


class Abandoned(RunError):
    """What was being done is not wanted any more."""


class Answering(ABC):
    """One party's. A transport keeps a line to `box`; `work` answers until told to stop."""

    def __init__(self, name: str, work: Path, audit: AuditLog) -> None:
        self.name = name
        self.session = token_hex(16)
        self.stop = threading.Event()
        self.audit = audit
        self.coordinator = ""
        self.progress = (0, 0)
        self._work_folder = work
        self._status = work / "status.json"
        self._requests: queue.Queue[tuple[str, memoryview]] = queue.Queue()
        self._seen: dict[str, None] = {}
        self._unwanted: set[str] = set()
        self._turned_away: set[str] = set()
        self.state: tuple[str, str] = ("away", "")
        self._line: Line | None = None
        self._trouble = ""
        self.box = Mailbox(
            work / "spool",
            self._wanted,
            self._arrived,
            delivered=self._delivered,
            beat=self._beat,
            forgotten=self._forgotten,
            unstored=self._unstored,
            room=self._room,
        )

    @abstractmethod
    def do(self, id_: str, kind: str, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        """The answer to a request. MedflError for what must not or cannot be done; Abandoned for what nobody wants."""

    def about(self) -> dict[str, Any]:
        """What `status.json` says besides the state."""
        return {}

    def storage(self) -> Storage:
        """What may be kept in the party's folder."""
        return Storage()

    def over(self) -> None:  # noqa: B027 (most have nothing to mark)
        """The coordinator said that the run is over."""

    def look_around(self) -> None:  # noqa: B027 (most have nothing to look at)
        """Called now and then while there is nothing to do."""

    # the line's thread

    def hello(self) -> Hello:
        return Hello(
            name=self.name,
            session=self.session,
            software=f"medfl {__version__}",
            audit=self.audit.head,
            kept=self.audit.kept.get(_COORDINATOR, ""),
        )

    def welcomed(self, welcome: Welcome, line: Line) -> None:
        """A line is open."""
        if welcome.kept and not self.audit.holds(welcome.kept):
            self.audit.append("log-cut", {"known-to": _COORDINATOR, "head": welcome.kept})
            log.error("the coordinator kept a head of this site's audit log that the log does not hold: it was cut")
        if welcome.audit:
            self.audit.keep(_COORDINATOR, welcome.audit)
        self._line, self.coordinator = line, welcome.coordinator
        self.say(*(self.state if self.state[0] != "away" else ("connected", "")))

    def _wanted(self, id_: str, size: int) -> Wanted:
        if size > LARGEST:
            raise RunError.at("coordinator", f"announced a message of {size} bytes, {LARGEST} are the limit")
        return "have" if id_ in self._seen else "take"

    def _room(self, id_: str, size: int) -> None:
        require_room(use_of(self._work_folder, self.storage()), self.box.missing(id_, size))

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
        self._turned_away.discard(id_)
        self._seen.pop(id_, None)
        self.box.clear(keep=self._seen.__contains__)

    def _forgotten(self, id_: str) -> None:
        if id_ in self._seen:
            self._unwanted.add(id_)
            self._seen.pop(id_, None)

    def _unstored(self, id_: str, error: OSError) -> None:
        self._turned_away.add(id_)
        if len(self._turned_away) > _PILED:
            raise RunError.at("coordinator", f"asks and does not listen: {_PILED} answers wait for it")
        log.error("a request cannot be stored: %s", error)
        answer = parts(error_json(self._full(error)))
        self.box.send(Outgoing(id_, answer))

    def _beat(self) -> Beat:
        done, steps = self.progress
        return Beat(state=self.state[0], detail=self.state[1], done=done, steps=steps)

    def say(self, state: str, detail: str = "") -> None:
        """What the party is doing, for the coordinator and for its own status file."""
        if (state, detail) != self.state:
            log.info("%s%s", state, f": {detail}" if detail else "")
        self.state = state, detail
        told = {"at": timestamp(), "state": state, "detail": detail, "session": self.session}
        try:
            write_json(self._status, told | {"coordinator": self.coordinator} | self.about())
        except OSError as error:
            log.error("%s cannot be written, and is out of date: %s", self._status, error)
        self.hurry()

    @property
    def connected(self) -> bool:
        """Whether there is a line to the coordinator now."""
        return self._line is not None and not self._line.ended

    def hurry(self) -> None:
        """Tell the coordinator now."""
        if self._line is not None:
            self._line.hurry()

    def call_again(self) -> None:
        """End this line, so that the next one shows a renewed certificate."""
        if self._line is not None:
            self._line.end()

    def unwanted(self, id_: str) -> bool:
        """Whether nobody waits for the answer to this request any more."""
        return self.stop.is_set() or id_ in self._unwanted

    # the working thread

    def work(self) -> None:
        """Answer requests until told to stop."""
        while not self.stop.is_set():
            try:
                id_, message = self._requests.get(timeout=LOOK)
            except queue.Empty:
                self._look()
                continue
            if id_ not in self._unwanted:
                self._answer(id_, message)
            # it would be told again if it came again
            self._unwanted.discard(id_)
            if id_.startswith("train"):
                # a process that is killed now finds the order again and need not load the model once more
                self.box.clear(keep=id_.__eq__)

    def _look(self) -> None:
        try:
            self.look_around()
        except (MedflError, OSError) as error:
            # a file that cannot be read for a while; an order that comes meanwhile fails by itself
            if str(error) != self._trouble:
                log.error("%s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    def _require_room(self) -> None:
        """RunError when what is kept is too much already: nothing is done that might add to it."""
        try:
            require_room(use_of(self._work_folder, self.storage()), 0)
        except OSError as error:
            raise self._full(error) from error

    def _full(self, error: OSError) -> RunError:
        what = f"could not store the request: {error.strerror}"
        return RunError(*RunError.at(f"site {self.name}", what, _MAKE_ROOM).faults)

    def _answer(self, id_: str, message: memoryview) -> None:
        try:
            header, buffers = unpack(message)
            self._require_room()
            answer = self.do(id_, str(header.pop("do", "")), header, buffers)
        except Abandoned as error:
            log.info("%s", error)
            self.say("ready")
            # asked again, it is done again
            self._seen.pop(id_, None)
            return
        except MedflError as error:
            log.warning("%s", error)
            answer = parts(error_json(error))
        except Exception as error:
            # whatever a request sets off, the site is there for the next one
            log.exception("request %s", id_)
            what = f"could not answer: {type(error).__name__}"
            remedy = "its steward finds more in its log; use one version of medfl"
            answer = parts(error_json(RunError.at(f"site {self.name}", what, remedy)))
        self.box.send(Outgoing(id_, answer))
