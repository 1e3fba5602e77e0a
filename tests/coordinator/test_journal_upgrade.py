"""A journal of an older schema is read and upgraded; one of a newer version is refused."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import inspect

from medfl.coordinator.journal import Counted, Journal
from medfl.coordinator.stores import migrations
from medfl.coordinator.stores.schema import SCHEMA
from medfl.errors import InputError, RunError

# frozen: what the version before wrote, one committed round and an opened sum
OLD = """
PRAGMA journal_mode=WAL;
CREATE TABLE arrays (
	name VARCHAR NOT NULL,
	chunk INTEGER NOT NULL,
	dtype VARCHAR NOT NULL,
	shape JSON NOT NULL,
	checksum INTEGER NOT NULL,
	data BLOB NOT NULL,
	PRIMARY KEY (name, chunk)
);
INSERT INTO arrays VALUES('model',0,'<f4','[3]',818461808,X'000000000000803F00000040');
INSERT INTO arrays VALUES('east/residual',0,'<f8','[1, 2]',3974319110,X'0000000000001C400000000000002040');
INSERT INTO arrays VALUES('/release',0,'<i4','[2]',3299279324,X'05000000FAFFFFFF');
CREATE TABLE events (
	id INTEGER NOT NULL,
	round INTEGER NOT NULL,
	site VARCHAR NOT NULL,
	kind VARCHAR NOT NULL,
	detail JSON NOT NULL,
	at DATETIME NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO events VALUES(1,1,'','plan','{"cohort": ["east"]}','2026-11-21 19:47:26.508471');
INSERT INTO events VALUES(2,1,'east','verdict','{"outcome": "admit"}','2026-11-21 19:47:26.509542');
INSERT INTO events VALUES(3,2,'','plan','{"cohort": ["east"]}','2026-11-21 19:47:26.513035');
CREATE TABLE rounds (
	number INTEGER NOT NULL,
	record JSON NOT NULL,
	committed_at DATETIME NOT NULL,
	PRIMARY KEY (number)
);
INSERT INTO rounds VALUES(1,'{"round": 1, "moved": true}','2026-11-21 19:47:26.509116');
CREATE TABLE run (
	"key" VARCHAR NOT NULL,
	value JSON NOT NULL,
	PRIMARY KEY ("key")
);
INSERT INTO run VALUES('schema',1);
INSERT INTO run VALUES('run','"5f3e"');
INSERT INTO run VALUES('inputs','{"a": 1}');
INSERT INTO run VALUES('state','{"round": 1}');
INSERT INTO run VALUES('release','{"outcome": {"plan": {"round": 2}}}');
"""


# what schema 2 has more; an array in two pieces
SECOND = """
CREATE INDEX events_round ON events (round);
CREATE TABLE messages (
	site VARCHAR NOT NULL,
	id VARCHAR NOT NULL,
	round INTEGER NOT NULL,
	kind VARCHAR NOT NULL,
	digest VARCHAR NOT NULL,
	at DATETIME NOT NULL,
	PRIMARY KEY (site, id)
);
CREATE INDEX messages_round ON messages (round);
UPDATE run SET value = 2 WHERE "key" = 'schema';
UPDATE arrays SET data = X'00000000' WHERE name = 'model';
INSERT INTO arrays VALUES('model',1,'<f4','[3]',818461808,X'0000803F00000040');
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    path.touch(0o600)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD)
    return path


def check(journal: Journal) -> None:
    """All that the old journal held."""
    kept, release = journal.state(), journal.release()
    assert kept is not None and release is not None
    assert kept[0] == {"round": 1} and kept[1]["model"].tolist() == [0.0, 1.0, 2.0]
    assert kept[1]["east/residual"].tolist() == [[7.0, 8.0]] and release[1].tolist() == [5, -6]
    events = [event for event in journal.events() if event["kind"] != "upgrade"]
    assert [(event["kind"], event["at"]) for event in events] == [
        ("plan", "2026-11-21T19:47:26.508471"),
        ("verdict", "2026-11-21T19:47:26.509542"),
        ("plan", "2026-11-21T19:47:26.513035"),
    ]
    assert journal.plans(2) == 1 and list(journal.rounds()) == [{"round": 1, "moved": True}]
    assert list(journal.messages()) == [] and journal.fact("inputs") == {"a": 1}


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


