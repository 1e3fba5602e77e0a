"""The coordinator sees the sum only: masks that cancel (`site` tells the protocol, `coordinator` is its other end).

K. Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017: the variant for an
active adversary, with every pair of sites, for cohorts of up to about 100.
"""

from typing import Literal

from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.privacy.channels.base import Channel, CoordinatorEnd, Guard, Identity, Roster, RoundContext, SiteEnd


class MasksConfig(PluginConfig):
    """threshold: share of the cohort without which no sum is opened. Above one half: the coordinator cannot open
    two different sums, and where t of n sites are needed, not even with the help of fewer than 2t - n sites."""

    kind: Literal["masks"] = "masks"
    threshold: float = Field(0.67, gt=0.5, le=1.0)

    def traits(self) -> frozenset[str]:
        return frozenset({"reveals-sum"})


class Masks(Channel):
    Config = MasksConfig
    config: MasksConfig

    def site(self, identity: Identity, roster: Roster, guard: Guard) -> SiteEnd:
        from medfl.privacy.channels.masks.site import MasksSite

        return MasksSite(identity, roster, guard, self.config.threshold)

    def coordinator(self, context: RoundContext, roster: Roster) -> CoordinatorEnd:
        from medfl.privacy.channels.masks.coordinator import MasksCoordinator

        return MasksCoordinator(context, roster, self.config.threshold)
