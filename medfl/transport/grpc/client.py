"""The site's end: one stream to the coordinator, opened again whenever it breaks."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import grpc

from medfl.errors import MedflError, RunError
from medfl.transport.grpc.channel import CONNECT, open_channel
from medfl.transport.mail import Line, Mailbox
from medfl.transport.parcels import encoded
from medfl.transport.post import VERSIONS
from medfl.transport.protocol.medfl_pb2 import Frame, Goodbye, Hello, Welcome
from medfl.transport.texts import plain

log = logging.getLogger(__name__)

_FIRST, _SLOWEST = 0.2, 10.0
_HEALTHY = 5.0
"""Seconds: a line that lived so long was a good one, and is tried again at once."""
_GREETING = 20.0
"""Seconds for the coordinator's first frame."""


@dataclass(frozen=True)
class Address:
    """Where the coordinator is and how to prove who calls. ca, key, certificate: PEM."""

    target: str
    ca: bytes
    key: bytes
    certificate: bytes


Welcomed = Callable[[Welcome, Line], None]
"""Called with what the coordinator said first, before anything of it is taken."""


class Refused(RunError):
    """The coordinator said that it is of no use to come back."""


def hold(
    address: Callable[[], Address],
    hello: Callable[[], Hello],
    box: Mailbox,
    welcomed: Welcomed,
    stop: threading.Event,
    contact: Callable[[str, str], None] = lambda state, detail: None,
) -> None:
    """Keep a line to the coordinator until told to stop. Refused when it does not want this site; anything else is
    tried again, after a wait that grows to ten seconds.

    address is asked before every try, so that a renewed certificate is used. contact(state, detail): what became of
    the line.
    """
    wait = _FIRST
    while not stop.is_set():
        begun = time.monotonic()
        try:
            greeting = hello()
            greeting.versions.extend(VERSIONS)
            _once(address(), Frame(hello=greeting), box, welcomed, stop)
            reason = "the line ended"
        except Refused:
            raise
        except grpc.RpcError as error:
            reason = plain(str(error.details() if isinstance(error, grpc.Call) else error))
        except (MedflError, OSError, ValueError) as error:
            # what one message does wrong, or a full disk, must not end the service
            reason = plain(str(error))
            log.warning("the line is given up: %s", reason)
        except Exception as error:
            reason = type(error).__name__
            log.exception("the line is given up")
        if stop.is_set():
            return
        if time.monotonic() - begun >= _HEALTHY:
            wait = _FIRST
        contact("away", reason)
        log.info("no line to the coordinator (%s): again in %.1f s", reason, wait)
        stop.wait(wait * random.uniform(0.5, 1.0))
        wait = min(_SLOWEST, wait * 2)


def _once(address: Address, hello: Frame, box: Mailbox, welcomed: Welcomed, stop: threading.Event) -> None:
    """One stream, until it ends."""
    with closing(_Outbox(hello)) as out, _channel(address) as channel:
        call = channel.stream_stream(CONNECT, encoded, Frame.FromString)(iter(out))
        watch = threading.Thread(target=_cancel_on, args=(stop, out, call), daemon=True)
        watch.start()
        line: Line | None = None
        try:
            for frame in call:
                kind = frame.WhichOneof("kind")
                if kind == "goodbye":
                    _take_leave(frame.goodbye, stop)
                    return
                if line is not None:
                    with line.hearing():
                        if kind != "beat":
                            line.take(frame)
                elif kind == "welcome":
                    line = box.connect(frame.welcome.beat)
                    welcomed(frame.welcome, line)
                    out.use(line)
        finally:
            call.cancel()


def _take_leave(goodbye: Goodbye, stop: threading.Event) -> None:
    reason = plain(goodbye.reason)
    log.info("the coordinator says goodbye: %s", reason)
    if goodbye.over:
        stop.set()
    elif not goodbye.again:
        raise Refused.at("coordinator", f"says: {reason}", "ask the study lead")


@contextmanager
def _channel(address: Address) -> Iterator[grpc.Channel]:
    channel = open_channel(address.target, address.ca, address.key, address.certificate)
    try:
        yield channel
    finally:
        # waits for what a dead line still holds, which nobody else need do
        closing_ = threading.Thread(target=channel.close, name="hang-up", daemon=True)
        closing_.start()
        closing_.join(1.0)


def _cancel_on(stop: threading.Event, out: "_Outbox", call: grpc.Call) -> None:
    while not out.closed.wait(0.1):
        if stop.is_set() or out.silent:
            call.cancel()
            return


class _Outbox:
    """The frames of one stream: the greeting, and what the line has once there is one."""

    def __init__(self, hello: Frame) -> None:
        self._hello = hello
        self._ready = threading.Event()
        self._line: Line | None = None
        self.closed = threading.Event()
        self._begun = time.monotonic()

    @property
    def silent(self) -> bool:
        """Whether the coordinator is dead."""
        return time.monotonic() - self._begun > _GREETING if self._line is None else self._line.silent

    def use(self, line: Line) -> None:
        self._line = line
        self._ready.set()

    def __iter__(self) -> Iterator[Frame]:
        yield self._hello
        self._ready.wait()
        if self._line is not None:
            yield from self._line.frames()

    def close(self) -> None:
        self.closed.set()
        self._ready.set()
        if self._line is not None:
            self._line.end()
