"""UploadGate contract: send this round's update or skip it, and what stands in for one that was skipped.

    site          news = before(update);  allow(news)?  then after(sent)
    coordinator   change = stand_in.complete(mean of the news, ...)

A gate with the trait "mirrors-site" sends the difference to what the coordinator believes of the site (its mirror).
Both ends compute that belief from what was really sent. The coordinator needs no copy for each site: it keeps the
weighted sum of all mirrors, to which each piece of news is added. A site's mirror moves only once the site hears, with
its next order, that the update counted. A site that fails in several rounds running (it left, or lost its private
state) is not stood in for for ever: the coordinator then forgets all mirrors, and every site sends whole once.

Traits: "depends-on-update" (whether a site sends says something about its update), "mirrors-site".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Update, Upload
from medfl.update.memories.base import SiteState
from medfl.update.vector import FloatVector


class StandIn(ABC):
    """The coordinator's end of a gate. Weights are training cases."""

    @abstractmethod
    def weight(self, site: str, cases: int) -> float:
        """What a site weighs: its cases when it counted first, for its news are added to what is known of it."""

    @abstractmethod
    def complete(
        self, model: FloatVector, news: FloatVector | None, round_: int, senders: Mapping[str, float], total: float
    ) -> FloatVector | None:
        """The round's change of the model [size], with what stands in for the silent sites; None when there is none.

        model: the global vector [size] that the sites trained from. news: sum of weights times news [size]; None when
        no site sent any. senders: their weights. total: the weight of all sites. The answer is the caller's to change.
        """

    @abstractmethod
    def lost(self, failed: Collection[str], asked: Collection[str]) -> bool:
        """Take in which of the asked sites failed; whether everything that is known is now forgotten, because a site
        that stood in has been gone for too long. All sites must then begin anew."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, FloatVector]]:
        """Everything that lives on between rounds: a JSON-able part and arrays."""

    @abstractmethod
    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, FloatVector]) -> None:
        """Continue from `state()`."""


class UploadGate(Plugin[PluginConfig], ABC):
    def before(self, update: Update, upload: Upload, state: SiteState) -> Update:
        """What is to be sent of an update. Default: all of it."""
        return update

    @abstractmethod
    def allow(self, news: Update, sent: Callable[[], Update], upload: Upload, state: SiteState) -> bool:
        """Whether the news is worth sending. sent(): what the coordinator would decode."""

    def after(self, sent: Callable[[], Update], upload: Upload, state: SiteState) -> None:
        """The news was sent."""

    def stand_in(self) -> StandIn | None:
        """The coordinator's end; None when a silent site counts for nothing."""
        return None


GATES = PluginPoint(
    "upload gate",
    "medfl.gates",
    {
        "always": "medfl.update.gates.always:Always",
        "innovation": "medfl.update.gates.innovation:Innovation",
        "laq": "medfl.update.gates.laq:Laq",
    },
)
