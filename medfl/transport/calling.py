"""How a site calls its coordinator, whatever the line is made of: again whenever it breaks, until told to stop."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from medfl.errors import RunError
from medfl.transport.line import Line
from medfl.transport.post import VERSIONS
from medfl.transport.protocol.medfl_pb2 import Frame, Goodbye, Hello, Welcome
from medfl.transport.texts import plain

log = logging.getLogger(__name__)

_FIRST, _SLOWEST, _GROWTH = 0.1, 10.0, 1.5
"""Seconds between two tries, and by how much they grow."""
_HEALTHY = 5.0
"""Seconds: a line that lived so long was a good one, and is tried again at once."""


@dataclass(frozen=True)
class Address:
    """Where the coordinator is and how to prove who calls. ca, key, certificate: PEM."""

    target: str
    ca: bytes
    key: bytes
    certificate: bytes


Welcomed = Callable[[Welcome, Line], None]
"""Called with what the coordinator said first, before anything of it is taken."""
Contact = Callable[[str, str], None]
"""Called with a state and a detail: what became of the line."""


class Refused(RunError):
    """The coordinator said that it is of no use to come back."""


def unheard(state: str, detail: str) -> None:
    """A contact that nobody wants to know of."""


def keep_calling(
    once: Callable[[Frame], None],
    hello: Callable[[], Hello],
    stop: threading.Event,
    contact: Contact,
    why: Callable[[Exception], str | None],
) -> None:
    """Keep a line until told to stop. Refused when the coordinator does not want this site; anything else is tried
    again, after a wait that grows to ten seconds.

    once: one line that begins with this frame, until it ends. why: the reason for an error that ends lines now and
    then, None for one that should not be.
    """
    wait = _FIRST
    while not stop.is_set():
        begun, reason = time.monotonic(), "the line ended"
        try:
            greeting = hello()
            greeting.versions.extend(VERSIONS)
            once(Frame(hello=greeting))
        except Refused:
            raise
        except Exception as error:
            # what one message does wrong, a full disk, whatever a frame sets off: the service goes on
            known = why(error)
            reason = type(error).__name__ if known is None else plain(known)
            if known is None:
                log.exception("the line is given up")
        if stop.is_set():
            return
        if time.monotonic() - begun >= _HEALTHY:
            wait = _FIRST
        contact("away", reason)
        log.info("no line to the coordinator (%s): again in %.1f s", reason, wait)
        stop.wait(wait * random.uniform(0.5, 1.0))
        wait = min(_SLOWEST, wait * _GROWTH)


def take_leave(goodbye: Goodbye, stop: threading.Event) -> None:
    """The coordinator's last word. Refused when it does not want this site; stops when all is done."""
    reason = plain(goodbye.reason)
    log.info("the coordinator says goodbye: %s", reason)
    if goodbye.over:
        stop.set()
    elif not goodbye.again:
        raise Refused.at("coordinator", f"says: {reason}", "ask the study lead")
