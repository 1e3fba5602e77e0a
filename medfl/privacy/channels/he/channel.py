"""Homomorphic encryption: the coordinator adds ciphertexts that it cannot open; one site decrypts the sum.

After Y. Aono et al., "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", IEEE TIFS 2018
(arXiv 1706.00394), with a fresh key for every attempt of every round.

    he.join     every site: an ephemeral key, signed
    he.keys     the key holder (a site): a fresh key, sealed to each site or public
    he.install  every site: takes the key
    ...         sealed updates arrive and are added
    he.agree    every site in the sum: signs which sites are in it, once
    he.decrypt  the key holder: opens the sum that enough sites agreed to, once, rounded to the grid

What is trusted: the coordinator must not collude with a site that holds the secret key. With `symmetric` keys that is
every site; with `public` keys (twice the upload) it is the key holder alone. The sum is seen by both.
"""

from typing import Any, Literal

from pydantic import Field

from medfl.plugins import PluginConfig
from medfl.privacy.channels.base import Channel, CoordinatorEnd, Guard, Identity, Roster, RoundContext, SiteEnd


class HeConfig(PluginConfig):
    """scheme: bfv is exact by construction; ckks is rounded to be exact, and a little larger. keys: who can encrypt:
    symmetric (sites share the round's secret key; half the upload) or public. key_holder: the party that makes the key
    and decrypts; without it, the first of the round's cohort by name."""

    kind: Literal["he"] = "he"
    scheme: Literal["bfv", "ckks"] = "bfv"
    keys: Literal["symmetric", "public"] = "symmetric"
    key_holder: str | None = Field(default=None, min_length=1)

    def traits(self) -> frozenset[str]:
        return frozenset({"reveals-sum"})


class He(Channel):
    """Needs TenSEAL (`pip install 'medfl[he]'`): StudyError when an end is made without it."""

    Config = HeConfig

    def site(self, identity: Identity, roster: Roster, guard: Guard) -> SiteEnd:
        from medfl.privacy.channels.he.site import HeSite

        return HeSite(identity, roster, guard, *self._settings())

    def coordinator(self, context: RoundContext, roster: Roster) -> CoordinatorEnd:
        from medfl.privacy.channels.he.coordinator import HeCoordinator

        return HeCoordinator(context, roster, *self._settings())

    def _settings(self) -> tuple[Any, Any, str | None]:
        config: Any = self.config
        return config.scheme, config.keys, config.key_holder
