"""The other parties' signing keys, pinned when they are first seen: a coordinator that swaps one could otherwise listen
in on masked sums."""

import json
from collections.abc import Mapping
from pathlib import Path

from medfl.errors import RunError
from medfl.site.home import write_json


def check_roster(path: Path, name: str, roster: Mapping[str, str]) -> None:
    """Pin the keys (as hex, by party) that are new; RunError when one is another than was pinned."""
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    changed = sorted(party for party, key in roster.items() if known.get(party, key) != key)
    if changed:
        raise RunError.at(
            name,
            f"knows {', '.join(changed)} by another signing key than the coordinator gives out",
            f"ask them, not the study lead; if they confirm it, remove them from {path}",
        )
    if roster.keys() - known.keys():
        write_json(path, known | dict(roster))
