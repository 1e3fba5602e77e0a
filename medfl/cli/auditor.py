"""`medfl auditor`: who may look at a study, and touch nothing."""

from pathlib import Path
from typing import Annotated

import typer

from medfl.cli.model import show_evidence
from medfl.cli.output import Json
from medfl.cli.passphrase import PassphraseFile, asking
from medfl.errors import InputError


def evidence(
    home: Annotated[Path, typer.Option(metavar="HOME", help="The auditor's home.", show_default=False)],
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Fetch the evidence of the coordinator's run, and what of it was checked. Exit code 1 when a check fails.

    Example: medfl auditor evidence --home /srv/audit
    """
    from medfl.site.enrolment import load_credentials
    from medfl.transport.grpc.inspection import ask

    found = load_credentials(home, asking(passphrase_file))
    if found.role != "auditor":
        raise InputError.at(home, f"is the home of a {found.role}", "medfl coordinator invite DIR NAME --role auditor")
    show_evidence(ask(found.connection.address, found.ca, found.key, found.certificate), json)
