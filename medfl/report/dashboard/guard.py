"""Who may read the page. Host names against DNS rebinding, a session against everyone else on the machine."""

import hashlib
import hmac
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset(("/healthz",))
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REFUSED = (
    "Not allowed: this page needs the token of the running coordinator.\n"
    "Open the whole address that it printed, or paste it into the address bar.\n"
)


class Guard:
    """Only GET and HEAD, only with the session's cookie; `/?token=..` gives the cookie and is redirected away.

    The cookie's name and value follow from the token: two coordinators on one host, which share cookies whatever their
    ports, keep apart, and a restart with the same token keeps its readers. The value does not give the token away.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()
        self._value = hmac.digest(self._token, b"medfl dashboard session", "sha256").hex()
        self._name = "medfl-" + hashlib.sha256(b"name" + self._token).hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the page does not speak {scope['type']}")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        answer = self._refusal(scope)
        await (self._app if answer is None else answer)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """What is answered in place of the page; None for a reader who may read."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Read-only.\n", 405, {"Allow": "GET, HEAD"})
        if scope["path"] in OPEN_PATHS:
            return None
        # pages on other ports of this host are same-site, so the cookie alone does not keep them out
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and (
            headers.get("sec-fetch-mode") != "navigate" or headers.get("sec-fetch-dest", "document") != "document"
        ):
            return PlainTextResponse("Not allowed: asked for by another page.\n", 403)
        if scope["path"] == "/" and b"token=" in scope["query_string"]:
            return self._exchange(scope)
        given = cookie_parser(headers.get("cookie", "")).get(self._name, "")
        if hmac.compare_digest(given.encode(), self._value.encode()):
            return None
        return PlainTextResponse(REFUSED, 401)

    def _exchange(self, scope: Scope) -> Response:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        if not hmac.compare_digest(given.encode(), self._token):
            return PlainTextResponse(REFUSED, 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._name, self._value, httponly=True, samesite="strict", path="/")
        return answer
