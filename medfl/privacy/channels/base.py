"""Channel contract: what the coordinator can see of an update.

Traits: "reveals-each" (the coordinator opens every payload) or "reveals-sum" (only the sum of a round can be opened).
"""

from abc import ABC, abstractmethod

from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Payload


class Channel(Plugin[PluginConfig], ABC):
    @abstractmethod
    def seal(self, payload: Payload, site: str, round_: int) -> Payload:
        """At the site: the payload as it may leave."""

    @abstractmethod
    def open(self, payload: Payload, site: str, round_: int) -> Payload:
        """At the coordinator: the payload that `seal` was given. Only channels with "reveals-each"."""


CHANNELS = PluginPoint("channel", "medfl.channels", {"clear": "medfl.privacy.channels.clear:Clear"})
