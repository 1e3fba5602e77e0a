"""What the page says in words, and what it leaves out of the words of others."""

import re

STATES = {
    "away": "not connected yet",
    "connected": "connected",
    "held": "waits for approval",
    "rejected": "declined",
    "paused": "paused",
    "loading": "loads its images",
    "ready": "ready",
    "training": "training",
    "lost": "connection lost",
    "pruned": "taken out",
}
"""A site's connection, as `Observer.presence` names it."""

TAKES_PART = frozenset({"connected", "loading", "ready", "training"})
"""States of a site that is there and may be asked."""

OUTCOMES = {"admit": "admitted", "down-weight": "down-weighted", "refuse": "refused"}

HIDDEN = "[…]"
_LONGEST = 300
_UNITS = frozenset(("s", "seconds", "minutes", "min", "hours", "%", "MB", "GB", "MiB", "GiB", "bytes", "rounds"))
_PLAIN = re.compile(r"[(\[]*[A-Za-z]+(?:['’][a-z]+)?[)\].,:;!?]*")
_AMOUNT = re.compile(r"\d{1,6}(?:\.\d{1,3})?")
_RUN_OF_HIDDEN = re.compile(r"…\](?: \[…\])+")


def plain(text: str, *known: str) -> str:
    """The words of a site without what may name a patient, a file or an account.

    Only plain words, amounts with a unit and the names in `known` stay; words with digits, slashes, quotes,
    underscores and other marks (paths, file names, DICOM identifiers, keys of cases) become "[…]".
    """
    words = text.split()
    around = zip(["", *words], words, [*words[1:], ""], strict=False)
    kept = [word if _stays(before, word, after, known) else HIDDEN for before, word, after in around]
    short = _RUN_OF_HIDDEN.sub("…]", " ".join(kept))
    return short if len(short) <= _LONGEST else short[: _LONGEST - 1] + "…"


def _stays(before: str, word: str, after: str, known: tuple[str, ...]) -> bool:
    bare = word.rstrip(".,:;")
    if _PLAIN.fullmatch(word) or bare in known:
        return True
    return bool(_AMOUNT.fullmatch(bare)) and (before == "round" or after.rstrip(".,:;)") in _UNITS)
