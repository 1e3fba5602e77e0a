"""FedBuff (J. Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
arXiv 2106.06639): the changes of `size` updates, each times s(staleness), are added up and divided by `size`; then one
step of `federation.server`."""

from typing import Literal

from pydantic import Field

from medfl.federation.asynchronous.base import Asynchronous, AsynchronousConfig
from medfl.privacy.channels.base import MINIMUM_SITES


class BufferedConfig(AsynchronousConfig):
    kind: Literal["buffered"] = "buffered"
    size: int = Field(3, ge=1, description="updates that make a server step")

    def traits(self) -> frozenset[str]:
        return super().traits() | ({"opens-few"} if self.size < MINIMUM_SITES else frozenset())


class Buffered(Asynchronous):
    Config = BufferedConfig
    config: BufferedConfig

    def __init__(self, config: BufferedConfig) -> None:
        super().__init__(config)
        self.size = config.size

    def share(self, staleness: int) -> float:
        return self.config.staleness.of(staleness) / self.size
