"""Sites on other machines: the transport contract over a `Post`.

A site that is away, slow, wrong or unwilling is a `SiteFailure` with its reason, never the end of a run. Answers are
fetched while they are awaited in the orders' sequence; what came early lies on disk and not in memory.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from medfl.errors import MedflError, RunError
from medfl.learning.messages import Beginning, LedgerHeads, SiteFailure, SiteInfo, TrainOrder
from medfl.privacy.channels.base import HAND_OVER, Message
from medfl.transport.answers import body, failure, heads_of, info_of
from medfl.transport.base import Arrays, Delivery, Evaluation, LocalProgress, Models, Transport, model_for
from medfl.transport.checksums import Bulk
from medfl.transport.messages import decode_reply, decode_statistics, order_header
from medfl.transport.parcels import unload
from medfl.transport.post import Post, Request, Ticket
from medfl.transport.texts import plain
from medfl.update.base import Payload
from medfl.update.vector import FloatVector, Layout
from medfl.update.wire import unpack

log = logging.getLogger(__name__)

JOIN = "join"
_ROOM = 2**26


@dataclass(frozen=True)
class Patience:
    """Seconds and counts. start: how long sites may take to join before a run begins without them; lost: how long a
    site may be away before a round goes on without it; deadline: of a round, from its orders on; exchange: of one step
    of a channel's protocol; misses: failed rounds in a row after which a site is not asked until it shows up again."""

    start: float = math.inf
    lost: float = 10.0
    deadline: float = math.inf
    exchange: float = 60.0
    misses: int = 3


@dataclass
class _Member:
    """A site that joined."""

    info: SiteInfo
    misses: int = 0
    pruned: bool = False
    begun: bool = False
    heads: LedgerHeads | None = None


@dataclass(frozen=True)
class Terms:
    """What a site is told when it calls. expected: sites to wait for; minimum: as many as must have joined."""

    study: Mapping[str, Any]
    expected: frozenset[str]
    minimum: int
    patience: Patience = field(default_factory=Patience)


