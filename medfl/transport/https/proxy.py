"""The proxy that the environment names: HTTPS_PROXY or https_proxy, and NO_PROXY."""

from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from medfl.errors import InputError


@dataclass(frozen=True)
class Proxy:
    """A forward proxy that is asked to CONNECT. authorization: of the Proxy-Authorization field, if any."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)

    @classmethod
    def of_environment(cls, host: str) -> "Proxy | None":
        """For calls to `host`; None when they go directly. InputError, which repeats no password, for an address that
        is none."""
        url = getproxies_environment().get("https", "")
        if not url or proxy_bypass_environment(host):
            return None
        return cls.parse(url)

    @classmethod
    def parse(cls, url: str) -> "Proxy":
        """From http://[user:password@]host[:port]; a missing port is 80."""
        try:
            found = urlsplit(url if "://" in url else f"http://{url}")
            host, port = found.hostname, found.port or 80
        except ValueError:
            host, port = None, 0
        if not host or found.scheme != "http":
            raise InputError.at("HTTPS_PROXY", "is not http://[user:password@]host:port", "set it so, or unset it")
        authorization = ""
        if found.username is not None:
            pair = f"{unquote(found.username)}:{unquote(found.password or '')}"
            authorization = "Basic " + b64encode(pair.encode()).decode("ascii")
        return cls(host, port, authorization)
