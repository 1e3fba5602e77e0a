"""`medfl site enrol` and `renew`: a peer's certificates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.extras import needing
from medfl.cli.output import Json, print_json, result
from medfl.cli.passphrase import PassphraseFile, Protect, asking
from medfl.transport.https import Fallback

if TYPE_CHECKING:
    from collections.abc import Callable

    from medfl.site.enrolment import Credentials, EnrolmentClient

Home = Annotated[
    Path,
    typer.Option(envvar="MEDFL_SITE_HOME", metavar="HOME", help="The site's home.", show_default=False),
]

ByHttps = Annotated[Fallback, typer.Option(help="Call by HTTPS where gRPC does not get through, never, or always.")]
HttpsPort = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="The coordinator's HTTPS port; default: as in the invitation.", show_default=False
    ),
]


def enrol(
    invitation: Annotated[Path, typer.Argument(help="The file that the study lead handed over.", show_default=False)],
    home: Home,
    site: Annotated[
        Path | None,
        typer.Option(help="The hospital's YAML file; needed while the home has no site.yaml.", show_default=False),
    ] = None,
    fallback: ByHttps = Fallback.AUTO,
    https_port: HttpsPort = None,
    protect: Protect = False,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Enrol with an invitation: makes the home and its keys, and has the coordinator certify them.

    The private keys never leave the home. If it breaks off, run it again with the same invitation. A coordinator that
    refuses, or cannot be reached, leaves no home behind.

    Example: medfl site enrol hospital-a.invitation --home /srv/medfl --site sites/hospital-a.yaml
    """
    from medfl.site.enrolment import enrol as run
    from medfl.transport.invitation import read_invitation

    read = read_invitation(invitation)
    protect = protect or passphrase_file is not None
    enter = _connector(read.https_target(https_port), fallback)
    found = run(read, home, site, enter, asking(passphrase_file, new=protect), protect)
    _print("enrolled", found, home, f"medfl site start --home {home}" if found.role == "site" else "", json)


def renew(
    home: Home,
    fallback: ByHttps = Fallback.AUTO,
    https_port: HttpsPort = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Renew the certificate, with a fresh key; the identity stays, and a running agent is not disturbed.

    Example: medfl site renew --home /srv/medfl
    """
    from medfl.site.enrolment import read_connection
    from medfl.site.enrolment import renew as run

    back = _connector(read_connection(home).https_target(https_port), fallback)
    _print("renewed", run(home, back, asking(passphrase_file)), home, "", json)


def _connector(https: str | None, fallback: Fallback) -> "Callable[..., EnrolmentClient]":
    with needing("grpc"):
        from medfl.transport.https.enrolment import connector
    return connector(https, fallback)


def _print(what: str, found: "Credentials", home: Path, following: str, json: bool) -> None:
    about = found.connection
    if json:
        facts = {"home": str(home), "name": found.name, "role": found.role, "identity": found.identity.public.hex()}
        facts |= {"coordinator": about.coordinator, "address": about.address, "ca_sha256": about.ca_sha256}
        print_json({**facts, "expires": found.expires.isoformat()})
        return
    _say(f"{what}: the {found.role} {found.name} with {about.coordinator} at {about.address}")
    _say(f"certificate good until {found.expires:%Y-%m-%d %H:%M} UTC; keys in {home / 'pki'}")
    _say(f"authority, SHA-256, to be compared by telephone: {about.ca_sha256}")
    if following:
        _say(f"next: {following}")


def _say(text: str) -> None:
    result().print(text, markup=False, highlight=False, soft_wrap=True)
