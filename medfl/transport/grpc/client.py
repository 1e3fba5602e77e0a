"""The site's end: one stream to the coordinator, opened again whenever it breaks."""

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import grpc

from medfl.errors import RunError
from medfl.transport.grpc.channel import CONNECT, open_channel
from medfl.transport.mail import Line, Mailbox
from medfl.transport.post import VERSIONS
from medfl.transport.protocol.medfl_pb2 import Frame, Hello, Welcome

log = logging.getLogger(__name__)

_SLOWEST = 10.0
_HEALTHY = 30.0


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
    wait = 0.2
    while not stop.is_set():
        greeting = hello()
        greeting.versions.extend(VERSIONS)
        try:
            heard = _once(address(), Frame(hello=greeting), box, welcomed, stop)
            reason = "the line ended"
            wait = 0.2 if heard else wait
        except grpc.RpcError as error:
            reason = str(error.details() if isinstance(error, grpc.Call) else error)
        if stop.is_set():
            return
        contact("away", reason)
        log.info("no line to the coordinator (%s): again in %.1f s", reason, wait)
        stop.wait(wait * random.uniform(0.5, 1.0))
        wait = min(_SLOWEST, wait * 2)


def _once(address: Address, hello: Frame, box: Mailbox, welcomed: Welcomed, stop: threading.Event) -> bool:
    """One stream, until it ends; whether the coordinator answered."""
    with closing(_Outbox(hello)) as out, _channel(address) as channel:
        call = channel.stream_stream(CONNECT, Frame.SerializeToString, Frame.FromString)(iter(out))
        watch = threading.Thread(target=_cancel_on, args=(stop, out, call), daemon=True)
        watch.start()
        heard = False
        try:
            for frame in call:
                if frame.WhichOneof("kind") == "welcome" and not heard:
                    heard = True
                    line = box.connect(frame.welcome.beat or 2.0)
                    welcomed(frame.welcome, line)
                    out.use(line)
                elif frame.WhichOneof("kind") == "goodbye":
                    if frame.goodbye.over:
                        log.info("the coordinator says: %s", frame.goodbye.reason)
                        stop.set()
                    elif not frame.goodbye.again:
                        raise Refused.at("coordinator", f"says: {frame.goodbye.reason}", "ask the study lead")
                    log.info("the coordinator says goodbye: %s", frame.goodbye.reason)
                elif frame.WhichOneof("kind") != "beat" and heard:
                    line.take(frame)
        finally:
            call.cancel()
    return heard


def _channel(address: Address) -> grpc.Channel:
    return open_channel(address.target, address.ca, address.key, address.certificate)


def _cancel_on(stop: threading.Event, out: "_Outbox", call: grpc.Call) -> None:
    while not out.closed.wait(0.1):
        if stop.is_set():
            call.cancel()
            return


class _Outbox:
    """The frames of one stream: the greeting, and what the line has once there is one."""

    def __init__(self, hello: Frame) -> None:
        self._hello = hello
        self._ready = threading.Event()
        self._line: Line | None = None
        self.closed = threading.Event()

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