class Remote(Transport):
    """model: makes the initial vector and its layout."""

    def __init__(self, post: Post, terms: Terms, model: Callable[[], tuple[FloatVector, Layout]]) -> None:
        self._post = post
        self._terms = terms
        self._model = model
        self._members: dict[str, _Member] = {}
        self._declined: dict[str, str] = {}
        self._begins = False
        self._submitted: dict[str, tuple[TrainOrder, Ticket | None, float]] = {}
        post.greeted = self._greeted
        post.greet(Request.of(JOIN, {"study": terms.study}))

    # joining

    def _greeted(self, ticket: Ticket) -> None:
        try:
            header, _ = body(ticket)
            if ticket.request.kind == JOIN:
                self._joined(ticket.site, header)
            else:
                self._began(ticket.site, header)
        except MedflError as error:
            self._decline(ticket.site, plain(error.faults[0].what))

    def _joined(self, site: str, header: Mapping[str, Any]) -> None:
        info = info_of(header.get("info"))
        if info.name != site:
            raise RunError.at(f"site {site}", f"joined as {info.name!r}")
        peer = self._post.peer(site)
        if info.identity != peer.identity:
            # it goes to all sites as the key of this one
            raise RunError.at(f"site {site}", "joined with another signing key than its certificate names")
        if peer.role != "site" and any(info.cases.values()):
            raise RunError.at(f"site {site}", f"is enrolled as {peer.role}, and joined with images")
        with self._post.changed:
            known = self._members.get(site)
            if known is not None and known.info.identity != info.identity:
                raise RunError.at(f"site {site}", "joined with another signing key than before")
            member = self._members.setdefault(site, _Member(info))
            member.info, member.begun = info, False
            self._declined.pop(site, None)
            if not self._begins:
                self._post.mark(site, "ready")
            self._post.changed.notify_all()

    def _began(self, site: str, header: Mapping[str, Any]) -> None:
        heads = heads_of(header, site)
        with self._post.changed:
            member = self._members.get(site)
            if member is None or site in self._declined:
                return
            member.heads = heads
            member.begun, member.misses, member.pruned = True, 0, False
            self._post.mark(site, "ready")
            self._post.changed.notify_all()

    def _decline(self, site: str, reason: str) -> None:
        with self._post.changed:
            self._declined[site] = reason
            member = self._members.get(site)
            if member is not None:
                member.begun = False
            log.warning("site %s takes no part: %s", site, reason)
            self._post.mark(site, "rejected", reason)
            self._post.changed.notify_all()

    def open(self) -> list[SiteInfo]:
        """Wait until the sites joined that the run begins with; RunError when too few did in time."""
        end, minimum = time.monotonic() + self._terms.patience.start, self._terms.minimum
        with self._post.changed:
            while True:
                there = set(self._members)
                training = sum(member.info.trains for member in self._members.values())
                left = end - time.monotonic()
                if training >= minimum and (left <= 0 or self._terms.expected <= there | set(self._declined)):
                    return self._infos()
                if left <= 0:
                    away = ", ".join(sorted(self._terms.expected - there)) or "none"
                    raise RunError.at(
                        "sites", f"{training} joined in time, {minimum} are needed; away: {away}", "start again later"
                    )
                self._post.changed.wait(min(1.0, left))

    def _infos(self) -> list[SiteInfo]:
        return sorted((member.info for member in self._members.values()), key=lambda info: info.name)

    def gather(self, quorum: int) -> list[SiteInfo]:
        """Wait until `quorum` sites can be asked to train; everything known of all sites that ever joined."""
        said = False
        with self._post.changed:
            while sum(self._can(site) for site, known in self._members.items() if known.info.trains) < quorum:
                if not said:
                    log.warning("waiting: fewer than %d sites are there", quorum)
                    said = True
                self._post.changed.wait(1.0)
            return self._infos()

    def _can(self, site: str) -> bool:
        member = self._members.get(site)
        there = self._post.away(site) is None
        state = self._post.states().get(site, ("", ""))[0]
        if member is not None and member.pruned and there and state == "ready":
            member.pruned, member.misses = False, 0
        return member is not None and member.begun and there and not member.pruned and state != "paused"

    def initial_model(self) -> tuple[FloatVector, Layout]:
        return self._model()

    def admit(self) -> None:
        """Every site looked at the study when it joined; those that did not allow it did not join."""

    def begin(self, beginning: Beginning) -> dict[str, LedgerHeads]:
        with self._post.changed:
            self._begins = True
            self._post.greet(Request.of("begin", asdict(beginning)))
            end = time.monotonic() + self._terms.patience.exchange
            while time.monotonic() < end and not all(
                member.begun or site in self._declined or self._gone(site) for site, member in self._members.items()
            ):
                self._post.changed.wait(0.5)
            return {site: member.heads for site, member in self._members.items() if member.heads is not None}

    def retell(self, beginning: Beginning) -> None:
        self._post.regreet(Request.of("begin", asdict(beginning)))

    def _gone(self, site: str) -> bool:
        away = self._post.away(site)
        return away is not None and away > self._terms.patience.lost

    # a round

    def train(
        self, orders: Sequence[TrainOrder], models: Models, progress: LocalProgress | None = None
    ) -> Generator[Delivery, None, None]:
        end = time.monotonic() + self._terms.patience.deadline
        bulks: dict[int, Bulk] = {}
        tickets: dict[str, Ticket] = {}
        for order in orders:
            model = model_for(models, order.site)
            self._post.largest = max(self._post.largest, 16 * model.size + _ROOM)
            if self._excuse(order.site) == "":
                # most sites are sent the same bytes, which are summed up once
                if id(model) not in bulks:
                    bulks[id(model)] = Bulk.of(model.buffers)
                bulk = bulks[id(model)]
                request = Request.of("train", order_header(order, model), model.buffers, bulk)
                tickets[order.site] = self._post.post(order.site, request, progress)
        self._post.sweep()
        try:
            for order in orders:
                ticket = tickets.get(order.site)
                if ticket is None:
                    yield self._missed(order, self._excuse(order.site) or "could not be asked", None)
                else:
                    self._await(ticket, end, "did not answer before the round's deadline")
                    found = self._delivery(order, ticket)
                    # a new process of the site is not asked again
                    self._post.drop([ticket], "was answered")
                    yield found
                    unload(ticket.answer)
                    ticket.answer = None
        finally:
            self._post.drop(tickets.values(), "is not awaited any more")

    # an asynchronous study

    def submit(self, order: TrainOrder, model: Payload, due: float, progress: LocalProgress | None = None) -> None:
        """due is not looked at. The study's deadline counts for each order, from here on."""
        self._post.largest = max(self._post.largest, 16 * model.size + _ROOM)
        ticket = None
        if self._excuse(order.site) == "":
            request = Request.of("train", order_header(order, model), model.buffers)
            ticket = self._post.post(order.site, request, progress)
        self._submitted[order.site] = order, ticket, time.monotonic() + self._terms.patience.deadline

    def arrival(self, timeout: float) -> Delivery | None:
        landed = self._landed(time.monotonic() + timeout)
        if landed is None:
            return None
        order, ticket = landed
        if ticket is None:
            return self._missed(order, self._excuse(order.site) or "could not be asked", None)
        found = self._delivery(order, ticket)
        self._post.drop([ticket], "was answered")
        self._post.sweep()
        return found

    def _landed(self, end: float) -> tuple[TrainOrder, Ticket | None] | None:
        with self._post.changed:
            while self._submitted:
                for site, (order, ticket, last) in sorted(self._submitted.items()):
                    if ticket is None or self._settled(ticket, last, "did not answer before its order's deadline"):
                        del self._submitted[site]
                        return order, ticket
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._post.changed.wait(min(0.5, left))
        return None

    def present(self) -> frozenset[str]:
        with self._post.changed:
            return frozenset(site for site in self._members if self._can(site) and self._excuse(site) == "")

    def recall(self) -> int:
        given_up, self._submitted = self._submitted.values(), {}
        self._post.drop([ticket for _, ticket, _ in given_up if ticket is not None], "is not awaited any more")
        return len(given_up)

    def _excuse(self, site: str) -> str:
        """Why a site is not asked; "" when it is."""
        with self._post.changed:
            member = self._members.get(site)
            if member is None or site in self._declined:
                return self._declined.get(site, "has not joined")
            state, detail = self._post.states().get(site, ("away", ""))
            if state == "paused":
                return f"is paused by its steward{': ' if detail else ''}{detail}"
            self._can(site)
            away = self._post.away(site)
            if member.pruned:
                return f"failed {member.misses} rounds in a row and has not come back"
            if away is not None and away > self._terms.patience.lost:
                return f"is away ({detail})" if detail else "is away"
            return ""

    def _await(self, ticket: Ticket, end: float, late: str) -> None:
        """Until the ticket is settled, one way or another."""
        with self._post.changed:
            while not self._settled(ticket, end, late):
                self._post.changed.wait(min(0.5, max(0.0, end - time.monotonic())))

    def _settled(self, ticket: Ticket, end: float, late: str) -> bool:
        """Whether there is an answer, or nothing more to wait for: the ticket is then dropped."""
        if not ticket.settled:
            if self._gone(ticket.site):
                self._post.drop([ticket], "was lost")
            elif time.monotonic() >= end:
                self._post.drop([ticket], late)
            elif ticket.site in self._declined:
                self._post.drop([ticket], self._declined[ticket.site])
        return ticket.settled

    def _delivery(self, order: TrainOrder, ticket: Ticket) -> Delivery:
        if ticket.answer is None:
            return self._missed(order, ticket.failure, ticket)
        try:
            header, _ = unpack(ticket.answer)
            if "answer" in header:
                return self._missed(order, failure(ticket.site, header), ticket)
            reply = decode_reply(ticket.answer)
            if (reply.site, reply.round) != (order.site, order.round):
                raise RunError.at(f"site {order.site}", f"answered for {reply.site}, round {reply.round}")
        except MedflError as error:
            return self._missed(order, f"sent rubbish: {error}", ticket)
        self._members[order.site].misses = 0
        return Delivery(reply, ticket.down_bytes, ticket.up_bytes, {}, ticket.id, ticket.digest)

    def _missed(self, order: TrainOrder, reason: str, ticket: Ticket | None) -> Delivery:
        with self._post.changed:
            member = self._members.get(order.site)
            if member is not None:
                member.misses += 1
                if member.misses >= self._terms.patience.misses and not member.pruned:
                    member.pruned = True
                    self._post.mark(order.site, "pruned", plain(reason))
        up, down = (0, 0) if ticket is None else (ticket.up_bytes, ticket.down_bytes)
        late = ticket is not None and "deadline" in ticket.failure
        text = reason if f"site {order.site}" in reason else f"site {order.site}, round {order.round}: {reason}"
        return Delivery(SiteFailure(order.site, order.round, plain(text), late), down, up)

    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        patience = self._terms.patience
        # a whole update travels, as after a training; a site that is lost is not waited for
        end = time.monotonic() + (patience.deadline if stage == HAND_OVER else patience.exchange)
        tickets = {}
        for site, message in messages.items():
            if self._excuse(site) == "":
                header = {"site": site, "stage": stage, "message": dict(message.header)}
                tickets[site] = self._post.post(site, Request.of("exchange", header, message.buffers))
        answers = {}
        for site, ticket in tickets.items():
            self._await(ticket, end, f"did not answer {stage} in time")
            try:
                said, buffers = body(ticket)
                if isinstance(said.get("message"), dict):
                    answers[site] = Message(said["message"], tuple(buffers))
            except MedflError as error:
                log.warning("site %s, stage %s: %s", site, stage, error)
        self._post.drop(tickets.values(), "is not awaited any more")
        return answers

    def evaluate(self, requests: Sequence[tuple[str, str]], model: Payload) -> Iterator[Evaluation]:
        end = time.monotonic() + self._terms.patience.deadline
        self._post.largest = max(self._post.largest, _ROOM)
        bulk, asked = Bulk.of(model.buffers), list[tuple[str, Ticket]]()
        for site, split in requests:
            if self._excuse(site) == "":
                header = {"site": site, "split": split, "model": model.header()}
                request = Request.of("evaluate", header, model.buffers, bulk)
                asked.append((split, self._post.post(site, request)))
        try:
            for split, ticket in asked:
                self._await(ticket, end, "did not evaluate in time")
                try:
                    statistics = decode_statistics(body(ticket)[1][0])
                except (MedflError, IndexError) as error:
                    log.warning("site %s did not evaluate on %s: %s", ticket.site, split, error)
                    continue
                yield Evaluation(ticket.site, split, statistics, ticket.down_bytes, ticket.up_bytes)
        finally:
            self._post.drop([ticket for _, ticket in asked], "is not awaited any more")

    def restore(self, states: Mapping[str, Arrays]) -> None:
        """The sites keep their own."""

    def close(self) -> None:
        """Lines stay open: whoever opened the post closes it."""
