"""Serves the page from a thread of the coordinator."""

import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from medfl.errors import InputError, RunError
from medfl.report.dashboard.state import LiveState

if TYPE_CHECKING:
    import uvicorn

_START = 10.0
_STOP = 5.0


@dataclass
class Dashboard:
    """A page that is served. url: with the token, for its reader alone; address: without it."""

    url: str
    address: str
    _server: "uvicorn.Server" = field(repr=False)
    _thread: threading.Thread = field(repr=False)
    _closing: threading.Event = field(repr=False)

    def stop(self) -> None:
        """Let open streams end and close the port; a second call does nothing."""
        self._closing.set()
        self._server.should_exit = True
        self._thread.join(_STOP)


def serve(
    state: LiveState,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    hosts: Sequence[str] = (),
) -> Dashboard:
    """Serve the page of `state` until `stop`, in a daemon thread.

    port: 0 takes a free one. token: of the printed address; None draws one. hosts: names that the page may be addressed
    by besides those of the loopback interface. The connection is not encrypted: any other interface needs `hosts`, and
    a proxy with TLS in front. InputError when the extra is not installed, the port cannot be had, or the token is too
    short.
    """
    try:
        import uvicorn

        from medfl.report.dashboard.app import LOOPBACK, create_app
    except ImportError as error:
        raise InputError.at("--dashboard", "is not installed", "pip install 'medfl[dashboard]'") from error
    if token is not None and len(token) < 16:
        raise InputError.at("--dashboard", "has a token that can be guessed", "use 16 characters or more, or none")
    if not _is_loopback(host) and not hosts:
        raise InputError.at(
            "--dashboard",
            f"would be open to the network on {host}, without encryption",
            "keep 127.0.0.1 and reach it with ssh -L, or put a TLS proxy in front and name its hosts",
        )
    token = secrets.token_urlsafe(32) if token is None else token
    listening, closing = _listen(host, port), threading.Event()
    app = create_app(state, token, hosts=(*LOOPBACK, *hosts), closing=closing)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="medfl-dashboard", daemon=True)
    thread.start()
    _await(server, thread)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/"
    return Dashboard(f"{address}?token={quote(token, safe='')}", address, server, thread, closing)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError.at(
            f"--dashboard {port}", f"cannot be used on {host}: {error}", "choose a free port"
        ) from error


def _await(server: Any, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RunError.at("dashboard", "did not start", "see the log above, or go on without --dashboard")
        time.sleep(0.01)
