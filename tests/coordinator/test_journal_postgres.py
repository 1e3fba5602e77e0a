"""What only a journal in PostgreSQL has: a server that dies, a network, passwords, and roles."""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.postgres import ADMIN, PASSWORD, Server, running

from medfl.coordinator import journal as module
from medfl.coordinator.journal import Counted, Journal, place_of
from medfl.coordinator.stores.postgres import PostgresPlace, _encryption
from medfl.errors import InputError, MedflError, RunError

NUMBERS = count()
BIG = {f"array{number}": np.full(250_000, number, np.float32) for number in range(4)}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found:
        yield found


@pytest.fixture
def url(server: Server) -> str:
    return f"{server.url()}?schema=medfl_own{next(NUMBERS)}"


def commit(journal: Journal, round_: int) -> None:
    arrays = {name: array + round_ for name, array in BIG.items()}
    verdicts = {"east": {"outcome": "admit"}}
    journal.commit({"round": round_}, {"round": round_}, arrays, verdicts, [Counted("east", f"m{round_}", "d")])


def whole(journal: Journal, round_: int) -> None:
    kept = journal.state()
    assert kept is not None and kept[0] == {"round": round_}
    assert all((kept[1][name] == array + round_).all() for name, array in BIG.items())
    assert [record["round"] for record in journal.rounds()] == [*range(1, round_ + 1)]
    assert [found["round"] for found in journal.messages()] == [*range(1, round_ + 1)]
    assert [event["round"] for event in journal.events() if event["kind"] == "verdict"] == [*range(1, round_ + 1)]


def test_a_journal_of_the_second_schema_is_upgraded(server: Server, url: str) -> None:
    schema = url.partition("schema=")[2]
    with closing(Journal.create(url, {})) as journal:
        commit(journal, 1)
    # as the version before had it
    server.sql(
        f"SET search_path TO {schema}; ALTER TABLE arrays RENAME TO about; "
        "CREATE TABLE arrays (name VARCHAR, chunk INTEGER, dtype VARCHAR NOT NULL, shape TEXT NOT NULL, "
        "checksum BIGINT NOT NULL, data BYTEA NOT NULL, PRIMARY KEY (name, chunk)); INSERT INTO arrays "
        "SELECT name, chunk, dtype, shape, checksum, data FROM about JOIN chunks USING (name); "
        "DROP TABLE about; DROP TABLE chunks; UPDATE run SET value = '2' WHERE key = 'schema'"
    )
    with closing(Journal.open(url)) as journal:
        whole(journal, 1)
        commit(journal, 2)
        whole(journal, 2)


