"""Frames over HTTP/1.1 with mutual TLS and long polls, for sites whose network lets no HTTP/2 through."""

from enum import StrEnum

NOT_OFFERED = "the coordinator offers no HTTPS, and no port was given"


class Fallback(StrEnum):
    """When a site calls by HTTPS and not by gRPC: when that does not work, never, always."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"
