"""`medfl site start`: the service at a hospital."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.logs import LogFormat, set_up_logs
from medfl.cli.output import console
from medfl.cli.passphrase import PassphraseFile, asking


def start(
    home: Annotated[
        Path, typer.Option(envvar="MEDFL_SITE_HOME", help="The site's folder, as `medfl site enrol` made it.")
    ],
    passphrase_file: PassphraseFile = None,
    log: LogFormat = "text",
) -> None:
    """Take part in the coordinator's study, until it is over or Ctrl-C. Calls again whenever the line breaks.

    Example: medfl site start --home /srv/medfl
    """
    from medfl.site.service import SiteService

    set_up_logs(log)
    service = SiteService(home, asking(passphrase_file))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    console.print(f"site {service.agent.name}: calling its coordinator", markup=False, highlight=False)
    service.run()
