"""The journal, in a file and in PostgreSQL: one test, two places."""

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys.postgres import Server, running

from medfl.coordinator import journal as module
from medfl.coordinator.journal import Counted, Journal, Where, journal_in, place_of, point_to
from medfl.errors import InputError, RunError

NUMBERS = count()
MODEL = np.arange(6, dtype=np.float32).reshape(2, 3)
FACTS = {"run": "5f3e", "inputs": {"a": 1}}


@dataclass
class Home:
    """Where a test keeps one journal."""

    where: Where
    kind: str

    def create(self, facts: Any = FACTS, **how: Any) -> Journal:
        return Journal.create(self.where, facts, **how)

    def open(self, **how: Any) -> Journal:
        return Journal.open(self.where, **how)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if request.param == "sqlite":
        return Home(tmp_path / "journal.db", "sqlite")
    found: Server = request.getfixturevalue("server")
    return Home(f"{found.url()}?schema=medfl_test{next(NUMBERS)}", "postgres")


def commit(journal: Journal, round_: int, arrays: Any = None, counted: Any = ()) -> None:
    arrays = {"model": MODEL + round_} if arrays is None else arrays
    journal.commit({"round": round_, "moved": True}, {"round": round_}, arrays, {"east": {"outcome": "admit"}}, counted)


def counted_ids(journal: Journal) -> list[tuple[str, str]]:
    return [(found["site"], found["id"]) for found in journal.messages()]


def whole(journal: Journal, round_: int) -> None:
    """Everything of rounds 1 to `round_`, and nothing of the next."""
    assert [record["round"] for record in journal.rounds()] == [*range(1, round_ + 1)]
    verdicts = [event["round"] for event in journal.events() if event["kind"] == "verdict"]
    assert verdicts == [*range(1, round_ + 1)]
    assert {message["round"] for message in journal.messages()} <= {*range(1, round_ + 1)}
    kept = journal.state()
    assert kept is not None and kept[0] == {"round": round_}
    assert all((array == MODEL + round_).all() for array in kept[1].values())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# what a journal keeps


def test_what_was_kept_comes_back(home: Home) -> None:
    journal = home.create()
    arrays = {
        "model": MODEL,
        "east/residual": np.array([], np.float64),
        "west/steps": np.array([[2**40, -1]]),
        "server.m": np.array(3.5, np.float16),
    }
    journal.commit({"round": 1, "loss": float("nan")}, {"lr": 0.1}, arrays, {"east": {"outcome": "refuse"}})
    journal.keep_release({"outcome": {"plan": {"round": 2}}, "loss": float("inf")}, np.array([1, -2], np.int32), {})
    journal.note(2, "plan", {"ä": "ö"}, "süd")
    journal.close()
    journal = home.open()
    kept, released = journal.state(), journal.release()
    assert kept is not None and released is not None
    assert kept[0] == {"lr": 0.1} and kept[1].keys() == arrays.keys()
    for name, array in arrays.items():
        assert kept[1][name].dtype == array.dtype and kept[1][name].shape == array.shape
        assert (kept[1][name] == array).all()
    assert released[0]["loss"] == float("inf") and released[1].tolist() == [1, -2]
    assert [(event["kind"], event["site"]) for event in journal.events()] == [("verdict", "east"), ("plan", "süd")]
    assert np.isnan(next(journal.rounds())["loss"]) and journal.plans(2) == 1 and journal.fact("run") == "5f3e"
    journal.close()


def test_times_are_utc_in_one_form(home: Home) -> None:
    with closing(home.create()) as journal:
        journal.note(1, "plan", {})
        commit(journal, 1, counted=[Counted("east", "m", "d")])
        stamps = [next(journal.events())["at"], next(journal.messages())["at"]]
    assert all(stamp[10] == "T" and "+" not in stamp for stamp in stamps)


def test_an_array_in_pieces_shrinks_and_grows(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 16)
    with closing(home.create()) as journal:
        for round_, size in enumerate((40, 3, 70), 1):
            journal.commit({"round": round_}, {}, {"model": np.arange(size, dtype=np.float32)}, {})
            assert (journal.arrays()["model"] == np.arange(size)).all()


