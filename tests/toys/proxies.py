"""Real proxies and firewalls, where they are installed, until a test ends."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toys.https_lines import until
from toys.ports import free_port

# a firewall that looks into the handshake and lets nothing through that offers HTTP/2
FIREWALL = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend site
  bind 127.0.0.1:{port}
  tcp-request inspect-delay 5s
  tcp-request content reject if {{ req.ssl_alpn -m sub h2 }}
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend federation if {{ req.ssl_sni -i {sni} }}
  default_backend federation
backend federation
  server lead 127.0.0.1:{target}
"""

TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 600
LogLevel Error
LogFile "{folder}/tinyproxy.log"
Allow 127.0.0.1
{auth}
"""

SQUID = """
http_port 127.0.0.1:{port}
acl local src 127.0.0.1
http_access allow local
http_access deny all
cache deny all
access_log none
cache_log /dev/null
pid_filename none
shutdown_lifetime 0 seconds
"""


@pytest.fixture
def run() -> Iterator[Callable[..., None]]:
    """Runs a program until the test ends, and waits until it listens."""
    running: list[subprocess.Popen[bytes]] = []

    def start(port: int, *command: str) -> None:
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: _listens(port) or running[-1].poll() is not None)
        assert running[-1].poll() is None, f"{command[0]} did not start"

    yield start
    for process in running:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def firewall(run: Callable[..., None], folder: Path, target: int) -> int:
    path, port = program("haproxy"), free_port()
    config = folder / f"firewall-{port}.cfg"
    config.write_text(FIREWALL.format(port=port, target=target, sni="localhost"))
    run(port, path, "-db", "-f", str(config))
    return port


def tinyproxy(run: Callable[..., None], folder: Path, auth: str = "") -> int:
    path, port = program("tinyproxy"), free_port()
    config = folder / "tinyproxy.conf"
    config.write_text(TINYPROXY.format(port=port, folder=folder, auth=auth))
    run(port, path, "-d", "-c", str(config))
    return port


def squid(run: Callable[..., None], folder: Path) -> int:
    path, port = program("squid"), free_port()
    config = folder / "squid.conf"
    config.write_text(SQUID.format(port=port))
    run(port, path, "-N", "-n", f"medfl{port}", "-f", str(config))
    return port
