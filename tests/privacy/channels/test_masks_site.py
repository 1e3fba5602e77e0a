"""A site against a coordinator that does not keep to the protocol: what must not be given is not given."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.secure_sum import Federation, agree, grid

from medfl.errors import RunError
from medfl.privacy.channels.base import Message, RoundContext
from medfl.privacy.channels.masks import keys, shamir
from medfl.privacy.channels.masks.coordinator import MasksCoordinator
from medfl.privacy.channels.masks.messages import SURVIVORS
from medfl.privacy.channels.masks.site import MasksSite
from medfl.privacy.identity import Ed25519Identity


class ForgetfulSite(MasksSite):
    """The fake: a site that does not remember that it opened a sum."""

    def answer(self, stage: str, message: Message) -> Message:
        before = copy.copy(self._round)
        answer = super().answer(stage, message)
        if stage == "masks.open" and before is not None:
            self._round, self._opened = dataclasses.replace(before, next=SURVIVORS), {}
        return answer


def forgetful(federation: Federation) -> Federation:
    for name in federation.names:
        identity = Ed25519Identity.generate(name)
        federation.roster[name] = identity.public
        federation.sites[name] = ForgetfulSite(identity, federation.roster, agree, 0.51)
    return federation


def difference_of_two_openings(federation: Federation) -> npt.NDArray[np.int64]:
    """What a coordinator learns that opens the sum of all sites, and then that of all but the last."""
    end, _ = federation.collected(federation.names[:-1])
    assert isinstance(end, MasksCoordinator)
    without = copy.copy(end)
    assert end._sum is not None
    without._sum, without._added = end._sum.copy(), set(end._added)
    last = federation.names[-1]
    end.add(last, federation.sealed({last: federation.updates(1)[last]})[last])
    return end.open(federation.exchange) - without.open(federation.exchange)


def test_two_sums_of_the_same_updates_are_never_opened() -> None:
    federation = Federation(4, 0.51)
    with pytest.raises(RunError, match="0 of 4 sites agreed to open the sum"):
        difference_of_two_openings(federation)
    assert (
        "a, round 1: was asked for 'masks.survivors'; what it does next is 'nothing more'" in federation.refusals["a"]
    )
    # without that memory the last site's update is laid open
    fake = forgetful(Federation(4, 0.51))
    np.testing.assert_array_equal(difference_of_two_openings(fake), fake.updates(1)["d"])


def test_a_later_attempt_is_opened_for_the_same_survivors_only() -> None:
    federation = Federation(5, 0.51)
    end, _ = federation.collected("abcd")
    end.open(federation.exchange)
    end, _ = federation.collected("abcde", attempt=2)
    with pytest.raises(RunError, match="1 of 5 sites agreed"):
        end.open(federation.exchange)
    assert "helped to open the sum of a, b, c, d, and does not open that of a, b, c, d, e" in federation.refusals["a"]
    end, plain = federation.collected("abcd", attempt=3)
    np.testing.assert_array_equal(end.open(federation.exchange), plain)
    end, plain = federation.collected("abcde", round_=2)
    np.testing.assert_array_equal(end.open(federation.exchange), plain)


@pytest.mark.parametrize(("round_", "attempt"), [(2, 2), (2, 1), (1, 9)])
def test_an_attempt_is_made_once_and_never_an_older_one(round_: int, attempt: int) -> None:
    federation = Federation(3)
    federation.coordinator(2, 2).prepare(federation.exchange)
    with pytest.raises(RunError, match="0 of 3 sites gave keys"):
        federation.coordinator(round_, attempt).prepare(federation.exchange)
    assert f"attempt {attempt} is not newer" in federation.refusals["a"]


def test_different_survivors_for_different_sites() -> None:
    """Every site sees a set that it could agree to, and no two sites the same: nothing is revealed."""
    federation = Federation(5, 0.51)
    end, _ = federation.collected("abcde")
    others = {"a": "abc", "b": "abd", "c": "bce", "d": "bde", "e": "abce"}
    revealed = []

    def tamper(stage: str, site: str, message: Message) -> Message:
        if stage == "masks.survivors":
            return Message({**message.header, "survivors": list(others[site])})
        if stage == "masks.open":
            revealed.append(site)
        return message

    federation.tamper = tamper
    with pytest.raises(RunError, match="the signature is not a's"):
        end.open(federation.exchange)
    assert not revealed and not federation.refusals
    # a coordinator that does not check shows each site the signatures of its set, each of which fits another sum
    assert isinstance(end, MasksCoordinator)
    signatures = {}
    for site, named in others.items():
        identity: Ed25519Identity = federation.sites[site]._identity  # type: ignore[attr-defined]
        signatures[site] = identity.sign(keys.survivors_statement(end._about_members, tuple(named))).hex()
    for site, named in others.items():
        request = Message({"round": 1, "attempt": 1, "signatures": {name: signatures[name] for name in named}})
        with pytest.raises(RunError, match=f"{site}, round 1: the signature is not"):
            federation.sites[site].answer("masks.open", request)


def opening(federation: Federation) -> tuple[Callable[[str, str, dict[str, Any]], Message], Message]:
    """Of a federation whose updates have arrived: what asks a site, and the right request to open."""
    end, _ = federation.collected(federation.names)
    assert isinstance(end, MasksCoordinator)

    def ask(site: str, stage: str, header: dict[str, Any]) -> Message:
        return federation.sites[site].answer(stage, Message({"round": 1, "attempt": 1, **header}))

    survivors = {"survivors": list(federation.names)}
    signed = {name: ask(name, SURVIVORS, survivors).header["signature"] for name in federation.names[1:]}
    return ask, Message({"signatures": signed})


def test_a_sum_is_opened_only_when_enough_sites_signed_it() -> None:
    federation = Federation(4)
    ask, proof = opening(federation)
    with pytest.raises(
        RunError, match=r"a, round 1: was asked for 'masks.open'; what it does next is 'masks.survivors'"
    ):
        ask("a", "masks.open", dict(proof.header))
    few = dict(list(proof.header["signatures"].items())[:2])
    with pytest.raises(RunError, match="b, round 1: 2 sites signed the sum to be opened, 3 are needed"):
        ask("b", "masks.open", {"signatures": few})
    with pytest.raises(RunError, match="b, round 1: was shown a signature of z"):
        ask("b", "masks.open", {"signatures": {**few, "z": few["b"]}})
    with pytest.raises(RunError, match="b, round 1: the signature is not d's"):
        ask("b", "masks.open", {"signatures": {**few, "d": few["b"]}})
    assert set(ask("b", "masks.open", dict(proof.header)).header["shares"]) == set(federation.names)


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        ("bcd", "without its own update"),
        ("ab", "2 sites are in the sum to be opened, 3 are needed"),
        ("abz", "an update of z"),
        ("abcc", "an update of a site twice"),
        ("abcde", "an update of e"),
    ],
)
def test_survivors_that_a_site_does_not_accept(survivors: str, reason: str) -> None:
    federation = Federation(5, 0.51)
    federation.lose({"masks.shares": "e"})
    federation.collected("abcd")
    request = Message({"round": 1, "attempt": 1, "survivors": list(survivors)})
    with pytest.raises(RunError, match=f"a, round 1: .*{reason}"):
        federation.sites["a"].answer(SURVIVORS, request)


def test_the_guard_is_asked_before_anything_is_given() -> None:
    asked: list[tuple[int, tuple[str, ...]]] = []

    def guard(context: RoundContext, survivors: tuple[str, ...]) -> None:
        asked.append((context.round, survivors))
        raise RunError.at("policy", "fewer than ten sites are in the sum")

    federation = Federation(3, guard=guard)
    end, _ = federation.collected("abc")
    assert asked == []
    with pytest.raises(RunError, match="0 of 3 sites agreed"):
        end.open(federation.exchange)
    assert asked == [(1, ("a", "b", "c"))] * 3
    assert federation.sent.get("masks.open") is None


def test_one_share_of_either_kind_is_revealed() -> None:
    """Of a survivor the seed's and of a lost site the key's: they rebuild those, and the sites forget them."""
    federation = Federation(4)
    end, _ = federation.collected("abc")
    assert isinstance(end, MasksCoordinator)
    revealed = end._reveal(federation.exchange, ("a", "b", "c"))
    weights = shamir.weights([federation.names.index(site) + 1 for site in revealed])
    rebuilt = {
        name: shamir.combine(weights, [answer.shares[name] for answer in revealed.values()])
        for name in federation.names
    }
    for name in federation.names:
        kept = federation.sites[name]._round  # type: ignore[attr-defined]
        assert (rebuilt[name] == kept.seed) == (name != "d")
        assert (rebuilt[name] == kept.private.masking.private_bytes_raw()) == (name == "d")
        assert rebuilt[name] != kept.private.sealing.private_bytes_raw()
        assert (kept.held == {}) == (name != "d")


def test_keys_are_checked_against_the_roster() -> None:
    """The coordinator puts its own keys between the sites."""
    own, federation = keys.RoundKeys(), Federation(3)
    sealing, masking = (key.hex() for key in own.public)

    def tamper(stage: str, _site: str, message: Message) -> Message:
        if stage != "masks.shares":
            return message
        known = {**message.header["keys"]}
        known["b"] = {**known["b"], "sealing": sealing, "masking": masking}
        return Message({**message.header, "keys": known})

    federation.tamper = tamper
    with pytest.raises(RunError, match="0 of 3 sites gave shares"):
        federation.coordinator().prepare(federation.exchange)
    assert federation.refusals["a"].startswith("a, round 1: the signature is not b's")


def test_keys_of_another_round_or_site_are_refused() -> None:
    federation = Federation(3)
    federation.coordinator(1).prepare(federation.exchange)
    old = federation.sent["masks.shares"]["a"].header["keys"]
    for mixed in ({"b": old["b"]}, {"a": old["a"]}, {"z": old["b"]}):
        federation.tamper = lambda stage, site, message, mixed=mixed: (  # type: ignore[misc]
            message
            if stage != "masks.shares"
            else Message({**message.header, "keys": {**message.header["keys"], **mixed}})
        )
        round_ = 2 + int("a" in mixed) + 2 * int("z" in mixed)
        with pytest.raises(RunError, match="0 of 3 sites gave shares"):
            federation.coordinator(round_).prepare(federation.exchange)


def test_a_site_with_another_key_on_the_roster_is_named() -> None:
    federation = Federation(3)
    federation.roster["b"] = Ed25519Identity.generate("b").public
    with pytest.raises(RunError, match="b, round 1: the signature is not b's"):
        federation.coordinator().prepare(federation.exchange)
    del federation.roster["b"]
    with pytest.raises(RunError, match="b, round 2: b is not on the roster"):
        federation.coordinator(2).prepare(federation.exchange)


@pytest.mark.parametrize("receiver", ["a", "c"])
def test_shares_are_for_one_receiver_and_cannot_be_changed(receiver: str) -> None:
    federation = Federation(3)

    def tamper(stage: str, site: str, message: Message) -> Message:
        if stage != "masks.peers" or site != receiver:
            return message
        shares = dict(message.header["shares"])
        text = bytearray.fromhex(shares["b"])
        text[5] ^= 1
        return Message({**message.header, "shares": {**shares, "b": text.hex()}})

    federation.tamper = tamper
    with pytest.raises(RunError, match="2 of 3 sites are ready"):
        federation.coordinator().prepare(federation.exchange)
    assert f"b: the shares that came from it for {receiver} are not" in federation.refusals[receiver]


def test_wrong_shares_of_a_site_are_found_out() -> None:
    federation = Federation(3)
    end, _ = federation.collected("abc")
    c = federation.sites["c"]
    now = c._round  # type: ignore[attr-defined]
    now.held["b"] = now.held["a"]
    with pytest.raises(RunError, match=r"round 1: its secret cannot be rebuilt|shares: do not belong to one secret"):
        end.open(federation.exchange)


def test_different_members_for_different_sites() -> None:
    federation = Federation(4, 0.51)

    def tamper(stage: str, site: str, message: Message) -> Message:
        if stage != "masks.peers" or site != "a":
            return message
        return Message({**message.header, "shares": {k: v for k, v in message.header["shares"].items() if k != "d"}})

    federation.tamper = tamper
    end = federation.coordinator()
    end.prepare(federation.exchange)
    payloads = federation.sealed(federation.updates(1))
    with pytest.raises(RunError, match="a, round 1: the signature is not a's"):
        end.add("a", payloads["a"])


def test_a_site_seals_once_and_only_what_was_agreed() -> None:
    federation = Federation(3)
    site, values = federation.sites["a"], federation.updates()["a"]
    with pytest.raises(
        RunError, match="a, round 1: was asked for 'seal'; the round that it agreed on keys for is none"
    ):
        site.seal(1, grid(values))
    federation.coordinator().prepare(federation.exchange)
    with pytest.raises(RunError, match=r"a, round 2: .* round 1, attempt 1"):
        site.seal(2, grid(values))
    with pytest.raises(RunError, match="a, round 1: a payload 'grid' of 3 values in 12 bytes cannot be masked"):
        site.seal(1, grid(values[:3]))
    before = values.copy()
    site.seal(1, grid(values))
    np.testing.assert_array_equal(values, before)
    with pytest.raises(RunError, match=r"a, round 1: was asked for 'seal'; what it does next is 'masks.survivors'"):
        site.seal(1, grid(values))


def test_rounds_that_a_site_does_not_enter() -> None:
    federation = Federation(4)
    with pytest.raises(RunError, match="0 of 4 sites gave keys"):
        federation.coordinator(minimum=2).prepare(federation.exchange)
    assert "a sum of 2 sites would be opened, 3 are the minimum" in federation.refusals["a"]
    for cohort in (["b", "c", "d"], ["a", "a", "b", "c"]):
        header = {"context": {**federation.context().to_json(), "cohort": cohort}}
        with pytest.raises(RunError, match="a, round 1: the cohort names a site twice, or does not name this one"):
            federation.sites["a"].answer("masks.keys", Message(header))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["context", "round", "attempt", "keys", "shares", "survivors", "signatures", "x"])
STAGES = st.sampled_from(["masks.keys", "masks.shares", "masks.peers", "masks.survivors", "masks.open", "x"])
FEDERATION = Federation(3)


@settings(max_examples=150)
@given(STAGES, st.dictionaries(NAMES, JSON | st.just(1), max_size=4))
def test_any_message_is_answered_or_refused(stage: str, header: dict[str, Any]) -> None:
    with pytest.raises(RunError):
        FEDERATION.sites["a"].answer(stage, Message(header))
