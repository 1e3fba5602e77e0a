"""A site's memory on disk: what a killed process had kept is there, and nothing else is believed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medfl.errors import RunError
from medfl.learning.messages import TrainReply
from medfl.site import memory as module
from medfl.site.memory import DiskMemory
from medfl.update.base import Payload

LIFE = """
import sys
from pathlib import Path
import numpy as np
from medfl.learning.messages import TrainReply
from medfl.site.memory import DiskMemory
from medfl.update.base import Payload
memory = DiskMemory(Path(sys.argv[1]))
memory.begin("run1")
for round_ in range(1, 100_000):
    update = bytes([round_ % 256]) * 1_000_000
    reply = TrainReply("east", round_, Payload("fp32", 250_000, (update,)), 8, 4, 1, 0.7, 0.5)
    memory.keep(f"key-{round_}", reply, {"residual": np.full(100_000, round_, np.float32)})
    print(round_, flush=True)
"""


@pytest.fixture
def memory(tmp_path: Path) -> DiskMemory:
    found = DiskMemory(tmp_path / "runs")
    found.begin("run1")
    return found


def again(memory: DiskMemory) -> DiskMemory:
    """As the next process opens it."""
    found = DiskMemory(memory._root)
    found.begin("run1")
    return found


def keep(memory: DiskMemory, round_: int, key: str = "") -> None:
    reply = TrainReply("east", round_, Payload("fp32", 1, (b"1234",)), 8, 4, 1, 0.7, 0.5)
    memory.keep(key or f"key-{round_}", reply, {"residual": np.full(3, round_, np.float32)})


def residual(memory: DiskMemory, round_: int) -> float | None:
    found = memory.state(round_)
    return float(found["residual"][0]) if found else None


def test_what_was_kept_is_there_after_a_kill_and_half_a_file_never_is(tmp_path: Path) -> None:
    for _ in range(4):
        life = subprocess.Popen([sys.executable, "-c", LIFE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert life.stdout is not None
        said = [int(life.stdout.readline()) for _ in range(5)]
        life.send_signal(signal.SIGKILL)
        said += [int(line) for line in life.stdout.read().split()]
        life.wait()
        memory = DiskMemory(tmp_path)
        memory.begin("run1")
        last = said[-1]
        # the kill may have come between the renaming and the word about it
        newest = memory.rounds()[-1]
        assert newest in (last, last + 1)
        found = memory.reply(f"key-{newest}")
        assert found is not None and found.payload is not None
        assert bytes(found.payload.buffers[0]) == bytes([newest % 256]) * 1_000_000
        assert residual(memory, newest + 1) == newest and residual(memory, newest) == newest - 1
        for path in memory._folder.iterdir():
            path.unlink()


@pytest.mark.parametrize("at", [0, 6, 100, -40, -1])
def test_a_damaged_file_is_not_believed(at: int, memory: DiskMemory) -> None:
    keep(memory, 1)
    path = memory._folder / "round-000001"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    later = again(memory)
    assert later.reply("key-1") is None
    with pytest.raises(RunError, match="damaged"):
        later.state(2)
    assert residual(later, 1) is None


@pytest.mark.parametrize("length", [0, 3, 31, 40, 100])
def test_a_file_that_was_cut_off_is_not_believed(length: int, memory: DiskMemory) -> None:
    keep(memory, 1)
    path = memory._folder / "round-000001"
    path.write_bytes(path.read_bytes()[:length])
    assert again(memory).reply("key-1") is None
    with pytest.raises(RunError, match="damaged"):
        again(memory).state(2)


def test_a_round_begins_with_what_the_round_before_it_left(memory: DiskMemory) -> None:
    assert residual(memory, 1) is None
    keep(memory, 1)
    keep(memory, 2)
    assert (residual(memory, 1), residual(memory, 2), residual(memory, 3)) == (None, 1, 2)
    keep(memory, 3)
    assert residual(again(memory), 3) == 2 and residual(again(memory), 4) == 3
    assert memory.rounds() == [2, 3]


def test_rounds_that_were_missed_lose_nothing(memory: DiskMemory) -> None:
    keep(memory, 3)
    keep(memory, 9)
    # round 9 is asked again with another model: its coordinator lost the first answer
    assert residual(again(memory), 9) == 3 and memory.reply("key-9") is not None
    keep(memory, 9, "other")
    assert residual(again(memory), 9) == 3 and memory.rounds() == [3, 9]


def test_a_round_that_is_trained_again_forgets_what_came_after(memory: DiskMemory) -> None:
    for round_ in (1, 2, 3):
        keep(memory, round_)
    keep(memory, 2, "another way")
    assert memory.rounds()[-1] == 2 and memory.reply("key-3") is None and residual(memory, 3) == 2


def test_nothing_newer_outlives_a_kill_while_a_round_is_trained_again(
    memory: DiskMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for round_ in (1, 2):
        keep(memory, round_)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        keep(memory, 1, "another way")
    monkeypatch.undo()
    # either the old way whole, or the new one: never the new round 1 under the old round 2
    later = again(memory)
    assert later.reply("another way") is None or later.rounds() == [1]


def test_a_full_disk_leaves_what_was_kept_and_no_draft(memory: DiskMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(memory, 1)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keep(memory, 2)
    monkeypatch.undo()
    assert memory.rounds() == [1] and memory.reply("key-1") is not None
    assert sorted(path.name for path in memory._folder.iterdir()) == ["round-000001"]


def test_a_sum_is_opened_with_the_same_sites_or_not_at_all_also_after_a_restart(memory: DiskMemory) -> None:
    memory.opening(4, ("east", "west", "south"))
    again(memory).opening(4, ("south", "east", "west"))
    again(memory).opening(5, ("east", "west"))
    for others in (("east", "west"), ("east", "west", "north"), ("east", "west", "south", "north"), ()):
        with pytest.raises(RunError, match="helped to open"):
            again(memory).opening(4, others)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"4": 7}', b"\xff", b'{"4": ["east"'])
def test_a_damaged_record_of_opened_sums_opens_none(content: bytes, memory: DiskMemory) -> None:
    memory.opening(4, ("east", "west"))
    (memory._folder / "opened.json").write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        again(memory).opening(4, ("east", "west", "south"))


def test_the_record_of_opened_sums_is_written_before_it_counts(memory: DiskMemory) -> None:
    memory.opening(4, ("east", "west"))
    path = memory._folder / "opened.json"
    assert json.loads(path.read_text()) == {"4": ["east", "west"]} and path.stat().st_mode & 0o777 == 0o600


# what no round takes back


class Rewinds(DiskMemory):
    """The fake: all arrays follow the round."""

    def _lasting(self) -> dict[str, np.ndarray]:
        return {}


def shows(memory: DiskMemory, round_: int, image: int, label: int = 0) -> None:
    reply = TrainReply("east", round_, Payload("fp32", 1, (b"1234",)), 8, 4, 1, 0.7, 0.5)
    memory.keep(f"key-{round_}", reply, {"residual": np.zeros(1), f"lasting.shown.{label}": np.full(4, image)})


@pytest.mark.parametrize(("kind", "good"), [(DiskMemory, True), (Rewinds, False)])
def test_an_order_for_an_earlier_round_does_not_take_back_what_lasts(
    kind: type[DiskMemory], good: bool, tmp_path: Path
) -> None:
    for round_ in (1, 2):
        memory = kind(tmp_path / "runs")
        memory.begin("run1")
        shows(memory, round_, 7, label=round_)
    memory.begin("run1")
    assert (memory.state(1).keys() == {"lasting.shown.1", "lasting.shown.2"}) == good
    assert (memory.state(2).keys() == {"residual", "lasting.shown.1", "lasting.shown.2"}) == good
    # the round after goes on as ever, and another run knows nothing of it
    assert "residual" in memory.state(3)
    memory.begin("run2")
    assert memory.state(1) == {}


def test_what_lasts_never_changes_and_is_not_answered_with(memory: DiskMemory) -> None:
    shows(memory, 1, 7)
    with pytest.raises(RunError, match=r"lasting\.shown\.0 would change"):
        shows(again(memory), 2, 8)
    assert again(memory).reply("key-2") is None and again(memory).rounds() == [1]
    shows(again(memory), 2, 7)
    keep(memory, 3)
    assert again(memory).state(1)["lasting.shown.0"].tolist() == [7] * 4, "a round without it forgets nothing"


@pytest.mark.parametrize("content", [b"", b"short", bytes(100)])
def test_a_damaged_record_of_what_lasts_trains_nothing(content: bytes, memory: DiskMemory) -> None:
    shows(memory, 1, 7)
    path = memory._folder / "lasting"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(content)
    for ask in (lambda: again(memory).state(2), lambda: shows(again(memory), 2, 7)):
        with pytest.raises(RunError, match="damaged: which images"):
            ask()


def test_what_lasts_is_on_the_disk_before_the_answer(memory: DiskMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._write

    def dies(path: Path, *rest: object) -> None:
        if path.name.startswith("round-"):
            raise SystemExit
        real(path, *rest)

    monkeypatch.setattr(module, "_write", dies)
    with pytest.raises(SystemExit):
        shows(memory, 1, 7)
    assert again(memory).state(1)["lasting.shown.0"].tolist() == [7] * 4


@pytest.mark.parametrize("run", ["", "../x", "a/b", ".", "a\x00", "a" * 300])
def test_a_run_is_no_path(run: str, tmp_path: Path) -> None:
    with pytest.raises(RunError):
        DiskMemory(tmp_path / "runs").begin(run)
    assert not (tmp_path / "runs").exists()


def test_foreign_files_are_left_alone(memory: DiskMemory) -> None:
    keep(memory, 1)
    (memory._folder / "round-copy").write_bytes(b"a steward's own")
    assert again(memory).rounds() == [1]
    keep(memory, 2)
    assert (memory._folder / "round-copy").exists()
