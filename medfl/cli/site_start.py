"""`medfl site start`: the service at a hospital."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.enrol import ByHttps, HttpsPort
from medfl.cli.extras import needing
from medfl.cli.health import HealthPort, answering_health
from medfl.cli.logs import LogFormat, logs
from medfl.cli.passphrase import PassphraseFile, asking
from medfl.transport.https import Fallback

if TYPE_CHECKING:
    from medfl.site.service import SiteService


def start(
    home: Annotated[
        Path, typer.Option(envvar="MEDFL_SITE_HOME", help="The site's folder, as `medfl site enrol` made it.")
    ],
    flower: Annotated[bool, typer.Option("--flower", help="Wait for Flower's ClientApp instead of calling.")] = False,
    fallback: ByHttps = Fallback.AUTO,
    https_port: HttpsPort = None,
    health: HealthPort = None,
    passphrase_file: PassphraseFile = None,
    log: LogFormat = "text",
) -> None:
    """Take part in the coordinator's study, until it is over or Ctrl-C. Calls again whenever the line breaks.

    Example: medfl site start --home /srv/medfl
    """
    with logs(log) as say:
        with needing("grpc"):
            make = _service(flower)
        service = make(home, asking(passphrase_file), fallback, https_port)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        say(f"{service.agent.name}: {'waiting for Flower' if flower else 'calling its coordinator'}")
        with answering_health(health, lambda: service.agent.connected):
            service.run()


def _service(flower: bool) -> "type[SiteService]":
    if flower:
        from medfl.integrations.flower.station import FlowerSite

        return FlowerSite
    from medfl.site.service import SiteService

    return SiteService
