"""Whatever happens to a line, each message arrives once and whole."""

import tracemalloc
import zlib
from collections.abc import Callable, Hashable, Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.wires import End, Wire

from medfl.transport import line as lines
from medfl.transport import parcels
from medfl.transport.limits import Turns
from medfl.transport.line import Line
from medfl.transport.mail import Mailbox, Outgoing, ProtocolError
from medfl.transport.parcels import Incoming
from medfl.transport.pieces import Piece, Sent, kind_of
from medfl.transport.protocol.medfl_pb2 import Beat, Frame, Have, Open

MESSAGES = st.dictionaries(st.sampled_from(["a-1", "b-2", "c-3"]), st.binary(max_size=60), max_size=3)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["send", "deliver", "cut", "restart", "repeat", "swap", "flip"]), st.integers(0, 1)),
    max_size=60,
)


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Chunks of 7 bytes, and messages of up to 5 inside their announcement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcels, "CHUNK", 7)
        patch.setattr(lines, "INLINE", 5)
        yield


def damage(spool: Path) -> None:
    for path in sorted(spool.iterdir()):
        content = bytearray(path.read_bytes())
        if content:
            content[len(content) // 2] ^= 1
            path.write_bytes(bytes(content))


def act(wire: Wire, action: str, at: int) -> None:
    end = wire.ends[at]
    if action == "send":
        wire.send(at)
    elif action == "deliver":
        wire.deliver(at)
    elif action == "cut":
        wire.cut()
    elif action == "restart":
        end.restart()
        wire.cut()
    elif action == "repeat" and end.ways:
        end.ways.append(end.ways[-1])
    elif action == "swap" and len(end.ways) > 1:
        end.ways[-1], end.ways[-2] = end.ways[-2], end.ways[-1]
    elif action == "flip":
        damage(end.spool)


def check(there: dict[str, bytes], back: dict[str, bytes], actions: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as folder:
        one, other = End(Path(folder, "one"), there), End(Path(folder, "other"), back)
        wire = Wire(one, other)
        for action, at in actions:
            act(wire, action, at)
        # frames that were reordered may leave both ends waiting: the next connection puts that right
        wire.cut()
        assert wire.settle() and not one.unsent and not other.unsent
        assert sorted(other.arrived) == sorted(there.items()) and sorted(one.arrived) == sorted(back.items())
        for end in (one, other):
            # what came inside its announcement is summed up by whoever wants it
            sums = [sha256(message).hexdigest() if len(message) > 5 else "" for _, message in end.arrived]
            assert end.digests == sums


@settings(max_examples=300)
@given(MESSAGES, MESSAGES, ACTIONS)
def test_every_message_arrives_once_and_whole(
    there: dict[str, bytes], back: dict[str, bytes], actions: list[tuple[str, int]]
) -> None:
    check(there, back, actions)


HALF_WAY = [*[("send", 0), ("deliver", 0), ("send", 1), ("deliver", 1)] * 4]


@pytest.mark.parametrize("then", ["cut", "restart"])
def test_a_byte_that_changed_in_the_spool_is_noticed(then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    story = [*HALF_WAY, ("flip", 1), (then, 1)]
    check({"a-1": bytes(range(50))}, {}, story)
    # a receiver that believes its file takes the damaged message
    monkeypatch.setattr(parcels.isal_zlib, "crc32", lambda data, start=0: 0)
    with pytest.raises(AssertionError):
        check({"a-1": bytes(range(50))}, {}, story)


def test_a_sum_that_starts_at_the_missing_byte_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake: after a restart, what lies in the spool already is no part of the digest."""
    real = Incoming.__init__

    def forgetful(self: Incoming, *given: Any) -> None:
        real(self, *given)
        self._hash = sha256()

    story = [*HALF_WAY, ("restart", 1)]
    check({"a-1": bytes(range(50))}, {}, story)
    monkeypatch.setattr(Incoming, "__init__", forgetful)
    with pytest.raises(AssertionError):
        check({"a-1": bytes(range(50))}, {}, story)


def test_a_receiver_that_forgets_takes_a_message_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake of the exactly-once property: the Done is lost, and nobody remembers."""
    monkeypatch.setattr(End, "wanted", lambda self, id_, size: "take")
    with pytest.raises(AssertionError):
        check({"a-1": b"12"}, {}, [("send", 0), ("deliver", 0), ("send", 1), ("cut", 0)])


def test_a_transfer_goes_on_at_the_missing_byte(tmp_path: Path) -> None:
    message = bytes(70)
    one, other = End(tmp_path / "one", {"a-1": message}), End(tmp_path / "other", {})
    wire = Wire(one, other)
    for action, at in HALF_WAY:
        act(wire, action, at)
    outgoing = one.box.outgoing["a-1"]
    other.restart()
    wire.cut()
    assert wire.settle() and other.arrived == [("a-1", message)] and wire.cuts == 1
    # but for the piece that was on the wire
    assert 70 <= outgoing.sent <= 70 + 7


def outgoing_order(one: End, wire: Wire) -> list[str]:
    found = []
    while wire.send(0) or wire.send(1) or one.ways or wire.ends[1].ways:
        found += [frame.id for frame in one.ways if isinstance(frame, Piece)]
        found += [f"open {frame.open.id}" for frame in one.ways if kind_of(frame) == "open"]
        wire.deliver(0)
        wire.deliver(1)
    return found


def test_a_small_message_overtakes_and_two_large_ones_take_turns(tmp_path: Path) -> None:
    one, other = End(tmp_path / "one", {"a-1": bytes(70), "b-2": bytes(70)}), End(tmp_path / "other", {})
    wire = Wire(one, other)
    for _ in range(8):
        wire.send(0), wire.deliver(0), wire.send(1), wire.deliver(1)
    one.box.send(Outgoing("c-3", [b"now"]))
    order = outgoing_order(one, wire)
    assert order[0] == "open c-3"
    chunks = order[1:]
    assert all(before != after for before, after in pairwise(chunks[:-1]))
    assert {id_ for id_, _ in other.arrived} == {"a-1", "b-2", "c-3"}


def test_a_request_that_was_given_up_half_way_can_be_sent_again(tmp_path: Path) -> None:
    one, other = End(tmp_path / "one", {"a-1": bytes(70)}), End(tmp_path / "other", {})
    wire = Wire(one, other)
    for action, at in HALF_WAY:
        act(wire, action, at)
    one.box.forget("a-1", tell=True)
    one.box.send(Outgoing("a-1", [bytes(70)]))
    assert wire.settle() and other.arrived == [("a-1", bytes(70))] and wire.cuts == 0


def test_an_answer_that_changed_replaces_the_one_before(tmp_path: Path) -> None:
    one, other = End(tmp_path / "one", {"a-1": bytes(70)}), End(tmp_path / "other", {})
    wire = Wire(one, other)
    for action, at in HALF_WAY:
        act(wire, action, at)
    one.box.forget("a-1")
    one.box.send(Outgoing("a-1", [b"x" * 70]))
    assert wire.settle() and other.arrived == [("a-1", b"x" * 70)]


# limits


def mailbox(spool: Path, wanted: str = "take") -> Mailbox:
    return Mailbox(spool, lambda id_, size: wanted, lambda id_, message, came: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("id_", ["../../x", "a/b", "", "A", "a.b", "a" * 121, "a\n", "\x00", "é"])
def test_an_id_is_no_path(tmp_path: Path, id_: str) -> None:
    line = mailbox(tmp_path / "spool").connect(2.0)
    with pytest.raises(ProtocolError):
        line.take(Frame(open=Open(id=id_, size=100)))
    assert list(tmp_path.rglob("*")) == [tmp_path / "spool"]


def test_what_lies_in_the_spool_is_its_owners_alone(tmp_path: Path) -> None:
    line = mailbox(tmp_path / "spool").connect(2.0)
    line.take(Frame(open=Open(id="a", size=100)))
    (path,) = (tmp_path / "spool").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_spool_is_not_followed(tmp_path: Path) -> None:
    target, given_up = tmp_path / "target", list[str]()
    target.write_bytes(b"precious")
    box = Mailbox(
        tmp_path / "spool", lambda i, s: "take", lambda i, m, c: None, unstored=lambda id_, e: given_up.append(id_)
    )
    (tmp_path / "spool" / f"a.{8:x}.{0:08x}").symlink_to(target)
    box.connect(2.0).take(Frame(open=Open(id="a", size=8)))
    assert given_up == ["a"] and target.read_bytes() == b"precious"


def test_a_flood_of_announcements_is_ended_and_fills_nothing(tmp_path: Path) -> None:
    for wanted in ("no", "have", "take"):
        line = mailbox(tmp_path / wanted, wanted).connect(2.0)
        tracemalloc.start()
        with pytest.raises(ProtocolError):
            for number in range(1_000_000):
                line.take(Frame(open=Open(id=f"{number}", size=10)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        line.end()
        assert peak < 8 * 2**20 and number < 10_000 and len(list((tmp_path / wanted).iterdir())) <= 32


def test_bytes_that_nobody_asked_for_end_the_line_but_a_few_do_not(tmp_path: Path) -> None:
    line = mailbox(tmp_path / "spool").connect(2.0)
    for _ in range(64):
        line.take(Piece("a", 0, memoryview(b"x")))
    with pytest.raises(ProtocolError):
        for _ in range(64):
            line.take(Piece("a", 0, memoryview(b"x")))


def test_frames_out_of_place_end_the_line(tmp_path: Path) -> None:
    one = End(tmp_path / "one", {"a": bytes(70)})
    line = one.box.connect(2.0)
    for frame in (Frame(), Frame(beat=Beat()), *(Frame(have=Have(id="a", offset=at)) for at in (70, 2**63))):
        with pytest.raises(ProtocolError):
            line.take(frame)
    line.take(Frame(have=Have(id="unknown", offset=5)))
    opened = Open(id="b", size=70, crc32=5)
    line.take(Frame(open=opened))
    for offset, data in ((7, b"x"), (0, b""), (0, bytes(71))):
        with pytest.raises(ProtocolError):
            line.take(Piece("b", offset, memoryview(data)))


def test_a_message_that_never_fits_its_checksum_ends_the_line(tmp_path: Path) -> None:
    line = mailbox(tmp_path / "spool").connect(2.0)
    line.take(Frame(open=Open(id="a", size=7, crc32=zlib.crc32(b"1234567"))))
    with pytest.raises(ProtocolError, match="damaged"):
        for _ in range(3):
            line.take(Piece("a", 0, memoryview(b"7654321")))


@pytest.mark.parametrize("seconds", [0.0, 1e-30, -1.0, float("nan"), float("inf"), 1e30])
def test_a_beat_that_makes_no_sense_is_not_kept(tmp_path: Path, seconds: float) -> None:
    line = mailbox(tmp_path / "spool").connect(seconds)
    assert line._seconds == 2.0


def test_a_full_disk_costs_the_message_and_not_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = End(tmp_path / "one", {"a-1": bytes(70), "b-2": b"tiny"}), End(tmp_path / "other", {})
    lost: list[tuple[str, int | None]] = []
    other.box.unstored = lambda id_, error: lost.append((id_, error.errno))
    wire = Wire(one, other)

    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Incoming, "write", write)
        assert wire.settle() and wire.cuts == 0
    assert lost == [("a-1", 28)] and other.arrived == [("b-2", b"tiny")]
    assert not list(other.spool.iterdir()), "what there was of it must make room"
    one.box.send(Outgoing("a-1", [bytes(70)]))
    assert wire.settle() and ("a-1", bytes(70)) in other.arrived


def test_clearing_spares_what_is_on_its_way(tmp_path: Path) -> None:
    one, other = End(tmp_path / "one", {"a-1": bytes(70)}), End(tmp_path / "other", {})
    wire = Wire(one, other)
    for action, at in HALF_WAY:
        act(wire, action, at)
    (other.spool / "old.5.0").write_bytes(b"x")
    other.box.clear()
    assert [path.name.split(".")[0] for path in other.spool.iterdir()] == ["a-1"]
    assert wire.settle() and other.arrived == [("a-1", bytes(70))]


def test_a_message_that_is_announced_again_and_again_with_other_bytes_fills_no_disk(tmp_path: Path) -> None:
    end = End(tmp_path / "one", {})
    line = end.box.connect(1.0)
    for number in range(20):
        line.take(Frame(open=Open(id="a-1", size=100, crc32=number)))
        line.take(Piece("a-1", 0, memoryview(bytes(90))))
        line.take(Frame(open=Open(id="b-2", size=50, crc32=7)))
    assert sorted(path.name.split(".")[0] for path in end.spool.iterdir()) == ["a-1", "b-2"]


class Crowd:
    """Sites with a large message each way; the other ends share their turns. most: messages that were under way, begun
    and not whole, at once."""

    def __init__(self, folder: Path, count: int, at_once: int) -> None:
        self.now = 0.0
        turns = Turns(at_once, 1.0, lambda: self.now)
        sites = [End(folder / f"site-{n}", {f"up-{n}": bytes([n]) * 70}) for n in range(count)]
        self.leads = [End(folder / f"lead-{n}", {f"down-{n}": bytes([n]) * 70}, turns) for n in range(count)]
        self.wires = [Wire(*ends) for ends in zip(sites, self.leads, strict=True)]
        self.most = 0
        self._begun = set[str]()

    def run(self, *stuck: int) -> None:
        """Until nothing moves any more; of stuck sites no piece does, either way."""
        moved = True
        while moved:
            moved = False
            for number, wire in enumerate(self.wires):
                moved |= any([wire.send(0), wire.send(1)])
                for at, end in enumerate(wire.ends):
                    self._see(end.ways[0] if end.ways else None)
                    if number not in stuck or not (end.ways and isinstance(end.ways[0], Piece)):
                        moved |= wire.deliver(at)

    def _see(self, frame: Sent | None) -> None:
        if isinstance(frame, Piece):
            self._begun.add(frame.id)
            self.most = max(self.most, len(self._begun))
            if frame.offset + len(frame.data) == 70:
                self._begun.discard(frame.id)

    def whole(self) -> int:
        """Messages that arrived."""
        return sum(len(end.arrived) for wire in self.wires for end in wire.ends)


@pytest.mark.parametrize("at_once", [1, 3])
def test_large_messages_of_all_lines_take_turns(tmp_path: Path, at_once: int) -> None:
    crowd = Crowd(tmp_path, 8, at_once)
    crowd.run()
    assert crowd.whole() == 16 and crowd.most == at_once
    free = Crowd(tmp_path / "free", 8, 100)
    free.run()
    assert free.whole() == 16 and free.most == 16


def test_lines_that_are_stuck_keep_the_others_waiting_for_a_second_and_no_longer(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, 8, 3)
    crowd.run(0, 1, 2)
    assert crowd.whole() < 10
    # six messages are stuck, three at once
    crowd.now += 1.0
    crowd.run(0, 1, 2)
    crowd.now += 1.0
    crowd.run(0, 1, 2)
    assert crowd.whole() == 10
    crowd.run()
    assert crowd.whole() == 16


def test_a_line_that_ends_with_its_last_piece_gives_its_turn_back_at_once(tmp_path: Path) -> None:
    turns = Turns(1, 1.0, lambda: 0.0)
    first, second = (
        End(tmp_path / name, {f"{name}-1": bytes(70)}, turns).box.connect(2.0) for name in ("first", "second")
    )
    for line, id_ in ((first, "first-1"), (second, "second-1")):
        line.ready(0.0, 0)
        line.take(Frame(have=Have(id=id_, offset=0)))
    assert len(first.ready(0.0, 10_000)) == 11, "the whole message: none of it is kept from the other end"
    assert not second.ready(0.0, 10_000)
    first.end()
    assert len(second.ready(0.0, 10_000)) == 11


class Cutting(Turns):
    """Turns that are asked for when the line has just ended: another thread's work."""

    line: Line

    def ask(self, who: Hashable, go: Callable[[], None]) -> None:
        self.line.end()
        super().ask(who, go)


@pytest.mark.parametrize(
    "frame", [Frame(have=Have(id="m-1", offset=0)), Frame(open=Open(id="in-1", size=50, crc32=1))], ids=["out", "in"]
)
def test_a_line_that_ends_while_it_asks_keeps_no_turn(tmp_path: Path, frame: Frame) -> None:
    turns = Cutting(1, 100.0)
    end = End(tmp_path / "one", {"m-1": bytes(70)}, turns)
    turns.line = end.box.connect(2.0)
    turns.line.take(frame)
    assert ask_in(turns) == ["next"], "the next one need not wait"


def ask_in(turns: Turns) -> list[str]:
    called: list[str] = []
    Turns.ask(turns, "next", lambda: called.append("next"))
    return called


def test_a_line_that_ends_gives_its_turn_back_at_once(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, 8, 2)
    crowd.run(0, 1)
    assert crowd.whole() == 0
    for lead in crowd.leads[:2]:
        lead.line.end()
    crowd.run(0, 1)
    assert crowd.whole() == 12
    for wire in crowd.wires[:2]:
        wire.cut()
    crowd.run()
    assert crowd.whole() == 16
