"""The site's end: one stream to the coordinator, opened again whenever it breaks."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import grpc

from medfl.errors import MedflError
from medfl.transport.calling import Address, Contact, Welcomed, keep_calling, take_leave, unheard
from medfl.transport.grpc.channel import CONNECT, open_channel
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox
from medfl.transport.pieces import Sent, decoded, encoded, kind_of
from medfl.transport.protocol.medfl_pb2 import Frame, Hello
from medfl.transport.texts import plain

log = logging.getLogger(__name__)

_GREETING = 20.0
"""Seconds for the coordinator's first frame."""


def hold(
    address: Callable[[], Address],
    hello: Callable[[], Hello],
    box: Mailbox,
    welcomed: Welcomed,
    stop: threading.Event,
    contact: Contact = unheard,
) -> None:
    """Keep a line by gRPC; see `keep_calling`. address is asked before every try, so that a renewed certificate is
    used."""
    keep_calling(lambda first: _once(address(), first, box, welcomed, stop), hello, stop, contact, _why)


def _why(error: Exception) -> str | None:
    if isinstance(error, grpc.RpcError):
        return str(error.details() if isinstance(error, grpc.Call) else error)
    if not isinstance(error, MedflError | OSError | ValueError):
        return None
    log.warning("the line is given up: %s", plain(str(error)))
    return str(error)


def _once(address: Address, hello: Frame, box: Mailbox, welcomed: Welcomed, stop: threading.Event) -> None:
    """One stream, until it ends."""
    with closing(_Outbox(hello)) as out, _channel(address) as channel:
        call = channel.stream_stream(CONNECT, encoded, decoded)(iter(out))
        watch = threading.Thread(target=_cancel_on, args=(stop, out, call), daemon=True)
        watch.start()
        line: Line | None = None
        try:
            for frame in call:
                if isinstance(frame, Frame) and frame.HasField("goodbye"):
                    take_leave(frame.goodbye, stop)
                    return
                if line is not None:
                    with line.hearing():
                        if kind_of(frame) != "beat":
                            line.take(frame)
                elif isinstance(frame, Frame) and frame.HasField("welcome"):
                    line = box.connect(frame.welcome.beat)
                    welcomed(frame.welcome, line)
                    out.use(line)
        finally:
            call.cancel()


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

    def __iter__(self) -> Iterator[Sent]:
        yield self._hello
        self._ready.wait()
        if self._line is not None:
            yield from self._line.frames()

    def close(self) -> None:
        self.closed.set()
        self._ready.set()
        if self._line is not None:
            self._line.end()
