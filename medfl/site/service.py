"""`medfl site start`, `medfl keyholder start`: the party, and the line that it holds to its coordinator."""

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

from medfl.errors import InputError, MedflError, RunError
from medfl.keys import Ask
from medfl.site.agent import Agent
from medfl.site.answering import Answering
from medfl.site.enrolment import Credentials, load_credentials, renew
from medfl.site.home import SiteHome
from medfl.site.key_holder import KeyHolder
from medfl.transport.calling import Address
from medfl.transport.https import Fallback
from medfl.transport.https.enrolment import connector
from medfl.transport.https.fallback import Ways

log = logging.getLogger(__name__)

_RENEWAL_LOOK = 3600.0


class SiteService:
    """One party, until `stop`. fallback, https_port: whether and where to call by HTTPS; the port that the coordinator
    offers, if none is given. InputError when it offers none and the fallback is always."""

    def __init__(
        self,
        folder: Path,
        ask: Ask | None = None,
        fallback: Fallback = Fallback.AUTO,
        https_port: int | None = None,
    ) -> None:
        self._folder = folder
        self._https_port = https_port
        self._ask = ask
        self._credentials = load_credentials(folder, ask)
        self.agent = self._party()
        offered = self._credentials.connection.https_target(https_port)
        self._ways = Ways(
            self._address, self._https_address if offered else None, fallback, folder / "work" / "line.json"
        )
        self._error: MedflError | None = None
        self._stopped = False

    def _party(self) -> Answering:
        found = self._credentials
        if found.role == "site":
            return Agent(SiteHome.open(self._folder), found.identity)
        if found.role == "key-holder":
            return KeyHolder(self._folder, found.name, found.identity)
        raise InputError.at(self._folder, f"is the home of an {found.role}, who takes no part", "enrol a site")

    def stop(self) -> None:
        self._stopped = True
        self.agent.stop.set()

    def run(self) -> None:
        """Serve until stopped. Raises what makes it useless to go on: the coordinator said so, or the run is over."""
        agent = self.agent
        agent.audit.append("started", {"session": agent.session})
        line = threading.Thread(target=self._hold, name="line", daemon=True)
        line.start()
        threading.Thread(target=self._keep_certificate, name="renewal", daemon=True).start()
        try:
            agent.work()
        finally:
            if not agent.stop.is_set():
                self.stop()
            line.join(5)
            agent.say("stopped")
            agent.audit.append("stopped", {"session": agent.session})
        if self._error is not None:
            raise self._error

    def _hold(self) -> None:
        agent = self.agent
        try:
            self._hold_line()
            if not self._stopped:
                agent.over()
        except MedflError as error:
            self._error = error
        except Exception as error:
            # a supervisor must see that this was no usual end
            log.exception("the line's thread")
            self._error = RunError.at(f"{agent.name}", f"its line ended: {type(error).__name__}", "see the log")
        finally:
            agent.stop.set()

    def _hold_line(self) -> None:
        """Until told to stop. Raises what makes it useless to go on."""
        agent = self.agent
        self._ways.hold(agent.hello, agent.box, agent.welcomed, agent.stop, self._contact)

    def _contact(self, state: str, detail: str) -> None:
        log.info("%s: %s", state, detail)

    def _address(self) -> Address:
        found = self._credentials
        return Address(found.connection.address, found.ca, found.key, found.certificate)

    def _https_address(self) -> Address:
        found = self._credentials
        target = found.connection.https_target(self._https_port) or found.connection.address
        return Address(target, found.ca, found.key, found.certificate)

    def _keep_certificate(self) -> None:
        """Renew the certificate in good time, and call again with it: a line lasts no longer than its certificate."""
        while True:
            if self._credentials.renewal_due(datetime.now(UTC)):
                try:
                    self._credentials = self._renewed()
                    self.agent.call_again()
                except (MedflError, OSError, ValueError) as error:
                    log.warning("the certificate could not be renewed, and will be tried again: %s", error)
            if self.agent.stop.wait(_RENEWAL_LOOK):
                return

    def _renewed(self) -> Credentials:
        way = Fallback.ALWAYS if self._ways.by_https else Fallback.NEVER
        return renew(self._folder, connector(self._https_address().target, way), self._ask)
