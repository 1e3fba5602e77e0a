"""Who sees what in a study, and what a study without a privacy mechanism may say. One table for all that tell of it."""

from collections.abc import Mapping
from typing import Any

from medfl.privacy.channels.base import MINIMUM_SITES

QUESTIONS = {
    "updates": "Who sees updates",
    "images": "Who sees single images",
    "noise": "Who knows the noise",
    "key": "Who holds the key",
    "model": "Who gets the model",
    "holds against": "Epsilon holds against",
    "does not hold against": "But not against",
}
"""The rows of the trust table, in their order."""

_SEES = {
    "clear": "the coordinator sees each site's update",
    "masks": "the coordinator sees the sum of the sites' updates and no single one; that hides who sent what, and only "
    "noise or many sites and patients hide what was sent",
    "he": "the key holder and the coordinator see the sum of the sites' updates and no single one; that hides who sent "
    "what, and only noise or many sites and patients hide what was sent",
}


PLACES = "which values of each site's update are the largest, by name of the site"
"""What the coordinator sees beside a sealed update in a study whose sub-model tells places."""
PROTOTYPES = "gradients of single perturbed images, which give their classes away and from which images were rebuilt"
"""What leaves a site in a study with GLFC's proxy server, beside what leaves it in any."""
SNAPSHOTS = "how each site's model had changed by a step of the round that the coordinator chooses"
"""What leaves a site beside its update in a study whose schedule has snapshots."""
PROBES = "each site's losses of models that the coordinator chooses, on training images"
"""What leaves a site where the schedule reads losses."""


def privacy_statement(
    channel: str = "clear",
    *,
    places: bool = False,
    prototypes: bool = False,
    snapshots: bool = False,
    probes: bool = False,
) -> dict[str, Any]:
    """What a run without a privacy mechanism may say: nothing is promised, everything is listed. places: whether sites
    say beside a sealed update where it is large. prototypes: whether the study has a proxy server. snapshots: whether a
    second vector leaves with each update. probes: whether the schedule reads losses on training images."""
    covered = ["each site's update" if channel == "clear" else "the sum of the sites' updates"]
    seen = {"updates": _SEES.get(channel, f"as the channel {channel} says")}
    if places and channel != "clear":
        covered.append(PLACES)
        seen["updates"] += f"; the coordinator also sees {PLACES}"
    if snapshots:
        covered.append(SNAPSHOTS)
        seen["updates"] += f"; the coordinator also sees {SNAPSHOTS}"
    if probes:
        covered.append(PROBES)
    if prototypes:
        covered.append(PROTOTYPES)
        seen["images"] = "the coordinator, which rebuilds them from their gradients"
    return {
        "unit": None,
        "epsilon": None,
        "delta": None,
        "adjacency": None,
        "accountant": None,
        "mechanism": "none",
        "not_covered": [*covered, "per-site metrics", "per-site losses", "case counts"],
        "trust": seen,
    }


def trust_table(
    trust: Mapping[str, str], channel: Mapping[str, Any], plan: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """(question, answer): who sees what, and against whom epsilon holds.

    trust: as `Mechanism.trust` gives it. channel: the study's, as JSON. plan: a noise plan or the configuration of the
    mechanism, as JSON; its "kind" and "colluders" count.
    """
    plan = plan or {}
    coalition = _sites(plan.get("colluders", 0))
    said = {name: text.replace("`colluders` sites", coalition) for name, text in trust.items()}
    answers = {**said, "key": _key(channel)}
    if beyond := _beyond(plan, channel):
        answers["does not hold against"] = beyond
        if channel["kind"] == "he":
            answers["holds against"] = "every site, the coordinator and everyone who gets the model, each by itself"
    known = [(question, answers[name]) for name, question in QUESTIONS.items() if name in answers]
    return known + [(name, text) for name, text in answers.items() if name not in QUESTIONS]


def _key(channel: Mapping[str, Any]) -> str:
    if channel["kind"] == "clear":
        return "nobody: updates are not sealed"
    if channel["kind"] == "masks":
        return (
            "each site its own, fresh for every round; a sum opens with the help of "
            f"{100 * channel['threshold']:.0f} % of the cohort, and of no fewer than {MINIMUM_SITES} sites"
        )
    if channel["kind"] == "he" and channel["keys"] == "symmetric":
        return (
            "every site that of the round, the coordinator none: together with any one site it could open all updates"
        )
    if channel["kind"] == "he":
        holder = channel["key_holder"] or "the first site of the cohort by name"
        return f"{holder} alone: together with the coordinator it could open all updates"
    return f"as the channel {channel['kind']} says"


def _beyond(plan: Mapping[str, Any], channel: Mapping[str, Any]) -> str:
    """Coalitions that mode `patient` does not cover although nobody sees single updates."""
    if plan.get("kind") != "patient" or channel["kind"] == "clear":
        return ""
    if channel["kind"] == "he":
        who = "any one site" if channel["keys"] == "symmetric" else "the key holder"
        return f"the coordinator with {who}: they could open each site's sum, with that site's share of the noise only"
    return f"the coordinator with more than {_sites(plan['colluders'])}, who know their shares of the noise"


def _sites(number: int) -> str:
    return f"{number} site{'' if number == 1 else 's'}"
