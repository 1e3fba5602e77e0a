"""Bytes that mean nothing, or harm: each ends in a clean error, takes no memory, and disturbs nobody else."""

import contextlib
import json
import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from google.protobuf.message import DecodeError
from toys.services import Caller, Hospital, Office, hello, memory, reply, until

from medfl.errors import MedflError, RunError
from medfl.transport.answers import body, failure, heads_of, info_of
from medfl.transport.mail import MAX_FRAME, Mailbox
from medfl.transport.messages import decode_reply, decode_statistics, encode_statistics
from medfl.transport.peers import Peer
from medfl.transport.pieces import decoded
from medfl.transport.post import Post, Request, Ticket
from medfl.transport.protocol.medfl_pb2 import Beat, Chunk, Done, Forget, Frame, Goodbye, Have, Hello, Open, Welcome
from medfl.update.wire import MAGIC, MAX_BUFFERS, MAX_HEADER, pack_arrays, parts, unpack, unpack_arrays

MB = 2**20
ROUNDS = 100_000
EAST = Peer("east", "site", "f" * 64, "e" * 64)


def mutate(message: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, left out, put in or doubled."""
    found = bytearray(message)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) + 1)
        what = chance.randrange(4)
        if what == 0 and found:
            found[at % len(found)] = chance.randrange(256)
        elif what == 1:
            del found[at : at + chance.randint(1, 4)]
        elif what == 2:
            found[at:at] = chance.randbytes(chance.randint(1, 4))
        else:
            found[at:at] = found[max(0, at - 8) : at]
    return bytes(found)


def seeds(id_: str) -> list[bytes]:
    session = "0" * 32
    frames = [
        Frame(hello=Hello(versions=[1], name="east", session=session)),
        Frame(welcome=Welcome(version=1, beat=2.0, largest=10)),
        Frame(open=Open(id=id_, size=100_000, crc32=7)),
        Frame(open=Open(id=id_, size=4, crc32=7, data=b"1234")),
        Frame(have=Have(id=id_, offset=10)),
        Frame(chunk=Chunk(id=id_, offset=0, data=bytes(20))),
        Frame(done=Done(id=id_)),
        Frame(beat=Beat(state="training", detail="round 1", done=3, steps=9)),
        Frame(goodbye=Goodbye(reason="bye", again=True)),
        Frame(forget=Forget(id=id_)),
    ]
    return [frame.SerializeToString() for frame in frames]


def wild(id_: str, chance: random.Random) -> bytes:
    """A well-formed frame that says what it should not."""
    name = chance.choice([id_, id_, "", "../../x", "a" * 200, f"a{chance.randrange(10**6)}"])
    number = chance.choice([0, 1, 20, 100_000, 200_000, 2**32, 2**63, 2**64 - 1])
    data = chance.randbytes(chance.choice([0, 1, 20, 70_000]))
    frame = chance.choice(
        [
            Frame(open=Open(id=name, size=number, crc32=chance.randrange(2**32), data=data)),
            Frame(open=Open(id=name, size=number, crc32=7)),
            Frame(have=Have(id=name, offset=number)),
            Frame(chunk=Chunk(id=name, offset=number, data=data)),
            Frame(done=Done(id=name)),
            Frame(beat=Beat(state=name, detail=name, done=number, steps=number)),
            Frame(forget=Forget(id=name)),
            Frame(welcome=Welcome(version=1, beat=float("nan"), largest=number)),
            Frame(),
        ]
    )
    return frame.SerializeToString()


@pytest.mark.parametrize("end", ["coordinator", "site"])
def test_a_hundred_thousand_frames(end: str, tmp_path: Path) -> None:
    chance, broken, read = random.Random(end), 0, 0
    post = Post("coordinator", tmp_path / "spool", lambda *said: None)
    box = Mailbox(tmp_path / "site", lambda id_, size: "take" if size < MB else "no", lambda id_, message, came: None)

    def connect() -> Any:
        if end == "site":
            return box.connect(2.0)
        return post.welcome(EAST, Frame(hello=Hello(versions=[1], name="east", session="0" * 32)))

    line = connect()
    ticket = post.post("east", Request.of("train", {"round": 1}, [bytes(200_000)])) if end == "coordinator" else None
    id_ = "train-1" if ticket is None else ticket.id
    known = seeds(id_)
    before = 0
    for number in range(ROUNDS // 2):
        if number == 5_000:
            before = memory()
        data = wild(id_, chance) if number % 2 else mutate(chance.choice(known), chance)
        if number % 10 == 0:
            data = chance.randbytes(chance.randint(0, 60))
        try:
            frame = decoded(data)
        except DecodeError:
            continue
        read += 1
        try:
            if end == "site":
                line.take(frame)
            else:
                post.take(EAST, line, frame)
        except MedflError:
            broken += 1
        if broken and (line.ended or number % 7 == 0):
            line.end()
            line = connect()
        line.ready(0.0, 0)
    assert read > 10_000 and broken > 1_000
    assert memory() - before < 20 * MB
    if ticket is not None:
        assert ticket.answer is None


def test_rubbish_on_one_stream_does_not_disturb_another(tmp_path: Path) -> None:
    office, chance = Office(tmp_path), random.Random(0)
    bad, good = office.admit("east"), Hospital("good", office.admit("good"), tmp_path / "good").start()
    until(lambda: office.there("good"))
    stop = threading.Event()

    def flood() -> None:
        known = seeds("train-1")
        while not stop.is_set():
            rubbish = [mutate(chance.choice(known), chance) for _ in range(200)]
            if chance.random() < 0.2:
                rubbish.append(chance.randbytes(MAX_FRAME + 1))
            caller = Caller(bad, hello("east"), *rubbish)
            with contextlib.suppress(AssertionError):
                until(caller.over.is_set, 0.3)
            caller.end()

    flooding = threading.Thread(target=flood)
    flooding.start()
    before = 0
    for number in range(12):
        ticket = office.post.post("good", Request.of("echo", {"n": number}, [os.urandom(10 * MB)]))
        until(lambda ticket=ticket: ticket.settled, 60.0)  # type: ignore[misc]
        ticket.answer = None
        office.post.drop([ticket], "was answered")
        before = before or memory()
    stop.set()
    flooding.join()
    # kept, the messages would take 110
    assert memory() - before < 70 * MB
    assert good.called == 1 and len(office.noted("protocol")) <= 12
    good.end()
    office.close()


# what a message holds


def train_reply() -> bytes:
    return b"".join(reply("east", 1, bytes(64)))


def statistics() -> bytes:
    return encode_statistics({"loss": np.array([3.0, 4.0]), "confusion": np.zeros((3, 3))})


def plain_statistics() -> bytes:
    return zstandard.ZstdDecompressor().decompress(statistics(), MB)


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (train_reply, decode_reply),
        (train_reply, unpack),
        (lambda: b"".join(pack_arrays({"a": 1}, {"x": np.arange(9.0), "y": np.zeros((2, 0), np.int8)})), unpack_arrays),
        (statistics, decode_statistics),
        (plain_statistics, lambda found: decode_statistics(zstandard.compress(found, 1))),
    ],
)
def test_mutated_messages_are_read_or_refused(make: Callable[[], bytes], read: Callable[[bytes], object]) -> None:
    chance, message, refused = random.Random(1), make(), 0
    read(message)
    for _ in range(8_000):
        try:
            read(mutate(message, chance))
        except RunError as error:
            refused += 1
            assert len(str(error)) < 10_000
    assert refused > 3_000


def message(header: Any, body_: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<4sI", MAGIC, len(text)) + text + body_


@pytest.mark.parametrize(
    "changed",
    [
        {"cases": 10**400},
        {"cases": -1},
        {"cases": True},
        {"cases": 1.0},
        {"round": 2**63},
        {"steps": float("nan")},
        {"loss": 10**400},
        {"loss": "0.5"},
        {"site": "x" * 10_000},
        {"site": None},
        {"ledger": "x" * 10_000},
        {"seconds": {"train": float("inf")}},
        {"seconds": {"train": float("nan")}},
        {"seconds": {"train": -1}},
        {"seconds": {"train": 10**400}},
        {"seconds": {str(number): 1 for number in range(1000)}},
        {"seconds": {"x" * 10_000: 1}},
        {"seconds": [1]},
        {"payload": 0},
        {"payload": {"codec": "fp32", "size": 1e400}},
        {"unknown": 1},
    ],
)
def test_a_reply_with_such_a_field_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(RunError):
        decode_reply(b"".join(reply("east", 1, **changed)))


def test_a_loss_may_be_nan_for_a_training_may_diverge() -> None:
    assert np.isnan(decode_reply(b"".join(reply("east", 1, loss=float("nan")))).loss)


@pytest.mark.parametrize(
    "bad",
    [
        message(b"[" * 200_000),
        message(b'{"buffers": ' + b"[" * 200_000),
        message(b'{"a":' * 100_000),
        message(b"9" * 100_000),
        message({"buffers": [10**4299] * 20}),
        message({"buffers": [0] * (MAX_BUFFERS + 1)}),
        message({"buffers": [10 * 2**30]}),
        message({"buffers": [float("nan")]}),
        message({"buffers": [float("inf")]}),
        message(b'{"buffers": [1e5]}'),
        struct.pack("<4sI", MAGIC, MAX_HEADER + 1) + b" " * (MAX_HEADER + 1),
        message({"buffers": [], "arrays": [["a", "<f8", [10**4000] * 32]]}),
        message({"buffers": [0], "arrays": [["a", "<f8", [0, 2**62]]]}),
        message({"buffers": [0], "arrays": [["a", ["<f8"], [0]]]}),
        message({"buffers": [0], "arrays": [["a", "O", [0]]]}),
        message({"buffers": [0], "arrays": [[["a"], "<f8", [0]]]}),
    ],
    ids=range(16),
)
def test_headers_that_overdo_it(bad: bytes) -> None:
    before = memory()
    with pytest.raises(RunError) as caught:
        unpack_arrays(bad)
    assert len(str(caught.value)) < 200_000 and memory() - before < 200 * MB


def test_a_message_of_as_many_buffers_as_there_may_be() -> None:
    _, buffers = unpack(b"".join(parts({}, [b""] * MAX_BUFFERS)))
    assert len(buffers) == MAX_BUFFERS


def bomb(size: int, declared: bool) -> bytes:
    packer = zstandard.ZstdCompressor(1).compressobj(size if declared else -1)
    block = bytes(16 * MB)
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


@pytest.mark.parametrize("declared", [True, False])
def test_a_bomb_does_not_go_off(declared: bool) -> None:
    packed = bomb(2 * 2**30, declared)
    assert len(packed) < MB
    before = memory()
    with pytest.raises(RunError, match="larger than"):
        decode_statistics(packed)
    assert memory() - before < 64 * MB


@pytest.mark.parametrize(
    "arrays",
    [{"x": np.zeros(8, np.int8)}, {"x": np.zeros(8, np.float32)}, {"x": np.zeros(8, ">f8")}],
)
def test_statistics_that_would_grow_are_refused(arrays: dict[str, Any]) -> None:
    with pytest.raises(RunError):
        decode_statistics(zstandard.compress(b"".join(pack_arrays({}, arrays))))


# what a site says in words

VALUES: list[Any] = [
    None,
    [],
    {},
    "x",
    -1,
    10**400,
    float("nan"),
    float("inf"),
    [[1, 2, 3, 4, 5]],
    [None],
    ["abc"],
    [["\x1b[2J" + "x" * 100_000, "\r\nforged", 7]] * 1000,
    {"east": []},
    {"east": {"head": 1, "kept": None}},
    {"east": {"head": "x" * 10_000, "kept": ""}},
    {"east": {"surplus": ""}},
]


def ticket(header: dict[str, Any]) -> Ticket:
    found = Ticket("east", "id", Request.of("join", {}))
    found.answer = memoryview(b"".join(parts(header)))
    return found


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_words_of_a_site_are_plain_few_and_never_a_fault_of_ours(value: Any) -> None:
    for header in ({"answer": "error", "faults": value}, {"answer": value, "faults": value}):
        try:
            body(ticket(header))
        except MedflError as error:
            assert str(error).replace("\n", "").isprintable() and len(error.faults) <= 20
        assert isinstance(failure("east", header), str)
    for read in (lambda: heads_of({"heads": value}, "east"), lambda: info_of(value)):
        with contextlib.suppress(RunError):
            read()
    for key in ("name", "cases", "skipped", "identity"):
        info = {"name": "east", "cases": {"train": 3}, "skipped": {}, "identity": "aa", key: value}
        with contextlib.suppress(RunError):
            found = info_of(info)
            assert all(0 <= count < 2**41 for count in found.cases.values())
            assert all(text.isprintable() and len(text) <= 400 for text in found.skipped.values())


def test_texts_in_beats_are_plain(tmp_path: Path) -> None:
    told: list[tuple[str, str, str]] = []
    post = Post("coordinator", tmp_path, lambda *said: told.append(said))
    line = post.welcome(EAST, hello("east"))
    post.take(EAST, line, Frame(beat=Beat(state="\x1b]0;x\x07", detail="a\nb\u202ec" + "x" * 10_000)))
    assert all(text.isprintable() and len(text) <= 400 for text in told[-1])
    assert told[-1][2].startswith("a b c")
