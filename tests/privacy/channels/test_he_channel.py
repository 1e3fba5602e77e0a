"""The protocol of the encrypted channel: sums are exact, and whatever is wrong releases nothing."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medfl.errors import RunError, StudyError
from medfl.privacy.channels.base import CoordinatorEnd, Message, RoundContext, SiteEnd
from medfl.privacy.channels.he import He, HeConfig
from medfl.privacy.grid import SUM_LIMIT
from medfl.privacy.identity import Ed25519Identity
from medfl.update.base import Payload
from medfl.update.wire import as_bytes

pytest.importorskip("tenseal")

LIMIT = 8_000_000
Change = Callable[[str, str, Message], Message | None]


class Federation:
    """Sites and a coordinator in one process. Everything between them passes `wire`, as a network would: headers as
    JSON, buffers as copies. change(stage, site, request or answer) may alter or lose a message."""

    def __init__(self, sites: int = 4, size: int = 5000, **settings: Any) -> None:
        self.names = tuple(f"s{number:02d}" for number in range(sites))
        self.identities = {name: Ed25519Identity.generate(name) for name in self.names}
        self.roster = {name: identity.public for name, identity in self.identities.items()}
        self.size = size
        self.channel = He(HeConfig(**settings))
        self.guarded: list[tuple[str, ...]] = []
        self.ends: dict[str, SiteEnd] = {
            name: self.channel.site(identity, self.roster, lambda _, survivors: self.guarded.append(survivors))
            for name, identity in self.identities.items()
        }
        self.requests: Change = lambda stage, site, message: message
        self.answers: Change = lambda stage, site, message: message
        self.seen: list[Message] = []

    def context(self, round_: int = 3, attempt: int = 1, **changes: Any) -> RoundContext:
        return replace(RoundContext("run", round_, attempt, self.names, self.size, LIMIT), **changes)

    def coordinator(self, context: RoundContext | None = None) -> CoordinatorEnd:
        return self.channel.coordinator(context or self.context(), self.roster)

    def exchange(self, stage: str, messages: Mapping[str, Message]) -> dict[str, Message]:
        answers = {}
        for site, message in messages.items():
            request = self.requests(stage, site, message)
            if request is None:
                continue
            answer = self.answers(stage, site, wire(self.ends[site].answer(stage, wire(request))))
            if answer is not None:
                answers[site] = answer
                self.seen += [request, answer]
        return answers

    def prepared(self, context: RoundContext | None = None) -> CoordinatorEnd:
        end = self.coordinator(context)
        end.prepare(self.exchange)
        return end

    def updates(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        most = LIMIT // len(self.names)
        return {name: rng.integers(-most, most, self.size, dtype=np.int32, endpoint=True) for name in self.names}

    def filled(self, updates: Mapping[str, np.ndarray], context: RoundContext | None = None) -> CoordinatorEnd:
        end = self.prepared(context)
        for name, values in updates.items():
            end.add(name, received(self.ends[name].seal(3, grid(values))))
        return end


def wire(message: Message) -> Message:
    return Message(json.loads(json.dumps(message.header)), tuple(bytes(buffer) for buffer in message.buffers))


def received(payload: Payload) -> Payload:
    return Payload.of(json.loads(json.dumps(payload.header())), [memoryview(bytes(b)) for b in payload.buffers])


def grid(values: np.ndarray) -> Payload:
    return Payload("grid", values.size, (as_bytes(values.astype(np.int32)),))


def lose(stage: str, *sites: str) -> Change:
    return lambda at, site, message: None if at == stage and site in sites else message


def flipped(buffers: tuple[Any, ...], at: int) -> tuple[bytes, ...]:
    data = bytearray(buffers[0])
    data[at] ^= 1
    return (bytes(data), *buffers[1:])


SETTINGS = [{"scheme": scheme, "keys": keys} for scheme in ("bfv", "ckks") for keys in ("symmetric", "public")]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_sum_is_that_of_integers(settings: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    federation = Federation(**settings)
    updates = federation.updates()
    total = federation.filled(updates).open(federation.exchange)
    assert total.dtype == np.int64
    assert np.array_equal(total, sum(values.astype(np.int64) for values in updates.values()))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_hundred_sites_fill_the_limit(scheme: str) -> None:
    federation = Federation(100, size=40, scheme=scheme)
    updates = {name: np.full(40, 80_000, np.int32) for name in federation.names}
    for values in updates.values():
        values[::2] = -80_000
    total = federation.filled(updates).open(federation.exchange)
    assert np.array_equal(np.unique(total), [-SUM_LIMIT, SUM_LIMIT])


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_noise_of_the_coordinator_is_added(settings: dict[str, Any]) -> None:
    federation = Federation(3, **settings)
    updates = {name: values // 2 for name, values in federation.updates().items()}
    noise = np.random.default_rng(1).integers(-90_000, 90_000, federation.size)
    total = federation.filled(updates).open(federation.exchange, noise)
    assert np.array_equal(total, sum(values.astype(np.int64) for values in updates.values()) + noise)


def test_lost_site_counts_as_nothing() -> None:
    federation = Federation(4)
    updates = federation.updates()
    del updates["s02"]
    total = federation.filled(updates).open(federation.exchange)
    assert np.array_equal(total, sum(values.astype(np.int64) for values in updates.values()))
    assert federation.guarded == [("s00", "s01", "s03")] * 3


def test_site_that_does_not_join_is_left_out() -> None:
    federation = Federation(4)
    federation.requests = lose("he.join", "s01")
    assert federation.coordinator().prepare(federation.exchange) == ("s00", "s02", "s03")


def test_rounds_and_attempts_follow_each_other() -> None:
    federation = Federation(3, size=10)
    for round_, attempt in [(3, 1), (3, 2), (4, 1)]:
        end = federation.prepared(federation.context(round_, attempt))
        for name in federation.names:
            end.add(name, federation.ends[name].seal(round_, grid(np.full(10, round_))))
        assert np.array_equal(end.open(federation.exchange), np.full(10, 3 * round_))


def test_named_key_holder_makes_the_key() -> None:
    federation = Federation(3, size=10, key_holder="s02")
    asked: list[tuple[str, str]] = []
    federation.requests = lambda stage, site, message: (asked.append((stage, site)), message)[1]
    federation.filled(federation.updates()).open(federation.exchange)
    assert {site for stage, site in asked if stage in ("he.keys", "he.decrypt")} == {"s02"}


@pytest.mark.parametrize("keys", ["symmetric", "public"])
def test_key_holder_need_not_train(keys: str) -> None:
    federation = Federation(4, size=10, key_holder="s03", keys=keys)
    updates = federation.updates()
    del updates["s03"]
    total = federation.filled(updates, federation.context(cohort=tuple(updates))).open(federation.exchange)
    assert np.array_equal(total, sum(values.astype(np.int64) for values in updates.values()))


@pytest.mark.parametrize(
    "survivors", [None, 5, [["s00"], ["s01"], ["s02"]], ["s00", "s00", "s01"], ["s00", "s01", "x"]]
)
def test_malformed_survivors_are_refused(survivors: Any) -> None:
    federation = Federation(3, size=10)
    federation.filled(federation.updates())
    header = {"context": federation.context().to_json(), "survivors": survivors, "agreements": {}}
    for stage in ("he.agree", "he.decrypt"):
        with pytest.raises(RunError, match=r"coordinator, round 3"):
            federation.ends["s00"].answer(stage, Message(header))


@pytest.mark.parametrize("header", [{}, {"context": 3}, {"context": {"cohort": "abc"}}])
def test_malformed_requests_are_refused(header: dict[str, Any]) -> None:
    end = Federation(3, size=10).ends["s00"]
    with pytest.raises(RunError, match="does not describe a round"):
        end.answer("he.join", Message(header))
    with pytest.raises(RunError, match="does not know the protocol stage"):
        end.answer("he.other", Message(header))


def sees_secret_key(keys: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a part of the round's secret key, or an object that holds it, passes or stays at the coordinator."""
    from medfl.privacy.channels.he.scheme import Bfv, dump

    made: list[Any] = []
    original = Bfv.secret_key
    monkeypatch.setattr(Bfv, "secret_key", lambda self: (made.append(original(self)), made[-1])[1])
    federation = Federation(3, size=10, keys=keys)
    end = federation.prepared()
    payloads = [federation.ends[name].seal(3, grid(np.ones(10))) for name in federation.names]
    for name, payload in zip(federation.names, payloads, strict=True):
        end.add(name, payload)
    held = reachable(end)
    end.open(federation.exchange)
    passed = [(m.header, m.buffers) for m in federation.seen] + [(p.meta, p.buffers) for p in payloads]
    seen = b"".join(json.dumps(dict(header)).encode() + b"".join(map(bytes, buffers)) for header, buffers in passed)
    pieces = [dump(key)[start : start + 32] for key in made for start in range(100, 50_000, 4096)]
    objects = any(type(value).__name__ in ("SecretKey", "Decryptor") for value in held + reachable(end))
    return objects or any(piece in seen for piece in pieces)


