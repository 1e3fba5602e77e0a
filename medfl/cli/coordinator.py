"""`medfl coordinator`: what the study lead does to let hospitals in and to shut them out."""

from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.output import Json, print_json, result
from medfl.cli.passphrase import PassphraseFile, Protect, asking
from medfl.cli.run_options import Overrides
from medfl.errors import InputError

if TYPE_CHECKING:
    from medfl.coordinator.register import Note, Register
    from medfl.coordinator.settings import CoordinatorHome, CoordinatorSettings

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.", show_default=False)]
Name = Annotated[str, typer.Argument(help="The peer's name, as in its site file.", show_default=False)]


class PeerRole(StrEnum):
    SITE = "site"
    KEY_HOLDER = "key-holder"
    AUDITOR = "auditor"


def init(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The coordinator's folder, made anew.", show_default=False)],
    address: Annotated[
        list[str],
        typer.Option(
            metavar="HOST[:PORT]",
            help="A name or IP address that sites reach the coordinator at; repeatable. Invitations give the first.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="What sites know it as; default: the study's name.", show_default=False)
    ] = None,
    enrol_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port that invitations are answered on.")
    ] = 8444,
    site: Annotated[
        list[str] | None, typer.Option(help="A site that may be invited; repeatable. Default: any.", show_default=False)
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Also answer to localhost and 127.0.0.1.")] = False,
    protect: Protect = False,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Set up a coordinator: a folder with the resolved study, a certificate authority and an empty register.

    Example: medfl coordinator init configs/pneumonia.yaml --out coordinator --address fl.example.org
    """
    from medfl.coordinator.settings import CoordinatorHome
    from medfl.study.load import load_study

    known = load_study(study, overrides or []).name
    settings = _settings(name or known, address, enrol_port, site or [], local)
    passphrase = None
    if protect or passphrase_file is not None:
        passphrase = asking(passphrase_file, new=True)(out / "pki" / "ca.key")
    home = CoordinatorHome.create(out, study, settings, overrides or [], passphrase)
    mark = _authority_mark(home)
    _note(home)("set-up", {"study": known, "address": settings.address, "ca_sha256": mark})
    if json:
        print_json({"folder": str(out), "address": settings.address, "ca_sha256": mark})
        return
    _say(
        f"coordinator {settings.name} in {out}: sites connect to {settings.address}, enrol at {settings.enrol_address}"
    )
    _say(f"authority, SHA-256: {mark}")
    if passphrase is None:
        _say(f"the keys in {home.pki} have no passphrase: their owner alone can read them")
    _say(f"next: medfl coordinator invite {out} SITE")


def invite(
    folder: Folder,
    name: Name,
    role: Annotated[PeerRole, typer.Option(help="What the peer is.")] = PeerRole.SITE,
    hours: Annotated[float, typer.Option(min=0.1, max=720, help="How long the invitation can be used.")] = 72,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write it; default: NAME.invitation.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Invite a peer: writes one file that lets it in once. Hand it over on a way that you trust; a new invitation ends
    the one before.

    Example: medfl coordinator invite coordinator hospital-a --hours 24
    """
    from medfl.audit.file import rewrite
    from medfl.transport.invitation import SUFFIX, Invitation

    home = _open(folder)
    settings = home.settings
    if role is PeerRole.SITE and settings.sites and name not in settings.sites:
        remedy = f"invite one of {', '.join(settings.sites)}, or add it to `sites`"
        raise InputError.at(folder / "coordinator.yaml", f"does not expect a site {name!r}", remedy)
    path = out or Path(f"{name}{SUFFIX}")
    if path.exists():
        raise InputError.at(path, "exists already", "remove it, or give --out another file")
    register = _register(home)
    try:
        token, expires = register.invite(name, role.value, timedelta(hours=hours))
    finally:
        register.close()
    invitation = Invitation(
        coordinator=settings.name,
        address=settings.address,
        enrol_address=settings.enrol_address,
        https_address=settings.https_address,
        ca=home.ca_certificate.read_text(encoding="ascii"),
        name=name,
        role=role.value,
        token=token,
        expires=expires,
    )
    rewrite(path, invitation.model_dump_json(indent=2).encode() + b"\n")
    mark = _authority_mark(home)
    if json:
        print_json(
            {"file": str(path), "name": name, "role": role.value, "expires": expires.isoformat(), "ca_sha256": mark}
        )
        return
    _say(f"{path}: lets the {role.value} {name} in once, until {expires:%Y-%m-%d %H:%M} UTC")
    _say("whoever has this file can enrol in that name: hand it to the hospital's data steward alone")
    _say(f"authority, SHA-256, to be compared by telephone: {mark}")


def revoke(folder: Folder, name: Name, json: Json = False) -> None:
    """Shut a peer out at once: every certificate and open invitation of that name ends.

    Example: medfl coordinator revoke coordinator hospital-a
    """
    register = _register(_open(folder))
    try:
        ended = register.revoke(name)
    finally:
        register.close()
    if json:
        print_json({"name": name, "certificates": ended})
    else:
        _say(f"{name}: {ended} certificate{'s' if ended != 1 else ''} revoked; a new invitation lets it in again")


def peers(folder: Folder, json: Json = False) -> None:
    """Show who was invited, who is enrolled, until when, and who was shut out.

    Example: medfl coordinator peers coordinator
    """
    home = _open(folder)
    register = _register(home)
    try:
        found = register.peers()
    finally:
        register.close()
    lines: list[dict[str, Any]] = [
        {"name": peer.name, "role": peer.role, "state": peer.state, "expires": peer.expires, "identity": peer.identity}
        for peer in found
    ]
    there = {peer.name for peer in found}
    absent = [site for site in home.settings.sites if site not in there]
    lines += [{"name": site, "role": "site", "state": "expected", "expires": None, "identity": ""} for site in absent]
    if json:
        texts = [{**line, "expires": line["expires"] and line["expires"].isoformat()} for line in lines]
        print_json({"coordinator": home.settings.name, "peers": texts})
    else:
        _print_peers(lines)


def _settings(name: str, given: list[str], enrol_port: int, sites: list[str], local: bool) -> "CoordinatorSettings":
    from pydantic import ValidationError

    from medfl.coordinator.settings import PORT, CoordinatorSettings
    from medfl.transport.invitation import faults_of, split_address

    try:
        addresses = [split_address(address) for address in given]
    except ValueError as error:
        raise InputError.at("--address", str(error), "for example --address fl.example.org:8443") from error
    ports = sorted({port for _, port in addresses if port is not None})
    if len(ports) > 1:
        raise InputError.at("--address", f"gives more than one port: {ports}", "give one port; see public_port")
    hosts = [host for host, _ in addresses] + (["localhost", "127.0.0.1"] if local else [])
    port = ports[0] if ports else PORT
    if port == enrol_port:
        raise InputError.at("--enrol-port", f"{port} is also the port for enrolled peers", "choose another one")
    values = {"port": port, "enrol_port": enrol_port, "addresses": tuple(dict.fromkeys(hosts)), "sites": tuple(sites)}
    try:
        return CoordinatorSettings.model_validate({"name": name, **values})
    except ValidationError as error:
        raise InputError(*faults_of(error, Path("the coordinator's settings"))) from None


def _open(folder: Path) -> "CoordinatorHome":
    from medfl.coordinator.settings import CoordinatorHome

    return CoordinatorHome.open(folder)


def _register(home: "CoordinatorHome") -> "Register":
    return home.register(None, _note(home))


def _note(home: "CoordinatorHome") -> "Note":
    from medfl.audit.log import AuditLog

    return AuditLog.open(home.audit, "coordinator").append


def _authority_mark(home: "CoordinatorHome") -> str:
    from medfl.transport.certificates import fingerprint, read_certificate

    return fingerprint(read_certificate(home.ca_certificate))


def _print_peers(lines: list[dict[str, Any]]) -> None:
    from rich.table import Table

    if not lines:
        _say("nobody was invited yet: medfl coordinator invite DIR SITE")
        return
    table = Table("name", "role", "state", "expires (UTC)", "identity")
    for line in lines:
        expires = f"{line['expires']:%Y-%m-%d %H:%M}" if line["expires"] else "-"
        table.add_row(line["name"], line["role"], line["state"], expires, line["identity"][:16] or "-")
    result().print(table)


def _say(text: str) -> None:
    result().print(text, markup=False, highlight=False, soft_wrap=True)
