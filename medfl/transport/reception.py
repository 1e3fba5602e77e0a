"""Who answers invitations, whatever way they come by: one limit, one register and one audit log for all ways."""

import logging
from collections.abc import Callable
from typing import Any

from medfl.errors import MedflError, RunError
from medfl.transport.limits import RateLimit
from medfl.transport.peers import AdmissionError, Doorkeeper
from medfl.transport.protocol.medfl_pb2 import Certificate, EnrolRequest

log = logging.getLogger(__name__)

LARGEST = 2**14
"""Bytes of a request."""
REFUSED = "refused: ask the study lead for a new invitation"
TOO_OFTEN = "too many attempts: try again in a minute"
BROKEN = "cannot be answered at the moment: try again later"


class TooOften(RunError):
    """This caller, or all together, asked too often."""


class Reception:
    """Slow on purpose: few attempts a minute, of each source and of all. note: what goes into the audit log."""

    def __init__(self, doorkeeper: Doorkeeper, note: Callable[[str, dict[str, Any]], None], limit: RateLimit) -> None:
        self._doorkeeper = doorkeeper
        self._note = note
        self._limit = limit

    def enrol(self, request: EnrolRequest, host: str, port: str) -> Certificate:
        """The certificate. TooOften; AdmissionError, which says more than the caller may know; MedflError when the
        register cannot be used."""
        if not self._limit.allow(host):
            raise TooOften.at(host, TOO_OFTEN)
        try:
            found = self._doorkeeper.enrol(request.token, request.request, request.identity, request.proof)
        except AdmissionError as error:
            self._note("enrolment-refused", {"from": f"{host}:{port}", "reason": error.faults[0].what})
            raise
        except MedflError as error:
            log.error("an invitation could not be answered: %s", error)
            raise
        return Certificate(certificate=found)
