"""Memory contract: what a lossy codec did not send is remembered at the site, in the coordinates of the whole vector.

The order of the pipeline is memory, then clip, then codec: the memory never sees noise (error feedback after a
clip would void the clip's bound).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy.typing as npt

from medfl.plugins import Plugin, PluginConfig, PluginPoint
from medfl.update.base import Update

SiteState = MutableMapping[str, npt.NDArray[Any]]
"""A site's private arrays by dotted name ("memory.residual"). They never leave the site."""

LASTING = "lasting."
"""The names of arrays that stay as they are for the whole run begin with it: an order for a round that was answered
before takes the others back to how they were, and these not."""


class Memory(Plugin[PluginConfig], ABC):
    @abstractmethod
    def before(self, update: Update, state: SiteState) -> Update:
        """The update with what was remembered added."""

    @abstractmethod
    def after(self, wanted: Update, sent: Callable[[], Update], state: SiteState) -> None:
        """Remember what of `wanted` is not in `sent()`, which decodes the very bytes that travel."""


MEMORIES = PluginPoint(
    "memory",
    "medfl.memories",
    {
        "none": "medfl.update.memories.none:NoMemory",
        "error_feedback": "medfl.update.memories.error_feedback:ErrorFeedback",
        "dgc": "medfl.update.memories.dgc:Dgc",
    },
)
