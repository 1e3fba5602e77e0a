"""What a person hands over to let a peer in, and what the peer keeps of it: two small JSON files."""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from medfl.errors import Fault, InputError
from medfl.keys import read_private
from medfl.transport.peers import Role

M = TypeVar("M", bound=BaseModel)

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What peers may be called: as site files allow."""
SUFFIX = ".invitation"

_ASK = "give the file NAME.invitation as the study lead handed it over, or ask for a new one"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    coordinator: str = Field(description="the coordinator's name")
    address: str = Field(description="host:port of the coordinator")
    enrol_address: str = Field(description="host:port that hands out first certificates")
    https_address: str | None = Field(None, description="host:port for peers whose network blocks HTTP/2")
    name: str = Field(pattern=NAME, description="the peer's name")
    role: Role

    @field_validator("address", "enrol_address", "https_address")
    @classmethod
    def _host_and_port(cls, address: str | None) -> str | None:
        if address is not None and split_address(address)[1] is None:
            raise ValueError("names no port")
        return address

    def https_target(self, port: int | None = None) -> str | None:
        """host:port to call by HTTPS. port: where it is not the one that was offered; None when there is none."""
        host, offered = split_address(self.https_address or self.address)
        found = port or (offered if self.https_address else None)
        return None if found is None else join_address(host, found)


class Invitation(_Document):
    """One use, for one peer. The token is shown in no text form of this."""

    ca: str = Field(description="the certificate that the coordinator's own is checked against (PEM)")
    token: str = Field(repr=False, min_length=43, max_length=43)
    expires: AwareDatetime

    def expired(self, now: datetime) -> bool:
        return now >= self.expires


class Connection(_Document):
    """connection.json: where a peer's coordinator is. ca_sha256: of the authority's certificate (DER), as hex."""

    ca_sha256: str


def read_invitation(path: Path) -> Invitation:
    """The invitation in a file that only its owner can read; InputError with all faults."""
    content = read_private(path)
    try:
        return Invitation.model_validate_json(content)
    except ValidationError as error:
        kinds = {item["type"] for item in error.errors(include_input=False, include_url=False, include_context=False)}
        if kinds & {"json_invalid", "model_type"}:
            what = "is not an invitation, or one that was cut off on its way: it is no whole JSON object"
            raise InputError.at(path, what, _ASK) from None
        faults = [Fault(fault.where, fault.what, _ASK) for fault in faults_of(error, path)]
        raise InputError(Fault(str(path), "is not an invitation of this version of medfl", _ASK), *faults) from None


def read_json(model: type[M], path: Path, content: bytes) -> M:
    """A file's content as a model; InputError with all faults, none of which repeats what the file says."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise InputError(*faults_of(error, path)) from None


def validated(model: type[M], raw: Mapping[str, Any], path: Path) -> M:
    """Parsed YAML as a model; errors as those of `read_json`."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InputError(*faults_of(error, path)) from None


def faults_of(error: ValidationError, path: Path) -> list[Fault]:
    faults = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        key = ".".join(map(str, item["loc"]))
        faults.append(Fault(f"{path}: {key}" if key else str(path), item["msg"].removeprefix("Value error, ")))
    return faults


def split_address(address: str) -> tuple[str, int | None]:
    """Host and port of HOST, HOST:PORT, IPv6 or [IPv6]:PORT; the port is None when it is not said. ValueError says
    what is wrong."""
    host, port = address, ""
    if address.startswith("["):
        host, bracket, port = address[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{address!r} is not [IPv6]:PORT")
        port = port.removeprefix(":")
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{address!r} is not HOST or HOST:PORT")
    if not port:
        return host, None
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 2**16):
        raise ValueError(f"{port!r} is not a port")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets round IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