# a server that dies


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_server_killed_in_the_middle_of_a_commit_leaves_nothing_half(
    server: Server, url: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = module._write, count(1)

    def dying(*rest: Any) -> None:
        real(*rest)
        if next(written) == after:
            server.kill()

    with closing(Journal.create(url, {})) as journal:
        commit(journal, 1)
        monkeypatch.setattr(module, "_write", dying)
        with pytest.raises(RunError, match=r"cannot be (used|reached).*\(see that"):
            commit(journal, 2)
        monkeypatch.undo()
        with pytest.raises(RunError, match="cannot be reached"):
            journal.note(2, "plan", {})
        server.start()
        # the same journal goes on, without being opened again
        whole(journal, 1)
        commit(journal, 2)
        whole(journal, 2)


def test_a_lost_connection_is_said_and_made_again(server: Server, url: str) -> None:
    with closing(Journal.create(url, {})) as journal:
        with pytest.raises(RunError, match=r"cannot be used.*--resume"), journal._transaction() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            server.sql(f"SELECT pg_terminate_backend({pid})")
            connection.exec_driver_sql("SELECT 1")
        _cut(server, journal)
        commit(journal, 1)
        whole(journal, 1)


def _cut(server: Server, journal: Journal) -> None:
    """End the journal's connection while it is idle."""
    with journal._transaction() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    server.sql(f"SELECT pg_terminate_backend({pid})")


def test_who_lost_the_journal_to_another_writes_no_more(server: Server, url: str) -> None:
    with closing(Journal.create(url, {})) as journal:
        commit(journal, 1)
        _cut(server, journal)
        with closing(_eventually(lambda: Journal.open(url))) as other:
            with pytest.raises(RunError, match="is in use by"):
                commit(journal, 2)
            commit(other, 2)
        with pytest.raises(RunError, match="written by another process while the connection was lost"):
            commit(journal, 3)
        with pytest.raises(RunError, match="written by another process"):
            journal.note(3, "plan", {})
    with closing(Journal.open(url)) as journal:
        whole(journal, 2)


def test_without_the_token_two_would_have_written(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a place that forgets that it was open takes the journal back."""
    monkeypatch.setattr(PostgresPlace, "opened", lambda self: None)
    with closing(Journal.create(url, {})) as journal:
        _cut(server, journal)
        with closing(_eventually(lambda: Journal.open(url))) as other:
            commit(other, 1)
        journal.note(2, "plan", {})


def _eventually(open_: Callable[[], Journal]) -> Journal:
    import time

    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            return open_()
        except InputError:
            time.sleep(0.02)
    return open_()


# several runs in one database


def test_each_run_has_a_schema_of_its_own(server: Server) -> None:
    server.sql("CREATE DATABASE trials")
    with closing(Journal.create(server.url("trials"), {"run": "aa11"})) as first:
        assert first.where.endswith("/trials?schema=medfl_aa11")
        commit(first, 1)
        with closing(Journal.open(server.url("trials"), read_only=True)) as found:
            assert found.where == first.where and found.fact("run") == "aa11"
        with closing(Journal.create(server.url("trials"), {"run": "bb22"})) as second:
            assert second.state() is None, "runs share nothing"
            commit(second, 1)
            commit(second, 2)
        whole(first, 1)
    with pytest.raises(InputError, match=r"holds 2 journals \(add \?schema= and one of medfl_aa11, medfl_bb22\)"):
        Journal.open(server.url("trials"))
    with pytest.raises(InputError, match="names no schema"):
        Journal.create(server.url("trials"), {})
    with pytest.raises(InputError, match="exists already"):
        Journal.create(server.url("trials"), {"run": "aa11"})


def test_a_database_without_a_journal(server: Server) -> None:
    server.sql("CREATE DATABASE empty")
    with pytest.raises(InputError, match="holds no journal"):
        Journal.open(server.url("empty"))
    server.sql("CREATE SCHEMA medfl_other; CREATE TABLE medfl_other.run (key text, value text)", "empty")
    with pytest.raises(InputError, match="is not a journal of medfl"):
        Journal.open(server.url("empty"))


# roles


def role(server: Server, name: str, *grants: str) -> str:
    server.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    for grant in grants:
        server.sql(grant)
    return name


def test_an_auditor_reads_all_but_the_arrays(server: Server) -> None:
    """The grants are those of docs/journal.md."""
    schema = "medfl_audited"
    with closing(Journal.create(f"{server.url()}?schema={schema}", {"run": "x"})) as journal:
        commit(journal, 1)
        role(
            server,
            "auditor",
            f"GRANT USAGE ON SCHEMA {schema} TO auditor",
            f"GRANT SELECT ON {schema}.run, {schema}.rounds, {schema}.events, {schema}.messages TO auditor",
        )
        address = f"{server.url(user='auditor')}?schema={schema}"
        with closing(Journal.open(address, read_only=True)) as seen:
            assert seen.fact("run") == "x" and len(list(seen.rounds())) == len(list(seen.messages())) == 1
            with pytest.raises(RunError, match="permission denied for table arrays"):
                seen.arrays()
        # the journal is not even its own when it asks to write
        journal.close()
        with pytest.raises(MedflError, match="permission denied"):
            Journal.open(address)
    with closing(Journal.open(f"{server.url()}?schema={schema}")) as journal:
        whole(journal, 1)


def test_a_user_who_may_not_make_schemas_is_told_so(server: Server) -> None:
    role(server, "plain")
    with pytest.raises(InputError, match=r"may not be made by this user .*GRANT CREATE ON DATABASE"):
        Journal.create(f"{server.url(user='plain')}?schema=medfl_never", {})


def test_a_role_with_weak_commits_is_set_right(server: Server) -> None:
    role(
        server, "hasty", "ALTER ROLE hasty SET synchronous_commit TO off", "GRANT CREATE ON DATABASE postgres TO hasty"
    )
    url = f"{server.url(user='hasty')}?schema=medfl_hasty"
    with closing(Journal.create(url, {})) as journal, journal._transaction() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


# passwords


def leaks(text: str, secret: str) -> bool:
    return secret in text or secret[:8] in text


def test_a_password_is_never_shown(
    server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, said = "hunter2-and-more", []
    wrong = [
        server.url(password=secret),
        server.url("nowhere", password=secret),
        f"postgresql://{ADMIN}:{secret}@127.0.0.1:1/db",
        f"postgresql://{ADMIN}:{secret}@127.0.0.1:port/db",
        f"postgresql://{ADMIN}:a@{secret}@127.0.0.1/db",
        f"postgresql://{ADMIN}:a@b/{secret}@127.0.0.1/db",
        f"postgresql://{ADMIN}@127.0.0.1/db?password={secret}",
        f"postgresql://{ADMIN}@127.0.0.1/db?sslpassword={secret}",
        f"mysql://{ADMIN}:{secret}@127.0.0.1/db",
        f"{ADMIN}:{secret}",
    ]
    for url in wrong:
        for use in (lambda url=url: Journal.open(url), lambda url=url: Journal.create(url, {"run": "y"})):
            with pytest.raises(InputError) as raised:
                use()
            said += [str(raised.value), repr(raised.value), *traceback.format_exception(raised.value)]
    with closing(Journal.create(f"{server.url()}?schema=medfl_quiet", {})) as journal:
        said += [repr(journal), journal.where, repr(journal._engine), repr(vars(journal)), repr(journal._place)]
        module.point_to(tmp_path, journal)
        said.append((tmp_path / "journal.url").read_text())
        with pytest.raises(RunError) as failed:
            journal.commit({"round": 1}, {}, {"model": np.zeros(3)}, {}, [Counted("east", None, "d")])  # type: ignore[arg-type]
        said += traceback.format_exception(failed.value)
    said += [caplog.text, *capfd.readouterr()]
    for text in said:
        assert not leaks(text, secret) and not leaks(text, PASSWORD), text
    assert not any("\\x00" in text for text in said), "nor are arrays"


def test_a_password_comes_from_the_environment_or_a_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = f"postgresql://{ADMIN}@127.0.0.1:{server.port}/postgres?schema=medfl_bare"
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be reached: .*password.*\(see .*PGPASSWORD or ~/.pgpass"):
        Journal.create(bare, {})
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    Journal.create(bare, {}).close()
    monkeypatch.delenv("PGPASSWORD")
    kept = tmp_path / "pgpass"
    kept.write_text(f"127.0.0.1:{server.port}:*:{ADMIN}:{PASSWORD}\n")
    kept.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(kept))
    Journal.open(bare).close()


def test_a_url_says_all_that_is_wrong_with_it() -> None:
    with pytest.raises(InputError) as raised:
        place_of("mysql://h?color=red&schema=Bad-Name&password=x")
    assert [fault.what.split()[0:3] for fault in raised.value.faults] == [
        ["has", "the", "scheme"],
        ["names", "no", "database"],
        ["has", "an", "option"],
        ["has", "an", "option"],
        ["names", "the", "schema"],
    ]


@given(st.text(max_size=60) | st.builds("postgresql://{}".format, st.text(max_size=60)))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        place = place_of(text)
    except InputError:
        return
    assert place_of(place.text).text == place.text


@given(st.text("ab%/?#:&= ", min_size=8), st.text("xyz@:/% ", min_size=1, max_size=8))
def test_a_place_forgets_the_password_and_nothing_else(secret: str, user: str) -> None:
    from urllib.parse import quote

    url = (
        f"postgresql://{quote(user, safe='')}:{quote('Q7' + secret, safe='')}@h.example:5/db?sslmode=require&schema=s_1"
    )
    shown = place_of(url).text
    assert "Q7" not in shown and "sslmode=require" in shown and "schema=s_1" in shown and "@h.example:5/db" in shown


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://u@db.hospital.example/d", "verify-full"),
        ("postgresql://u@10.0.0.5/d", "verify-full"),
        ("postgresql:///d?host=db.hospital.example", "verify-full"),
        ("postgresql:///d?host=a.example&host=b.example", "verify-full"),
        ("postgresql://u@127.0.0.1/d", None),
        ("postgresql://u@localhost/d", None),
        ("postgresql:///d?host=/run/postgresql", None),
        ("postgresql:///d", None),
    ],
)
def test_over_a_network_the_server_has_to_prove_itself(
    url: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)
    place = place_of(url)
    assert isinstance(place, PostgresPlace)
    assert _encryption(place._url).get("sslmode") == mode
    monkeypatch.setenv("PGHOST", "db.hospital.example")
    assert ("sslmode" in _encryption(place._url)) == (mode is not None or url == "postgresql:///d")


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"pip install 'medfl\[postgres\]'"):
        Journal.open("postgresql://u@127.0.0.1:1/d?schema=s")
