"""The page as an ASGI application. Needs the extra `dashboard`."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from medfl.report.dashboard.guard import SECURITY_HEADERS, Guard
from medfl.report.dashboard.state import LiveState
from medfl.report.dashboard.view import Pages

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
STREAMS = 32
HEARTBEAT = 15.0
LOOK = 0.25
"""Seconds between two looks at the state: hooks may come faster than anyone reads."""


def create_app(
    state: LiveState, token: str, *, hosts: Sequence[str] = LOOPBACK, closing: threading.Event | None = None
) -> Starlette:
    """The page of `state`: `/`, `/events`, `/api/state`, `/assets/..`, and `/healthz`, which alone needs no session.

    token: what `/?token=..` must carry for a session. hosts: names that a request may address the page by. closing:
    set it to let open streams end. Requests must be served by one thread.
    """
    site = _Site(state, threading.Event() if closing is None else closing)
    routes = [
        Route("/", site.page),
        Route("/events", site.events),
        Route("/api/state", site.state),
        Route("/assets/{name}", site.asset),
        Route("/healthz", _healthy),
    ]
    guards = [Middleware(TrustedHostMiddleware, list(hosts), www_redirect=False), Middleware(Guard, token=token)]
    return Starlette(routes=routes, middleware=guards, exception_handlers={Exception: _failed})


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _failed(_: Request, __: Exception) -> Response:
    return PlainTextResponse("The page failed; the log of the coordinator says why.\n", 500, SECURITY_HEADERS)


class _Site:
    def __init__(self, state: LiveState, closing: threading.Event) -> None:
        self._state = state
        self._pages = Pages(state)
        self._closing = closing
        self._streams = 0
        assets = files("medfl.report.dashboard") / "assets"
        style = (files("medfl.report") / "templates" / "report.css").read_bytes()
        self._assets = {
            "dashboard.css": (style + (assets / "dashboard.css").read_bytes(), "text/css"),
            "dashboard.js": ((assets / "dashboard.js").read_bytes(), "text/javascript"),
            "icon.svg": ((assets / "icon.svg").read_bytes(), "image/svg+xml"),
        }

    async def page(self, _: Request) -> Response:
        self._pages.update()
        return HTMLResponse(self._pages.page())

    async def asset(self, request: Request) -> Response:
        found = self._assets.get(request.path_params["name"])
        return PlainTextResponse("Not found.\n", 404) if found is None else Response(found[0], media_type=found[1])

    async def state(self, request: Request) -> Response:
        """Everything as JSON; with `?since=VERSION` only the parts that changed after it."""
        version, parts = self._state.changes(_whole(request.query_params.get("since", "")))
        return JSONResponse({"epoch": self._state.epoch, "version": version, **parts})

    async def events(self, request: Request) -> Response:
        """Server-sent events: the fragments of the page that changed, and heartbeats."""
        if self._streams >= STREAMS:
            return PlainTextResponse("Too many pages are open.\n", 503, {"Retry-After": "10"})
        cursor = request.headers.get("last-event-id") or request.query_params.get("since", "")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        self._streams += 1
        return _Stream(self._follow(request, self._version(cursor)), self._left)

    def _left(self) -> None:
        self._streams -= 1

    def _version(self, cursor: str) -> int:
        """The version that a reader knows; 0 when it knows another coordinator's."""
        epoch, _, version = cursor.partition("-")
        return _whole(version) if epoch == self._state.epoch else 0

    async def _follow(self, request: Request, known: int) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        silent_since = loop.time()
        yield "event: beat\ndata:\n\n"
        while not self._closing.is_set() and not await request.is_disconnected():
            version = self._pages.update()
            if version > known:
                yield self._change(known)
                known, silent_since = version, loop.time()
            elif loop.time() - silent_since >= HEARTBEAT:
                yield "event: beat\ndata:\n\n"
                silent_since = loop.time()
            await asyncio.sleep(LOOK)

    def _change(self, known: int) -> str:
        pages = self._pages
        data = {"title": pages.title, "news": pages.news, "over": pages.over, "parts": pages.since(known)}
        return f"id: {pages.cursor}\nevent: change\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


class _Stream(StreamingResponse):
    """A stream of events that says when its reader has left, whatever way."""

    def __init__(self, events: AsyncIterator[str], left: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


def _whole(text: Any) -> int:
    """A version; 0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
