"""Flower's own processes on this machine: a SuperLink with TLS and registered nodes, and a SuperNode for each site.

They run in an environment of their own (`make test-flower`), for Flower's pins do not fit beside medfl's tools.
"""

import json
import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from toys.federations import Federation, Service, environment, until
from toys.ports import free_port

ROOT = Path(__file__).parents[2]
APP = ROOT / "configs" / "flower"


def flower_bin() -> Path:
    """The folder of Flower's commands; skips the test when there is none."""
    named = os.environ.get("MEDFL_TEST_FLOWER")
    found = Path(named) if named else ROOT / ".venv-flower"
    if not (found / "bin" / "flower-superlink").exists():
        pytest.skip(f"no Flower in {found}: make test-flower, or set MEDFL_TEST_FLOWER to its environment")
    return found / "bin"


class Command(Service):
    """A process that is not of medfl."""

    def __init__(self, name: str, log: Path, command: list[str], env: dict[str, str]) -> None:
        self.name, self.log = name, log
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            command, stdout=self._file, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )


class Flower:
    """SuperLink and SuperNodes; a context manager that ends what it started. config: a node's --node-config."""

    def __init__(self, folder: Path) -> None:
        self.bin = flower_bin()
        self.folder = folder
        self.port = free_port()
        self.started: list[Command] = []
        self._asked = time.monotonic()
        (folder / "lead").mkdir(parents=True)
        self._certificates()

    def __enter__(self) -> "Flower":
        return self

    def __exit__(self, *_: object) -> None:
        for service in reversed(self.started):
            service.kill()

    def env(self, role: str) -> dict[str, str]:
        """Nothing is reported anywhere, and every role has its own folder."""
        home = self.folder / role
        home.mkdir(exist_ok=True)
        own = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home)}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return {**environment(), **own, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}

    def _certificates(self) -> None:
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca = _certificate("ca", ca_key.public_key(), "ca", ca_key)
        server = _certificate("localhost", key.public_key(), "ca", ca_key)
        self.ca = self.folder / "ca.crt"
        self.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        (self.folder / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
        (self.folder / "server.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        config = f"""[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{self.port}"
root-certificates = "{self.ca}"
"""
        (self.folder / "lead" / "config.toml").write_text(config)

    def superlink(self, *options: str) -> Command:
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ssl-certfile", str(self.folder / "server.pem"), "--ssl-keyfile", str(self.folder / "server.key")]
        command += ["--ssl-ca-certfile", str(self.ca), "--enable-supernode-auth"]
        command += ["--disable-runtime-dependency-installation", *options]
        link = self._start("superlink", command)
        until(lambda: self._asks("ls"), 60, lambda: link.text)
        return link

    def _asks(self, *what: str) -> bool:
        return self.flwr(*what, "here").returncode == 0

    def flwr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(self.bin / "flwr"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.env("lead"), check=False)

    def node(self, name: str, config: str) -> Command:
        """A registered SuperNode."""
        key = ec.generate_private_key(ec.SECP384R1())
        private, public = self.folder / name, self.folder / f"{name}.pub"
        private.touch(0o600)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        )
        done = self.flwr("supernode", "register", str(public), "here")
        assert done.returncode == 0, done.stdout + done.stderr
        command = ["flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())]
        command += ["--root-certificates", str(self.ca), "--auth-supernode-private-key", str(private)]
        return self._start(name, [*command, "--node-config", config])

    def _start(self, name: str, command: list[str]) -> Command:
        command[0] = str(self.bin / command[0])
        service = Command(name, self.folder / f"{name}.log", command, self.env(name + ".home"))
        self.started.append(service)
        return service

    def run(self, app: Path, config: str = "") -> int:
        """Submit a run; its id."""
        given = ["-c", config] if config else []
        done = self.flwr("run", str(app), "here", "--format", "json", *given)
        assert done.returncode == 0, done.stdout + done.stderr
        said = json.loads(done.stdout[done.stdout.index("{") :])
        assert "run-id" in said, said
        return int(said["run-id"])

    def status(self, run: int) -> str:
        """Of a run, as Flower says it: "running", "finished:completed", ..."""
        done = self.flwr("ls", "here", "--format", "json")
        runs = json.loads(done.stdout[done.stdout.index("{") :])["runs"]
        return str(next(found["status"] for found in runs if int(found["run-id"]) == run))

    def over(self, run: int) -> bool:
        """Whether a run has ended; asks Flower every ten seconds."""
        now = time.monotonic()
        if now - self._asked < 10:
            return False
        over = "finished" in self.status(run)
        self._asked = time.monotonic()
        return over

    def text(self) -> str:
        return "\n".join(f"--- {service.name}\n{service.text[-3000:]}" for service in self.started)


class FlowerFederation(Federation):
    """The same folders as for gRPC, reached through Flower."""

    def over_flower(self, flower: Flower) -> str:
        """Start everything and see the run to its end; its status."""
        flower.superlink()
        sites = [self.flower_site(site) for site in self.sites]
        for site in self.sites:
            flower.node(f"node-{site}", f'medfl-home="{self.site_home(site)}"')
        run = flower.run(APP, f'coordinator="{self.home}"')
        # each question to Flower is a process of seconds: mostly the sites' ends are waited for
        until(lambda: all(site.process.poll() is not None for site in sites) or flower.over(run), 500, flower.text)
        assert [site.end() for site in sites] == [0] * len(sites), sites[0].text + flower.text()
        until(lambda: flower.over(run), 120, flower.text)
        return flower.status(run)

    def flower_site(self, name: str) -> Service:
        return self._start(name, "site", "start", "--home", self.site_home(name), "--flower")


def _certificate(name: str, key: Any, issuer: str, signer: Any) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
    )
    if name != issuer:
        names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())
