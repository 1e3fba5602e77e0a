"""A coordinator's home: the folder where the study lead keeps the settings, the study, the keys and the run.

    coordinator.yaml   name, addresses, ports; edited by the study lead
    study.yaml         the study as it was resolved
    pki/               the authority's and the server's keys and certificates
    registry.db        the register of peers
    audit.log          what happened
    run/               the run folder, as that of a simulation
    spool/ ledgers/    what is on its way; the privacy ledger

Everything is readable by its owner only.
"""

import secrets
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, field_validator

from medfl.audit.file import flush_folder, rewrite
from medfl.coordinator.authority import Authority, Clock, utc_now
from medfl.coordinator.register import Note, Register
from medfl.errors import InputError
from medfl.folders import COORDINATOR, require
from medfl.keys import Ask, load_tls_key, make_private_folder, new_tls_key, read_private, to_pem
from medfl.study.load import load_study
from medfl.study.model import Section, Study
from medfl.study.sources import refuse_sharing
from medfl.study.yaml_text import parse
from medfl.transport.certificates import read_certificate
from medfl.transport.invitation import NAME, join_address, split_address, validated

PORT = 8443
ENROL_PORT = 8444

_RENEW_BEFORE = timedelta(days=30)
_FOLDERS = ("pki", "run", "spool", "ledgers")


