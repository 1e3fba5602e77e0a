"""The coordinator sees each update (protected in transit by the transport only)."""

from typing import Literal

from medfl.plugins import PluginConfig
from medfl.privacy.channels.base import Channel
from medfl.update.base import Payload


class ClearConfig(PluginConfig):
    kind: Literal["clear"] = "clear"

    def traits(self) -> frozenset[str]:
        return frozenset({"reveals-each"})


class Clear(Channel):
    Config = ClearConfig

    def seal(self, payload: Payload, site: str, round_: int) -> Payload:
        return payload

    def open(self, payload: Payload, site: str, round_: int) -> Payload:
        return payload