def tables(journal: Journal) -> dict[str, Any]:
    found = inspect(journal._engine)
    return {
        name: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(name)],
            found.get_pk_constraint(name)["constrained_columns"],
            sorted((index["name"], *index["column_names"]) for index in found.get_indexes(name)),
        )
        for name in found.get_table_names()
    }


def test_an_old_journal_is_upgraded_and_goes_on(old: Path) -> None:
    before = dump(old)
    with closing(Journal.open(old)) as journal:
        check(journal)
        assert journal.fact("schema") == SCHEMA
        notes = [event["detail"] for event in journal.events() if event["kind"] == "upgrade"]
        assert [(note["from"], note["to"]) for note in notes] == [(1, 2), (2, 3)]
        assert {note["backup"] for note in notes} == {"journal.db.schema-1"}
        journal.commit({"round": 2}, {"round": 2}, {}, {}, [Counted("east", "m", "d")])
    backup = old.with_name("journal.db.schema-1")
    assert dump(backup) == before and backup.stat().st_mode & 0o077 == 0
    with closing(Journal.open(old)) as journal:
        assert [(found["site"], found["id"], found["digest"]) for found in journal.messages()] == [("east", "m", "d")]
        assert len([event for event in journal.events() if event["kind"] == "upgrade"]) == 2


def test_a_journal_of_the_second_schema(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(SECOND)
    with closing(Journal.open(old, read_only=True)) as journal:
        check(journal)
    with closing(Journal.open(old)) as journal:
        check(journal)
        (note,) = [event["detail"] for event in journal.events() if event["kind"] == "upgrade"]
        assert note == {"from": 2, "to": 3, "backup": "journal.db.schema-2"}
        journal.commit({"round": 2}, {"round": 2}, {"model": np.arange(5, dtype=np.float32)}, {})
        assert journal.arrays()["model"].tolist() == [0, 1, 2, 3, 4]


def test_an_upgraded_journal_is_like_a_new_one(old: Path, tmp_path: Path) -> None:
    with closing(Journal.open(old)) as upgraded, closing(Journal.create(tmp_path / "new.db", {})) as new:
        assert tables(upgraded) == tables(new)


def test_an_old_journal_is_looked_at_and_left_as_it_is(old: Path) -> None:
    before = dump(old)
    with closing(Journal.open(old, read_only=True)) as journal:
        check(journal)
        assert not list(journal.messages())
    assert dump(old) == before
    assert {path.name for path in old.parent.iterdir()} <= {"journal.db", "journal.db-wal", "journal.db-shm"}


def test_an_upgrade_that_breaks_off_leaves_the_old_journal(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: Any) -> None:
        step(connection)
        raise ZeroDivisionError

    before, (step, *_) = dump(old), migrations.STEPS
    monkeypatch.setattr(migrations, "STEPS", (broken,))
    with pytest.raises(ZeroDivisionError):
        Journal.open(old)
    assert dump(old) == before
    monkeypatch.undo()
    with closing(Journal.open(old)) as journal:
        check(journal)


def test_a_journal_that_cannot_be_copied_is_not_upgraded(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    before = dump(old)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=r"cannot be copied: No space.*make room"):
        Journal.open(old)
    monkeypatch.undo()
    assert dump(old) == before and not [path for path in old.parent.iterdir() if path.name.startswith(".")]


def test_a_newer_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(Journal.create(path, {})) as journal:
        journal.set_fact("schema", SCHEMA + 1)
    before = dump(path)
    for read_only in (False, True):
        with pytest.raises(InputError, match=f"has schema {SCHEMA + 1}, this version reads {SCHEMA} and older"):
            Journal.open(path, read_only=read_only)
    assert dump(path) == before


def test_there_is_a_step_for_each_schema() -> None:
    assert len(migrations.STEPS) == SCHEMA - 1