class CoordinatorSettings(Section):
    """coordinator.yaml."""

    name: str = Field(pattern=NAME, max_length=80, description="what sites know this coordinator as")
    listen: str = Field("0.0.0.0", description="the address to listen on; 0.0.0.0 for all")
    port: int = Field(PORT, ge=0, lt=2**16, description="for enrolled peers")
    enrol_port: int = Field(ENROL_PORT, ge=0, lt=2**16, description="hands out first certificates to invitations")
    https_port: int | None = Field(
        None, ge=0, lt=2**16, description="for enrolled peers behind proxies that block HTTP/2; null is off"
    )
    https_enrol: bool = Field(
        True, description="whether `https_port` answers invitations too; false lets in nobody without a certificate"
    )
    addresses: tuple[str, ...] = Field(
        min_length=1, description="names and IP addresses that sites may use; invitations give the first"
    )
    public_port: int | None = Field(None, gt=0, lt=2**16, description="where sites find `port`, if it is forwarded")
    public_enrol_port: int | None = Field(None, gt=0, lt=2**16, description="where they find `enrol_port`")
    public_https_port: int | None = Field(None, gt=0, lt=2**16, description="where they find `https_port`")
    journal: str | None = Field(
        None, description="postgresql://user@host/db for the run's journal; null keeps it in a file of the run folder"
    )
    sites: tuple[str, ...] = Field((), description="sites that may be invited; empty allows any")

    @field_validator("addresses")
    @classmethod
    def _hosts(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            if split_address(address)[1] is not None:
                raise ValueError(f"{address!r} has a port; ports are set by port and public_port")
        return addresses

    @property
    def address(self) -> str:
        """host:port that sites connect to."""
        return join_address(self.addresses[0], self.public_port or self.port)

    @property
    def https_address(self) -> str | None:
        """host:port that sites connect to where HTTP/2 is blocked; None when the coordinator does not listen so."""
        port = None if self.https_port is None else self.public_https_port or self.https_port
        return None if port is None else join_address(self.addresses[0], port)

    @property
    def enrol_address(self) -> str:
        """host:port that sites enrol at."""
        return join_address(self.addresses[0], self.public_enrol_port or self.enrol_port)


class CoordinatorHome:
    """Open with `open`, make with `create`."""

    def __init__(self, folder: Path, settings: CoordinatorSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.pki, self.run, self.spool, self.ledgers = (folder / name for name in _FOLDERS)
        self.study_file, self.registry, self.audit = (folder / n for n in ("study.yaml", "registry.db", "audit.log"))
        self.ca_key, self.ca_certificate = self.pki / "ca.key", self.pki / "ca.pem"
        self.server_key, self.server_certificate = self.pki / "server.key", self.pki / "server.pem"

    @classmethod
    def create(
        cls,
        folder: Path,
        study: Path,
        settings: CoordinatorSettings,
        overrides: Sequence[str] = (),
        passphrase: bytes | None = None,
        clock: Clock = utc_now,
    ) -> "CoordinatorHome":
        """A new home with a fresh authority; it appears whole or not at all. StudyError with every fault of the study,
        InputError when the folder holds something already."""
        resolved = load_study(study, overrides)
        refuse_sharing(resolved)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError.at(folder, "is there already and is not empty", "give --out a new folder")
        draft = folder.resolve().with_name(f".{folder.resolve().name}.{secrets.token_hex(4)}")
        home = cls(draft, settings)
        try:
            home._fill(resolved, passphrase, clock)
            draft.replace(folder)
            flush_folder(draft.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls(folder, settings)

    @classmethod
    def open(cls, folder: Path) -> "CoordinatorHome":
        """The home in this folder; InputError with every fault of its coordinator.yaml, when others can read it, or
        when it is none."""
        path = folder / "coordinator.yaml"
        require(folder, COORDINATOR, "make one with `medfl coordinator init`")
        make_private_folder(folder)
        try:
            raw = parse(read_private(path).decode())
        except ValueError as error:
            raise InputError.at(path, f"cannot be read as YAML: {error}", "mend the file") from error
        if not isinstance(raw, dict):
            raise InputError.at(path, "is not a mapping of keys", "see `medfl coordinator init`")
        return cls(folder, validated(CoordinatorSettings, raw, path))

    def study(self) -> Study:
        """The resolved study; StudyError with every fault."""
        study = load_study(self.study_file)
        refuse_sharing(study)
        return study

    def authority(self, ask: Ask | None = None, clock: Clock = utc_now) -> Authority:
        """The study lead's certificate authority, from its files. ask: for the passphrase of its key."""
        return Authority.open(self.ca_key, self.ca_certificate, ask, clock)

    def register(self, authority: Authority | None, note: Note, clock: Clock = utc_now) -> Register:
        """The register of peers; without an authority it issues no certificates."""
        return Register.open(self.registry, authority, note, clock)

    def server_credentials(
        self, authority: Authority, ask: Ask | None = None, clock: Clock = utc_now
    ) -> tuple[bytes, bytes]:
        """The server's private key (PEM, unencrypted, for the memory of this process) and its certificate (PEM).

        The certificate is issued anew when it ends within a month, when `addresses` changed, or when it is missing.
        """
        key = load_tls_key(self.server_key, ask)
        if not self._serves(clock):
            issued = authority.issue_server(key.public_key(), self.settings.addresses)
            rewrite(self.server_certificate, issued.public_bytes(Encoding.PEM))
        return to_pem(key), self.server_certificate.read_bytes()

    def _serves(self, clock: Clock) -> bool:
        if not self.server_certificate.is_file():
            return False
        found = read_certificate(self.server_certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
        return hosts == set(self.settings.addresses) and clock() + _RENEW_BEFORE < found.not_valid_after_utc

    def _fill(self, study: Study, passphrase: bytes | None, clock: Clock) -> None:
        make_private_folder(self.folder)
        for name in _FOLDERS:
            make_private_folder(self.folder / name)
        settings = yaml.safe_dump(self.settings.model_dump(mode="json"), sort_keys=False)
        rewrite(self.folder / "coordinator.yaml", settings.encode())
        rewrite(self.study_file, yaml.safe_dump(study.to_json(), sort_keys=False).encode())
        authority, key = Authority.create(self.settings.name, clock), new_tls_key()
        rewrite(self.ca_key, to_pem(authority.key, passphrase))
        rewrite(self.ca_certificate, authority.pem)
        rewrite(self.server_key, to_pem(key, passphrase))
        issued = authority.issue_server(key.public_key(), self.settings.addresses)
        rewrite(self.server_certificate, issued.public_bytes(Encoding.PEM))
        Register.create(self.registry).close()
