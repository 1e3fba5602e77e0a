"""What stands between a site and the coordinator: its signing key, its end of the channel, its ledger, its policy."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfl.data.base import SiteData
from medfl.errors import Faults, RunError
from medfl.learning.disclosure import Disclosure
from medfl.learning.messages import Beginning, LedgerHeads, TrainOrder, TrainReply
from medfl.privacy.accounting.base import Budget
from medfl.privacy.channels.base import (
    HAND_OVER,
    PART,
    Channel,
    Identity,
    Message,
    RoundContext,
    SiteEnd,
    hides,
    part_digest,
)
from medfl.privacy.codec import own_weight, weighted
from medfl.privacy.identity import Ed25519Identity
from medfl.privacy.ledger.base import Ledger, Unit
from medfl.privacy.ledger.file import FileLedger
from medfl.privacy.mechanisms.base import Mechanism, NoisePlan
from medfl.study.build import build_channel, build_mechanism, planned_epochs, sum_later_values
from medfl.study.model import Policy, Study
from medfl.study.refusals import policy_refusals
from medfl.study.sources import RunInputs
from medfl.transport.memory import SiteMemory, Transient
from medfl.update.base import Payload
from medfl.update.vector import FloatVector, vector_digest

_COORDINATOR = "coordinator"


class SiteDoor:
    """One site's. Nothing leaves but through here."""

    def __init__(
        self, name: str, inputs: RunInputs, identity: Identity | None = None, memory: SiteMemory | None = None
    ) -> None:
        self.name = name
        self.disclosure: Disclosure | None = None
        self._inputs = inputs
        self._policy = next((site.policy for site in inputs.sites if site.name == name), Policy())
        self._identity = identity or Ed25519Identity.generate(name)
        self._memory = memory or Transient()
        self._part = ""
        self._end: SiteEnd | None = None
        self._later = sum_later_values(inputs.study)
        self._waiting: tuple[int, Payload] | None = None

    @property
    def public(self) -> str:
        return self._identity.public.hex()

    def begin(self, beginning: Beginning, data: SiteData) -> LedgerHeads | None:
        """Take up a run that the policy allows; the heads of the site's ledger, if the run needs it. RunError when a
        ledger was put back to an older copy."""
        study = self._inputs.study
        channel: Channel = build_channel(study)
        # of a beginning that is refused, or of the run before, nothing is left
        self._end = self.disclosure = self._waiting = None
        trains = "train" in data.splits and self.name not in study.evaluation.unseen
        mechanism = build_mechanism(study)
        if trains and (mechanism is not None or beginning.noise is not None):
            # whether there is noise is for the study to say, which was approved: no plan is a wrong plan
            plan = None if beginning.noise is None else NoisePlan.from_json(beginning.noise)
            if plan is None or mechanism is None or not self._ours(mechanism, plan, data.cases["train"]):
                raise RunError.at(
                    f"site {self.name}",
                    "was sent a noise plan that the study does not make",
                    "nothing was charged; have the study lead start the run again",
                )
            ledger = self._open_ledger(self._inputs.ledgers)
            dataset = ledger.register(_patients(data) if plan.unit == "patient" else [self.name])
            self.disclosure = Disclosure(self.name, study.name, beginning.run, mechanism, plan, ledger, dataset)
        roster = {site: bytes.fromhex(key) for site, key in beginning.roster.items()}
        self._end = channel.site(self._identity, roster, self._guard)
        return None if self.disclosure is None else self._compare(self.disclosure.ledger, beginning)

    def _compare(self, ledger: Ledger, beginning: Beginning) -> LedgerHeads:
        kept = {_COORDINATOR: beginning.kept[self.name]} if self.name in beginning.kept else {}
        ledger.compare(kept, {_COORDINATOR: beginning.ledger})
        return LedgerHeads(ledger.head, ledger.witnessed().get(_COORDINATOR, ""))

    def witness(self, order: TrainOrder, model: FloatVector) -> None:
        """Before a training from a model: remember what it is about, and keep the head of the coordinator's ledger.
        RunError when there is none, or an older one than was kept, or when no run has begun: what is trained without
        its noise must not even be kept."""
        self._channel()
        self._require_grid(order)
        if hides(self._inputs.study.update.channel):
            # no sum without rounds is of updates of one model
            about = "" if self._later else vector_digest(model)
            self._part = part_digest(order.part, order.values, about)
        if self.disclosure is not None:
            self.disclosure.ledger.witness(_COORDINATOR, order.ledger)

    def _require_grid(self, order: TrainOrder) -> None:
        """RunError when an order whose update is summed later says another clip, grid or weight than the study makes:
        no later agreement covers them."""
        if any(order.values.get(name) != value for name, value in self._later.items()):
            raise RunError.at(
                f"site {self.name}, order {order.round}",
                "asks for another clip, grid or weight of the update than the study makes",
                "nothing was trained; have the study lead start the run again",
            )

    def _ours(self, mechanism: Mechanism, plan: NoisePlan, cases: int) -> bool:
        """Whether a plan is the study's, and says of this site what the site declared."""
        study = self._inputs.study
        public = getattr(study.privacy, "patients", None) is not None
        declared = public or plan.patients.get(self.name, cases) == cases
        ours = mechanism.agrees(plan, planned_epochs(study), study.stop.rounds)
        return self.name in plan.sites and declared and ours

    def refusals(self, data: SiteData) -> Faults:
        """Everything in the study that the site's policy does not allow."""
        return policy_refusals(self._inputs.study, self.name, self._policy, data.cases)

    def _open_ledger(self, folder: Path) -> FileLedger:
        ceiling: dict[Unit, Budget] = {}
        delta = None if self._inputs.study.privacy is None else self._inputs.study.privacy.delta
        if self._policy.max_epsilon is not None and delta is not None:
            budget = Budget(self._policy.max_epsilon, self._policy.max_delta or delta)
            ceiling = {"site": budget, "patient": budget}
        return FileLedger.open(folder / f"{self.name}.ledger", self.name, ceiling)

    def _guard(self, context: RoundContext, survivors: tuple[str, ...]) -> None:
        self._memory.opening(context.round, survivors)
        if self.disclosure is not None:
            self.disclosure.guard(context, survivors)

    def answer(self, stage: str, message: Message) -> Message:
        if stage == PART and self.disclosure is not None:
            self.disclosure.ledger.witness(_COORDINATOR, str(message.header.get("head")))
            return Message({"head": self.disclosure.ledger.head})
        if stage == HAND_OVER:
            return self._hand_over(message.header)
        return self._channel().answer(stage, message)

    def seal(self, reply: TrainReply) -> TrainReply:
        """The reply as it may leave."""
        if reply.notice or reply.snapshot is not None or reply.prototypes is not None:
            self._require_leave(reply)
        if reply.payload is None:
            return reply
        if self._later:
            self._waiting = reply.round, reply.payload
            return replace(reply, payload=None)
        sealed = self._channel().seal(reply.round, reply.payload, self._part)
        if self.disclosure is None:
            return replace(reply, payload=sealed)
        self.disclosure.done(sealed)
        return replace(reply, payload=sealed, ledger=self.disclosure.ledger.head)

    def _require_leave(self, reply: TrainReply) -> None:
        """RunError when what comes beside the update may not leave."""
        study, where = self._inputs.study, f"site {self.name}, round {reply.round}"
        if reply.prototypes is not None and self._policy.prototypes_may_leave is False:
            raise RunError.at(
                where,
                "its policy keeps gradients of single images in the house",
                "set policy.prototypes_may_leave, or local.rules: {kind: glfc, old_model: own}",
            )
        told = bool(reply.notice) and not study.tells_places
        if (told or reply.snapshot is not None or reply.prototypes is not None) and _sealed(study):
            raise RunError.at(
                where,
                "would send something of its update beside the sum that is sealed",
                "nothing was sent; the study asks for what its channel or its privacy forbids",
            )

    def _hand_over(self, header: Mapping[str, Any]) -> Message:
        """The update that waits, weighted and sealed; it is in one sum, and no more."""
        order, round_, where = header.get("order"), header.get("round"), f"site {self.name}"
        if type(order) is not int or type(round_) is not int or not self._later:
            raise RunError.at(where, "was not told which update is for which round's sum")
        payload = self._kept(order)
        if payload is None:
            raise RunError.at(where, f"keeps no update of order {order} for a sum", "ask it to train again")
        weights = header.get("weights")
        weight, told = own_weight(weights, self.name, where), part_digest({"weights": weights})
        self._memory.handing_over(order, round_, told)
        self._waiting = None
        sealed = self._channel().seal(round_, weighted(payload, weight), told)
        return Message({"payload": sealed.header()}, sealed.buffers)

    def _kept(self, order: int) -> Payload | None:
        """The update of an order, not sealed yet; of a process that was started anew what is on its disk."""
        if self._waiting is not None and self._waiting[0] == order:
            return self._waiting[1]
        answered = self._memory.answered(order)
        return None if answered is None else answered.payload

    def _channel(self) -> SiteEnd:
        if self._end is None:
            raise RunError.at(f"site {self.name}", "was asked before the run began")
        return self._end

    def may_evaluate(self, split: str) -> None:
        """RunError when the site's metrics on a split may not leave: of training images only where the schedule reads
        their losses, and none where the study withholds them."""
        study, where = self._inputs.study, f"site {self.name}"
        mechanism = study.privacy
        if split == "train" and (mechanism is not None or not study.tells_losses):
            raise RunError.at(where, "was asked for metrics on its training images, which the study does not need")
        withheld = mechanism is not None and mechanism.site_metrics == "withheld"
        if withheld and self.name not in study.evaluation.unseen:
            raise RunError.at(where, "was asked for metrics that the study withholds (privacy.site_metrics)")
        if not self._policy.metrics_may_leave:
            raise RunError.at(
                f"site {self.name}", "its policy keeps metrics in the house", "set policy.metrics_may_leave"
            )


def _sealed(study: Study) -> bool:
    """Whether the coordinator is to see nothing but sums, or nothing without noise."""
    return study.privacy is not None or hides(study.update.channel)


def _patients(data: SiteData) -> list[str]:
    """The patients that the site trains on."""
    train = data.splits["train"]
    return sorted({train.info(index).patient for index in range(len(train))})
