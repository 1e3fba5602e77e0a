"""The coordinator's side of differential privacy: its ledger, the noise it draws, and the statement of a run."""

import hashlib
import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.errors import RunError
from medfl.learning.messages import SiteFailure, TrainReply
from medfl.privacy.accounting.bounds import bounds, off_plan
from medfl.privacy.accounting.gaussian import GaussianAccountant
from medfl.privacy.accounting.pld import CALIBRATION, PldAccountant
from medfl.privacy.accounting.rdp import RdpAccountant
from medfl.privacy.channels.base import PART, Exchange, IntVector, Message
from medfl.privacy.grid import Grid
from medfl.privacy.ledger.base import BudgetError, Charge, Permit
from medfl.privacy.ledger.chained import ChainedLedger
from medfl.privacy.mechanisms.base import Mechanism, NoisePlan, Release
from medfl.privacy.noise import NoiseSource, draw, system
from medfl.study.model import Study
from medfl.update.wire import as_bytes

log = logging.getLogger(__name__)


class NoiseDesk:
    """Charges the coordinator's ledger before a release, and draws the noise that the coordinator adds."""

    def __init__(
        self,
        study: Study,
        run: str,
        mechanism: Mechanism,
        plan: NoisePlan,
        ledger: ChainedLedger,
        dataset: str,
        source: NoiseSource = system,
    ) -> None:
        self.mechanism = mechanism
        self.plan = plan
        self.ledger = ledger
        self._study = study
        self._run = run
        self._dataset = dataset
        self._source = source
        self._permit: Permit | None = None

    def refusal(self, round_: int) -> str:
        """Why the next round may not be made; "" when it may. Asked before anything of the round is sent."""
        try:
            self.ledger.check(self._charge(round_, None), self.mechanism.config.budget)
        except BudgetError as error:
            return error.faults[0].what
        return ""

    def release(self, round_: int, alive: int, grid: Grid | None = None, size: int = 0) -> IntVector | None:
        """Charge a round with `alive` sites in it, and draw the coordinator's noise [size] if it is the one to add it.
        BudgetError when the missing noise shares make the round too dear."""
        self._permit = permit = self.ledger.charge(self._charge(round_, alive), self.mechanism.config.budget)
        if grid is None or "central-noise" not in self.mechanism.config.traits():
            return None
        return draw(permit, self.plan.update_noise * grid.bound, size, self._source)

    def witnessed(self, reply: TrainReply) -> TrainReply | SiteFailure:
        """Keep the head of the site's ledger; a failure when the site has none or an older one than it had."""
        if not reply.ledger:
            return SiteFailure(reply.site, reply.round, "sent no head of its privacy ledger")
        try:
            self.ledger.witness(reply.site, reply.ledger)
        except RunError as error:
            return SiteFailure(reply.site, reply.round, str(error))
        return reply

    def part(self, exchange: Exchange) -> None:
        """At the end of a run: every site keeps the head of this ledger, and this one theirs."""
        for site, answer in exchange(
            PART, {site: Message({"head": self.ledger.head}) for site in self.plan.sites}
        ).items():
            try:
                self.ledger.witness(site, str(answer.header.get("head")))
            except RunError as error:
                # the run is over: what one site says last does not undo it
                log.warning("site %s, at the end of the run: %s", site, error)

    @property
    def entry(self) -> str:
        """The ledger's entry of the release that is under way."""
        return "" if self._permit is None else self._permit.entry

    def done(self, total: npt.NDArray[Any]) -> None:
        """Note in the ledger that what was charged, a noisy sum or a model made of noisy updates, is persisted."""
        if self._permit is not None:
            self.ledger.done(self._permit, hashlib.sha256(as_bytes(total)).hexdigest())
            self._permit = None

    def done_before(self, entry: str, total: npt.NDArray[np.signedinteger[Any]]) -> None:
        """Note a persisted sum of a process that may have died before it could."""
        if entry and entry not in dict(self.ledger.releases(self._run)):
            self._permit = self.ledger.recall(entry)
            self.done(total)

    def _charge(self, round_: int, alive: int | None) -> Charge:
        release = Release(self._study.name, self._run, round_, self._dataset, self._source.randomness)
        return self.mechanism.charge(self.plan, release, alive)

    def epsilon(self) -> float | None:
        """A valid epsilon so far, quickly: the exact one where everyone takes part, else by the plan's privacy loss
        distribution on a coarse grid, else by Renyi."""
        budget, events = self.mechanism.config, [charge.event for charge in self.ledger.charges(self._run)]
        if budget.delta is None or not events:
            return None
        kept = off_plan(events, self.plan.whole) is None
        accountants = [GaussianAccountant(), *([PldAccountant(CALIBRATION)] if kept else []), RdpAccountant()]
        return next((found for by in accountants if (found := by.epsilon(events, budget.delta)) is not None), None)

    def _bounds(self) -> list[dict[str, Any]]:
        delta = self.mechanism.config.delta
        if delta is None:
            raise RunError.at("privacy.delta", "is missing")
        events = [charge.event for charge in self.ledger.charges(self._run)]
        return [bound.to_json() for bound in bounds(events, delta, self.plan.whole)]

    def statement(self, channel: str) -> dict[str, Any]:
        """What the run may say about privacy, whole."""
        config, plan = self.mechanism.config, self.plan
        found = self._bounds()
        tightest = next((bound for bound in found if bound["tightest"]), None)
        return {
            "unit": plan.unit,
            "epsilon": tightest["epsilon"] if tightest else 0.0,
            "delta": config.delta,
            "adjacency": f"add or remove one {plan.unit}, against a fixed public denominator",
            "accountant": tightest["accountant"] if tightest else None,
            "mechanism": self.mechanism.describes,
            "not_covered": self.mechanism.not_covered(),
            "budget": config.epsilon,
            "bounds": found,
            "plan": plan.to_json(),
            "releases": len(self.ledger.charges(self._run)),
            "trust": self.mechanism.trust(channel),
            "randomness": self._source.randomness,
            "ledger_head": self.ledger.head,
        }