@pytest.mark.parametrize("size", [3, 9_000_000])
def test_bytes_written_over_in_place_come_back_when_the_commit_fails(home: Home, size: int) -> None:
    """Also where they are more than the writer keeps in memory."""
    with closing(home.create()) as journal:
        for round_ in (1, 2, 3):
            journal.commit({"round": round_}, {}, {"model": np.full(size, round_, np.float32)}, {})
        no_bytes: Any = np.array(object())
        with pytest.raises(TypeError):
            journal.commit({"round": 4}, {}, {"model": np.full(size, 4, np.float32), "odd": no_bytes}, {})
        assert (journal.arrays()["model"] == 3).all()
    with closing(home.open()) as journal:
        assert (journal.arrays()["model"] == 3).all()


def test_a_disk_that_is_full_while_bytes_are_written_over(tmp_path: Path) -> None:
    model = np.zeros(9_000_000, np.float32)
    with closing(Journal.create(tmp_path / "journal.db", FACTS)) as journal:
        commit(journal, 1, {"model": model})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
        try:
            with pytest.raises(RunError, match=r"journal.db: cannot be written: .*see that there is room"):
                commit(journal, 2, {"model": model + 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not journal.arrays()["model"].any()
        commit(journal, 2, {"model": model + 2})
        assert (journal.arrays()["model"] == 2).all()


def test_a_journal_is_made_once(home: Home) -> None:
    home.create().close()
    with pytest.raises(InputError, match="exists already"):
        home.create()
    if isinstance(home.where, Path):
        assert home.where.stat().st_mode & 0o077 == 0
        assert names(home.where.parent) == {"journal.db"}


def test_a_journal_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who dies while it is made leaves an empty folder, in which a run can begin."""
    path, link = tmp_path / "journal.db", os.link

    def dying(*_: Any, **__: Any) -> None:
        assert names(tmp_path) == set()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", dying)
    with pytest.raises(KeyboardInterrupt):
        Journal.create(path, FACTS)
    assert names(tmp_path) == set()
    monkeypatch.setattr(os, "link", link)
    Journal.create(path, FACTS).close()
    assert names(tmp_path) == {"journal.db"}


def test_a_file_system_without_nameless_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", 0)
    Journal.create(tmp_path / "journal.db", FACTS).close()
    assert names(tmp_path) == {"journal.db"} and (tmp_path / "journal.db").stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="exists already"):
        Journal.create(tmp_path / "journal.db", FACTS)
    # two that make it at once: the file is there, though it was not when they looked
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(InputError, match="exists already"):
        Journal.create(tmp_path / "journal.db", FACTS)
    assert names(tmp_path) == {"journal.db"}


def test_a_journal_that_is_not_there_is_not_made(home: Home) -> None:
    for how in (False, True):
        with pytest.raises(InputError, match=r"does not exist|is not a journal"):
            home.open(read_only=how)


def test_a_run_that_goes_on_has_no_summary(home: Home) -> None:
    with closing(home.create({"summary": {}})) as journal:
        commit(journal, 1)
        with pytest.raises(KeyError):
            journal.fact("summary")


def test_damage_is_found(home: Home) -> None:
    with closing(home.create()) as journal:
        commit(journal, 1)
        with journal._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE arrays SET checksum = checksum - 1 WHERE name = 'model'")
        with pytest.raises(RunError, match=r"model.*damaged"):
            journal.state()


def test_threads_share_a_journal(home: Home) -> None:
    with closing(home.create()) as journal, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: commit(journal, number, {}, [Counted("east", str(number), "d")]), range(1, 41)))
        assert [record["round"] for record in journal.rounds()] == list(range(1, 41))
        assert len(list(journal.messages())) == 40


def test_threads_share_one_connection_to_a_file(tmp_path: Path) -> None:
    """Two could fold the log back at once. The fake, a pool of connections, has the file open more than once."""
    path = tmp_path / "journal.db"

    def opened() -> int:
        found = [link for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
        return sum(os.path.realpath(link) == str(path.resolve()) for link in found)

    with closing(Journal.create(path, FACTS)) as journal, ThreadPoolExecutor(8) as pool:
        meeting = threading.Barrier(8)

        def note(number: int) -> None:
            meeting.wait()
            journal.note(number, "plan", {})

        list(pool.map(note, range(40)))
        assert opened() == 1


# a round is there whole or not at all


@pytest.mark.parametrize("method", ["_append", "_write", "_count"])
def test_a_commit_that_breaks_off_leaves_nothing(home: Home, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(home.create()) as journal:
        commit(journal, 1, counted=[Counted("east", "m1", "d")])

        def broken(*rest: Any) -> Any:
            real(*rest)
            raise ZeroDivisionError

        real = getattr(module, method)
        monkeypatch.setattr(module, method, broken)
        with pytest.raises(ZeroDivisionError):
            commit(journal, 2, counted=[Counted("east", "m2", "d")])
        monkeypatch.undo()
        whole(journal, 1)
        assert counted_ids(journal) == [("east", "m1")]
        commit(journal, 2, counted=[Counted("east", "m2", "d")])
        whole(journal, 2)


def test_a_commit_in_parts_is_found_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: with a transaction a statement, half a round stays."""
    with closing(home.create()) as journal:
        commit(journal, 1)

        def alone(connection: Any, events: Any) -> None:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("BEGIN")
            real(connection, events)
            raise ZeroDivisionError

        real = module._append
        monkeypatch.setattr(module, "_append", alone)
        with pytest.raises(ZeroDivisionError):
            commit(journal, 2)
        with pytest.raises(AssertionError):
            whole(journal, 1)


def test_a_round_is_committed_once(home: Home) -> None:
    with closing(home.create()) as journal:
        commit(journal, 1)
        with pytest.raises(RunError, match="cannot be used"):
            commit(journal, 1, {"model": MODEL * 0})
        whole(journal, 1)


# messages count once


def test_a_commit_counts_its_messages(home: Home) -> None:
    with closing(home.create()) as journal:
        first = [Counted("east", "m1", "aa"), Counted("west", "m1", "bb")]
        commit(journal, 1, counted=first)
        assert [(found["round"], found["kind"]) for found in journal.messages()] == [(1, "update")] * 2
        assert counted_ids(journal) == [("east", "m1"), ("west", "m1")], "ids are a site's own"
        for again, why in ((first[0], "counted in round 1"), (Counted("west", "m1", "cc"), "digest")):
            with pytest.raises(RunError, match=rf"site {again.site}, message m1: .*{why}"):
                commit(journal, 2, counted=[Counted("east", "m2", "dd"), again])
        whole(journal, 1)
        assert ("east", "m2") not in counted_ids(journal), "what is not committed was not counted"


def test_the_messages_of_an_opened_sum_stay_counted(home: Home) -> None:
    with closing(home.create()) as journal:
        used = [Counted("east", "m1", "aa")]
        journal.keep_release({"outcome": {"plan": {"round": 1}}}, np.array([1], np.int32), {}, used)
    with closing(home.open()) as journal:
        assert counted_ids(journal) == [("east", "m1")]
        commit(journal, 1, counted=used)
        assert len(list(journal.messages())) == 1 and journal.release() is None


# one writer, any number of readers


def test_there_is_one_writer(home: Home) -> None:
    journal = home.create()
    with pytest.raises(InputError, match=rf"is in use by process {os.getpid()} on \S+ since 20"):
        home.open()
    reader = home.open(read_only=True)
    commit(journal, 1)
    whole(reader, 1)
    with pytest.raises(RunError):
        reader.note(1, "plan", {})
    reader.close()
    with pytest.raises(InputError, match="is in use"):
        home.open()  # a reader that ends frees nothing
    journal.close()
    with closing(home.open()) as second:
        commit(second, 2)


def test_the_lock_is_what_stops_the_second(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: without the lock there are two writers."""
    monkeypatch.setattr("medfl.coordinator.stores.sqlite.fcntl.flock", lambda *_: None)
    monkeypatch.setattr("medfl.coordinator.stores.postgres.PostgresPlace._take_lock", lambda *_: None)
    first, second = home.create(), home.open()
    commit(first, 1)
    first.close()
    second.close()


def test_of_many_that_open_at_once_one_writes(home: Home) -> None:
    home.create().close()
    opened: list[Journal] = []
    barrier = threading.Barrier(6)

    def race(_: int) -> str:
        barrier.wait()
        try:
            opened.append(home.open())
        except InputError as error:
            return str(error)
        return ""

    for _ in range(5):
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(race, range(6)))
        assert answers.count("") == 1 and all("in use" in answer for answer in answers if answer)
        opened.pop().close()


HOLD = """
import sys
from pathlib import Path
from medfl.coordinator.journal import Journal
where = sys.argv[1]
journal = Journal.open(where if "://" in where else Path(where))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_killed_writer_frees_the_journal(home: Home) -> None:
    home.create().close()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.where)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(InputError, match=f"is in use by process {other.pid}"):
            home.open()
    finally:
        other.kill()
        other.wait()
    journal = eventually(home.open)
    commit(journal, 1)
    journal.close()


def eventually(open_: Callable[[], Journal]) -> Journal:
    """A server needs a moment to see that its client has died."""
    for _ in range(200):
        try:
            return open_()
        except InputError:
            threading.Event().wait(0.05)
    return open_()


def test_a_reader_sees_one_moment(home: Home) -> None:
    """Plain state and arrays are of the same round while rounds go on."""
    journal, reader = home.create(), None
    try:
        commit(journal, 1)
        reader = home.open(read_only=True)
        stop = threading.Event()

        def work() -> None:
            for round_ in range(2, 60):
                commit(journal, round_)
            stop.set()

        thread = threading.Thread(target=work)
        thread.start()
        while not stop.is_set():
            kept = reader.state()
            assert kept is not None and (kept[1]["model"] == MODEL + kept[0]["round"]).all()
        thread.join()
    finally:
        if reader is not None:
            reader.close()
        journal.close()


# durability


def test_what_is_durable_stays_so(home: Home) -> None:
    for durable, expected in ((True, 2), (False, 1)):
        place = Home(f"{home.where}x{durable}".lower() if home.kind == "postgres" else home.where, home.kind)
        if isinstance(home.where, Path):
            place = Home(home.where.with_name(f"{durable}.db"), home.kind)
        for made in (lambda place=place, durable=durable: place.create(durable=durable), place.open):
            with closing(made()) as journal, journal._transaction() as connection:
                if home.kind == "postgres":
                    assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
                else:
                    assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == expected


# where journals are


def test_a_run_folder_says_where_its_journal_is(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert journal_in(folder) is None
    with closing(home.create()) as journal:
        point_to(folder, journal)
    found = journal_in(folder)
    if home.kind == "sqlite":
        assert found is None, "a journal in the folder needs no pointer"
        return
    assert isinstance(found, str) and "s3cret" not in found
    place = place_of(found)
    assert place.text == journal.where


def test_a_journal_beside_is_found_first(tmp_path: Path) -> None:
    Journal.create(tmp_path / "journal.db", {}).close()
    assert journal_in(tmp_path) == tmp_path / "journal.db"


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"no database at all" * 100)
    for read_only in (False, True):
        with pytest.raises(InputError, match="is not a journal of medfl"):
            Journal.open(path, read_only=read_only)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE run (key, value)")
    with pytest.raises(InputError, match="is not a journal of medfl"):
        Journal.open(path)
    assert names(tmp_path) == {"journal.db"}


def test_a_folder_that_nobody_may_write_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "archive # 1?"
    folder.mkdir()
    with closing(Journal.create(folder / "journal.db", FACTS)) as journal:
        commit(journal, 1)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write everywhere
    with closing(Journal.open(folder / "journal.db", read_only=True)) as journal:
        whole(journal, 1)
    assert names(folder) == {"journal.db"}