@pytest.mark.parametrize("keys", ["symmetric", "public"])
def test_coordinator_never_sees_a_secret_key(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sees_secret_key(keys, monkeypatch)


def test_search_finds_a_secret_key_that_is_sent_or_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from medfl.privacy.channels.he import coordinator, keys

    with monkeypatch.context() as patch:
        patch.setattr(keys, "seal", lambda key, secret, binding: secret)
        patch.setattr(keys, "unseal", lambda key, box, binding: box)
        assert sees_secret_key("symmetric", patch)
    original = coordinator.HeCoordinator._checked_key

    def hold(self: Any, *given: Any) -> dict[str, Any]:
        self.held = {"key": [self._scheme.secret_key()]}
        return original(self, *given)

    monkeypatch.setattr(coordinator.HeCoordinator, "_checked_key", hold)
    assert sees_secret_key("symmetric", monkeypatch)


def reachable(root: Any) -> list[Any]:
    """All objects that the attributes, items and members of `root` lead to."""
    found: dict[int, Any] = {}
    queue = [root]
    while queue:
        value = queue.pop()
        if id(value) in found or isinstance(value, type | str | bytes | int | float):
            continue
        found[id(value)] = value
        queue += list(getattr(value, "__dict__", {}).values())
        if isinstance(value, Mapping):
            queue += list(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            queue += list(value)
    return list(found.values())


def test_look_shows_nothing() -> None:
    federation = Federation(3, size=10)
    end = federation.prepared()
    assert end.look("s00", federation.ends["s00"].seal(3, grid(np.ones(10)))) is None


@pytest.mark.parametrize("at", [8, 30, 100, 5000, -1])
def test_flipped_bit_is_refused_and_leaves_the_sum(at: int) -> None:
    federation = Federation(3)
    updates = federation.updates()
    end = federation.prepared()
    for name, values in updates.items():
        payload = federation.ends[name].seal(3, grid(values))
        with pytest.raises(RunError, match=rf"{name}, round 3.*did not sign this update"):
            end.add(name, replace(payload, buffers=flipped(payload.buffers, at)))
        end.add(name, payload)
    assert np.array_equal(end.open(federation.exchange), sum(v.astype(np.int64) for v in updates.values()))


@pytest.mark.parametrize("fault", ["cut", "empty", "extra", "garbage", "full", "other chunk"])
def test_signed_blob_that_is_no_update_is_refused_and_leaves_the_sum(fault: str) -> None:
    """A site that signs what cannot be added, after others have been added and in place of the first one."""
    from medfl.privacy.channels.he import blobs
    from medfl.privacy.channels.he.statements import Terms, update_facts

    def broken(payload: Payload) -> tuple[bytes, ...]:
        parts = [bytes(blob) for blob in blobs.split(payload.buffers)]
        return {
            "cut": lambda: (b"".join(parts[:-1]),),
            "empty": tuple,
            "extra": lambda: (b"".join([*parts, parts[0]]),),
            "garbage": lambda: (parts[0], bytes(len(parts[1]))),
            "full": lambda: (parts[0], blobs.plain_header(bytes(70_000), (4, 3)) + bytes(70_000)),
            "other chunk": lambda: (parts[0], parts[1][:9_000]),
        }[fault]()

    federation = Federation(3)
    updates = federation.updates()
    end = federation.prepared()
    for name, values in updates.items():
        payload = federation.ends[name].seal(3, grid(values))
        bad = replace(payload, buffers=broken(payload))
        terms = Terms(federation.context(), "bfv", "symmetric", "s00")
        facts = update_facts(name, str(payload.meta["key"]), bad)
        signature = terms.sign(federation.identities[name], "update", facts)
        with pytest.raises(RunError, match=rf"{name}, round 3 .*sealed an update that"):
            end.add(name, replace(bad, meta={**payload.meta, "signature": signature}))
        end.add(name, payload)
    assert np.array_equal(end.open(federation.exchange), sum(v.astype(np.int64) for v in updates.values()))


def test_replays_are_refused() -> None:
    federation = Federation(3, size=10)
    end = federation.prepared()
    payload = federation.ends["s01"].seal(3, grid(np.ones(10)))
    end.add("s01", payload)
    with pytest.raises(RunError, match=r"s01, round 3 .*in the sum already"):
        end.add("s01", payload)
    with pytest.raises(RunError, match=r"s02, round 3 .*did not sign"):
        end.add("s02", payload)
    with pytest.raises(RunError, match=r"s01, round 3 .*asked twice to seal"):
        federation.ends["s01"].seal(3, grid(np.ones(10)))
    later = federation.prepared(federation.context(attempt=2))
    with pytest.raises(RunError, match=r"s01, round 3 \(attempt 2\).*another round or attempt"):
        later.add("s01", payload)
    with pytest.raises(RunError, match=r"took part in this attempt before"):
        federation.prepared(federation.context(attempt=2))


def test_wrong_shapes_are_refused() -> None:
    federation = Federation(3, size=10)
    end = federation.prepared()
    with pytest.raises(RunError, match=r"s00, round 3 .*11 values"):
        federation.ends["s00"].seal(3, grid(np.ones(11)))
    with pytest.raises(RunError, match=r"s00, round 3 .*'fp32'"):
        federation.ends["s00"].seal(3, replace(grid(np.ones(10)), codec="fp32"))
    with pytest.raises(RunError, match=r"s00, round 3 .*beyond 8000000"):
        federation.ends["s00"].seal(3, grid(np.full(10, LIMIT + 1)))
    with pytest.raises(RunError, match="s00, round 4: has no key"):
        federation.ends["s00"].seal(4, grid(np.ones(10)))
    payload = federation.ends["s00"].seal(3, grid(np.ones(10)))
    with pytest.raises(RunError, match=r"s00, round 3 .*11 values"):
        end.add("s00", replace(payload, size=11))
    with pytest.raises(RunError, match=r"stranger, round 3"):
        end.add("stranger", payload)
    end.add("s00", payload)


def test_fewer_than_three_sites_are_never_opened() -> None:
    federation = Federation(4, size=10)
    updates = federation.updates()
    end = federation.filled({name: updates[name] for name in ("s00", "s01")})
    with pytest.raises(RunError, match=r"s02, s03, round 3 .*2 sites are in the sum, 3 are needed"):
        end.open(federation.exchange)
    with pytest.raises(RunError, match=r"coordinator, round 4 .*minimum of 2 sites, 3 are needed"):
        federation.prepared(federation.context(4, cohort=("s00", "s01"), minimum=2))
    with pytest.raises(RunError, match=r"coordinator, round 4 .*a site twice in its cohort"):
        federation.prepared(federation.context(4, cohort=("s00", "s01", "s01")))


def test_sum_is_opened_once() -> None:
    federation = Federation(3, size=10)
    end = federation.filled(federation.updates())
    kept: list[Message] = []
    federation.requests = lambda stage, _, message: (kept.append(message) if stage == "he.decrypt" else None, message)[
        1
    ]
    end.open(federation.exchange)
    with pytest.raises(RunError, match=r"round 3 .*opens the sum twice"):
        end.open(federation.exchange)
    with pytest.raises(RunError, match="holds no key of this round"):
        federation.ends["s00"].answer("he.decrypt", kept[-1])


def ask_to_decrypt(change: Callable[[dict[str, Any]], None], **settings: Any) -> Callable[[], Any]:
    """A round whose request to decrypt the coordinator changes."""
    federation = Federation(4, size=10, **settings)
    end = federation.filled(federation.updates())

    def changed(stage: str, _: str, message: Message) -> Message:
        if stage != "he.decrypt":
            return message
        header = json.loads(json.dumps(message.header))
        change(header)
        return Message(header, message.buffers)

    federation.requests = changed
    return lambda: end.open(federation.exchange)


def test_key_holder_wants_agreements() -> None:
    with pytest.raises(RunError, match=r"s00, round 3 .*agreement of 0 of the 4 sites"):
        ask_to_decrypt(lambda header: header.update(agreements={}))()
    with pytest.raises(RunError, match=r"s00, round 3 .*agreement of 2 of the 4 sites"):
        ask_to_decrypt(lambda header: [header["agreements"].pop(site) for site in ("s00", "s03")])()
    with pytest.raises(RunError, match=r"s01, round 3 .*did not sign this agreement"):
        ask_to_decrypt(lambda header: header["agreements"].update(s01=header["agreements"]["s02"]))()
    with pytest.raises(RunError, match=r"did not sign this agreement"):
        ask_to_decrypt(lambda header: (header["survivors"].pop(), header["agreements"].pop("s03")))()


def held(end: Any) -> list[Any]:
    ciphertexts: list[Any] = end._sum._ciphertexts
    return ciphertexts


def encryption_of_zero(end: Any) -> Any:
    """What a coordinator can make by itself: an encryption of zeros, here under a key of its own."""
    ciphertext = end._scheme.seal.Ciphertext()
    end._scheme.seal.Encryptor(end._scheme.context, end._scheme.secret_key()).encrypt_zero_symmetric(ciphertext)
    return ciphertext


TRICKS: dict[str, Callable[[Any, Any], Any]] = {
    "one site alone": lambda end, alone: alone,
    "one site twice": lambda end, alone: (end._scheme.evaluator.add_inplace(held(end)[0], alone), held(end)[0])[1],
    "guessed tokens": lambda end, alone: (
        end._scheme.evaluator.add_plain_inplace(alone, end._scheme.encode(np.full(4096, 1234))),
        alone,
    )[1],
    "another key": lambda end, alone: encryption_of_zero(end),
}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s.values()))
@pytest.mark.parametrize("trick", TRICKS)
def test_another_sum_than_agreed_is_not_opened(settings: dict[str, Any], trick: str) -> None:
    """A coordinator that sends something else than the sum, such as the update of one site, gets nothing back, and no
    second try."""
    federation = Federation(3, size=10, **settings)
    end: Any = federation.prepared()
    alone: Any = federation.coordinator()
    vars(alone).update(_sites=end._sites, _key_id=end._key_id)
    for name, values in federation.updates().items():
        payload = federation.ends[name].seal(3, grid(values // 2))
        end.add(name, payload)
        if name == "s00":
            alone.add(name, payload)
    held(end)[:] = [TRICKS[trick](end, held(alone)[0])]
    with pytest.raises(RunError, match=r"coordinator, round 3 .*sent a sum that"):
        end.open(federation.exchange)
    with pytest.raises(RunError, match="holds no key of this round"):
        federation.ends["s00"].answer("he.decrypt", Message({"context": federation.context().to_json()}))


def test_a_site_can_refuse_to_open() -> None:
    federation = Federation(3, size=10)

    def refuse(context: RoundContext, survivors: tuple[str, ...]) -> None:
        raise RunError.at("s01", f"round {context.round} would cost too much with {len(survivors)} sites")

    federation.ends["s01"] = federation.channel.site(federation.identities["s01"], federation.roster, refuse)
    end = federation.filled(federation.updates())
    with pytest.raises(RunError, match="s01: round 3 would cost too much"):
        end.open(federation.exchange)
    federation = Federation(3, size=10)
    federation.answers = lose("he.agree", "s01")
    with pytest.raises(RunError, match=r"s01, round 3 .*did not agree to open"):
        federation.filled(federation.updates()).open(federation.exchange)


@pytest.mark.parametrize("stage", ["he.join", "he.keys", "he.decrypt"])
@pytest.mark.parametrize("key_holder", [None, "s02"])
def test_absent_key_holder_is_named(stage: str, key_holder: str | None) -> None:
    federation = Federation(4, size=10, key_holder=key_holder)
    federation.requests = lose(stage, key_holder or "s00")
    with pytest.raises(RunError, match=rf"{key_holder or 's00'}, round 3 .*holds the round's key and"):
        federation.filled(federation.updates()).open(federation.exchange)


@pytest.mark.parametrize(
    ("stage", "key", "named"),
    [
        ("he.join", "public", "s00"),
        ("he.join", "signature", "s00"),
        ("he.keys", "signature", "s00"),
        ("he.agree", "signature", "s00"),
        ("he.decrypt", "signature", "s00"),
    ],
)
def test_answers_that_were_changed_are_refused(stage: str, key: str, named: str) -> None:
    federation = Federation(3, size=10)

    def change(at: str, _: str, message: Message) -> Message:
        if at != stage:
            return message
        text = message.header[key]
        return Message({**message.header, key: ("1" if text[0] == "0" else "0") + text[1:]}, message.buffers)

    federation.answers = change
    with pytest.raises(RunError, match=rf"{named}, round 3 .*did not sign"):
        federation.filled(federation.updates()).open(federation.exchange)


@pytest.mark.parametrize("keys", ["symmetric", "public"])
def test_site_takes_no_key_but_the_holders(keys: str) -> None:
    """The coordinator in the middle: keys that it changed, swapped or made itself."""
    federation = Federation(3, size=10, keys=keys)

    def change(at: str, site: str, message: Message) -> Message:
        if at != "he.install" or site != "s01":
            return message
        return Message(message.header, flipped(message.buffers, 40))

    federation.requests = change
    with pytest.raises(RunError, match=r"s00, round 3 .*did not sign the key that arrived"):
        federation.prepared()

    federation = Federation(3, size=10, keys=keys)
    man_in_the_middle = Ed25519Identity.generate("s00")
    federation.ends["s00"] = federation.channel.site(man_in_the_middle, federation.roster, lambda *_: None)
    with pytest.raises(RunError, match=r"s00, round 3 .*did not sign this join"):
        federation.prepared()


def test_sum_beyond_the_limit_is_not_released() -> None:
    federation = Federation(3, size=10)
    low = federation.context(limit=100)
    end = federation.prepared(low)
    for name in federation.names:
        end.add(name, federation.ends[name].seal(3, grid(np.full(10, 50))))
    with pytest.raises(RunError, match=r"s00, round 3 .*the sum passes 100"):
        end.open(federation.exchange)


def test_sums_without_room_are_refused_beforehand() -> None:
    federation = Federation(3, size=10)
    with pytest.raises(RunError, match=r"round 3 .*no room in scheme 'bfv'"):
        federation.coordinator(federation.context(limit=2**23))
    with pytest.raises(RunError, match=r"coordinator, round 3 .*a limit of 8000001"):
        federation.prepared(federation.context(limit=LIMIT + 1))
    end = federation.filled(federation.updates())
    with pytest.raises(RunError, match=r"round 3 .*noise has shape"):
        end.open(federation.exchange, np.full(10, LIMIT + 1))


def test_without_tenseal_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("medfl.privacy.channels.he.scheme.import_module", missing)
    channel = He(HeConfig())
    with pytest.raises(StudyError, match=r"pip install 'medfl\[he\]'"):
        channel.coordinator(Federation.context.__get__(FakeNames())(), {})


class FakeNames:
    names = ("a", "b", "c")
    size = 1


def test_importing_the_channel_does_not_import_tenseal() -> None:
    import subprocess
    import sys

    code = "import sys, medfl.privacy.channels.he as he; he.HeConfig(); sys.exit('tenseal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_configuration() -> None:
    assert HeConfig().traits() == {"reveals-sum"}
    assert He.Config is HeConfig
    assert importlib.import_module("medfl.privacy.channels.he").He is He


def test_a_later_attempt_opens_the_same_sum_or_none() -> None:
    """Two sums over nearly the same updates subtract to one site's update."""
    federation = Federation(4, size=10)
    updates = federation.updates()
    federation.filled(updates).open(federation.exchange)
    again = federation.prepared(federation.context(attempt=2))
    for name in federation.names[:3]:
        again.add(name, received(federation.ends[name].seal(3, grid(updates[name]))))
    with pytest.raises(RunError, match=r"agreed to the sum of s00, s01, s02, s03, and does not agree"):
        again.open(federation.exchange)
