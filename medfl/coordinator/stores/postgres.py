"""Journals in a PostgreSQL database: a schema a run, and an advisory lock for its one writer.

The writer has one connection, and the lock belongs to it: whoever can still write still has the lock. A connection that
was lost is made again by the next transaction, which then goes on only if nobody else wrote in between.
"""

import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, make_url
from sqlalchemy.exc import ArgumentError, ProgrammingError

from medfl.coordinator.stores.base import IN_USE, Place, in_use
from medfl.errors import Faults, InputError, RunError

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_LIKE = "postgresql://user@host/database[?schema=...&sslmode=...]"
# of libpq's options those that hold no secret; a password is given before the host or by PGPASSWORD or ~/.pgpass
_OPTIONS = {
    *("host", "port", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding"),
    *("gssencmode", "krbsrvname", "target_session_attrs"),
}
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PREFIX = "medfl_"
# seconds until either end notices that the other has gone, so that a dead coordinator's lock is given up
_ALIVE = {"keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 4, "connect_timeout": 10}
_SESSION = {"tcp_keepalives_idle": "20", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "4"}
_UNACKNOWLEDGED = 60_000  # milliseconds
_REMEDY = "see that the server runs, that the URL is right, and that PGPASSWORD or ~/.pgpass has the password"


class PostgresPlace(Place):
    """`url` is checked already; use `PostgresPlace.of`. schema: "" until it is known."""

    def __init__(self, url: URL, schema: str) -> None:
        self._url = url
        self.schema = schema
        shown = url._replace(drivername="postgresql", password=None)
        self.text = (shown.update_query_dict({"schema": schema}) if schema else shown).render_as_string()
        self._token = ""
        self._opened = False

    @classmethod
    def of(cls, text: str) -> "PostgresPlace":
        """The place that a URL names; InputError names all that is wrong, and repeats no password."""
        where = f"journal {text.partition(':')[0]}://..."
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise InputError.at(where, "is not a URL", f"write it as {_LIKE}") from None
        if text.partition("?")[0].count("@") > 1:
            # the rest of such a password would be taken for a host
            raise InputError.at(where, "has more than one @", "write an @ in a name or password as %40")
        faults = Faults()
        if url.drivername not in SCHEMES:
            faults.add(where, f"has the scheme {url.drivername!r}", f"write it as {_LIKE}, or give a file")
        if not url.database:
            faults.add(where, "names no database", f"write it as {_LIKE}")
        for key in sorted(set(url.query) - _OPTIONS - {"schema"}):
            faults.add(where, f"has an option {key!r}", f"use of these: {', '.join(sorted(_OPTIONS))}, schema")
        schema = url.query.get("schema", "")
        if schema and (not isinstance(schema, str) or not _NAME.fullmatch(schema)):
            faults.add(where, f"names the schema {schema!r}", "use small letters, digits and _, 63 at most")
        faults.raise_if_any(InputError)
        return cls(url.set(drivername="postgresql+psycopg").difference_update_query(["schema"]), str(schema))

    def made(self, run: str) -> "PostgresPlace":
        name = self.schema or f"{_PREFIX}{run}"
        if not (self.schema or run) or not _NAME.fullmatch(name):
            raise InputError.at(self.text, "names no schema for the run", "add ?schema=NAME to the URL")
        return PostgresPlace(self._url, name)

    def found(self) -> "PostgresPlace":
        if self.schema:
            return self
        query = (
            "SELECT table_schema FROM information_schema.tables WHERE table_name = 'run' "
            "AND starts_with(table_schema, %s) ORDER BY 1"
        )
        with self._connected() as connection:
            names = [row[0] for row in connection.execute(query, [_PREFIX])]
        if not names:
            raise InputError.at(self.text, "holds no journal that this user may read", "name the schema: ?schema=NAME")
        if len(names) > 1:
            raise InputError.at(
                self.text, f"holds {len(names)} journals", f"add ?schema= and one of {', '.join(names)}"
            )
        return PostgresPlace(self._url, names[0])

    def reader(self) -> Engine:
        return _engine(self._connect_reading)

    def copy(self) -> Engine:
        raise InputError.at(self.text, "has an older schema", "go on with the run once: that upgrades its journal")

    def writer(self, token: str, durable: bool) -> Engine:
        # what PostgreSQL has committed is on its disk, whatever was asked for
        self._token = token
        return _engine(self._connect_writing)

    def maker(self, token: str) -> Engine:
        return self.writer(token, True)

    def placed(self, maker: Engine, token: str, durable: bool) -> Engine:
        return maker

    def opened(self) -> None:
        self._opened = True

    def prepare(self, connection: Connection) -> None:
        from psycopg import errors

        try:
            connection.exec_driver_sql(f'CREATE SCHEMA "{self.schema}"')
        except ProgrammingError as error:
            if isinstance(error.orig, errors.DuplicateSchema):
                what, remedy = "exists already", "resume that run, or name another schema"
            elif isinstance(error.orig, errors.InsufficientPrivilege):
                what, remedy = "may not be made by this user", "GRANT CREATE ON DATABASE to the user, as administrator"
            else:
                raise
            raise InputError.at(self.text, what, remedy) from error

    def backup(self, schema: int) -> str:
        return ""

    def release(self) -> None:
        """The lock ends with its connection."""

    def _connected(self) -> "psycopg.Connection[Any]":
        """A new connection; InputError, or in the middle of a run RunError, when there is none to be had."""
        psycopg = _psycopg()
        _, arguments = self._url.get_dialect()().create_connect_args(self._url)
        arguments = {**_ALIVE, "tcp_user_timeout": _UNACKNOWLEDGED, **_encryption(self._url), **arguments}
        settings = {**_SESSION, "search_path": f'"{self.schema or "pg_catalog"}"'}
        try:
            connection = psycopg.connect(
                autocommit=True, application_name="medfl journal", client_encoding="UTF8", **arguments
            )
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        except psycopg.Error as error:
            kind = RunError if self._opened else InputError
            what = f"cannot be reached: {' '.join(str(error).split())}"
            raise kind.at(self.text, what, _REMEDY) from error
        return connection  # type: ignore[no-any-return]

    def _connect_reading(self) -> "psycopg.Connection[Any]":
        connection = self._connected()
        connection.autocommit = False
        connection.read_only = True
        connection.isolation_level = _psycopg().IsolationLevel.REPEATABLE_READ
        return connection

    def _connect_writing(self) -> "psycopg.Connection[Any]":
        connection = self._connected()
        try:
            self._take_lock(connection)
            if connection.execute("SHOW synchronous_commit").fetchone() not in (("on",), ("remote_apply",)):
                connection.execute("SET synchronous_commit TO on")
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_lock(self, connection: "psycopg.Connection[Any]") -> None:
        key = int.from_bytes(hashlib.sha256(f"medfl journal {self.schema}".encode()).digest()[:8], signed=True)
        taken = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
        writer = _writer(connection)
        if taken is None or not taken[0]:
            error = in_use(self.text, writer)
            raise RunError(*error.faults) if self._opened else error
        if self._opened and (writer is None or writer["token"] != self._token):
            what = "was written by another process while the connection was lost"
            raise RunError.at(self.text, what, f"{IN_USE}; then go on with --resume")


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise InputError.at("journal", "needs psycopg for PostgreSQL", "pip install 'medfl[postgres]'") from error
    return psycopg


def _encryption(url: URL) -> Mapping[str, str]:
    """Over a network the server has to prove who it is, unless the URL or PGSSLMODE says otherwise."""
    host = url.host or url.query.get("host") or os.environ.get("PGHOST", "localhost")
    far = not isinstance(host, str) or not _is_local(host)
    return {"sslmode": "verify-full"} if far and "PGSSLMODE" not in os.environ else {}


def _is_local(host: str) -> bool:
    if host == "localhost" or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _writer(connection: "psycopg.Connection[Any]") -> Any:
    from psycopg import errors

    try:
        row = connection.execute("SELECT value FROM run WHERE key = 'writer'").fetchone()
    except errors.UndefinedTable:
        return None  # nothing was made yet
    return None if row is None else json.loads(row[0])


def _engine(connect: Callable[[], Any]) -> Engine:
    _psycopg()
    return create_engine(
        "postgresql+psycopg://",
        creator=connect,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=60,
        pool_pre_ping=True,
        hide_parameters=True,
    )
