"""What a site's agent did last, for whoever asks: HOME/work/status.json. And what the site's certificate says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medfl.errors import RunError
from medfl.site.home import SiteHome

_KEYS = frozenset({"at", "state", "coordinator", "run", "round", "detail"})


@dataclass(frozen=True, slots=True)
class Certificate:
    """identity: the public signing key, as hex. expires: UTC."""

    identity: str
    expires: str


def read_status(home: SiteHome) -> Mapping[str, Any] | None:
    """What the agent told last; None when it never ran. RunError when the file is none of its."""
    try:
        found = json.loads(home.status.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError.at(home.status, f"cannot be read: {error}", "start the agent again") from error
    if not isinstance(found, dict) or not found.keys() >= {"at", "state"}:
        raise RunError.at(home.status, "does not say what the agent did", "start the agent again")
    return {key: found.get(key) for key in sorted(_KEYS)}


def certificate_of(home: SiteHome) -> Certificate | None:
    """The site's certificate; None before it was enrolled."""
    from medfl.transport.certificates import read_certificate, subject_of

    path = home.pki / "site.pem"
    if not path.exists():
        return None
    read = read_certificate(path)
    return Certificate(subject_of(read).identity, f"{read.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
