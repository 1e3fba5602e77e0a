"""The tables of registry.db (SQLAlchemy on SQLite): invitations and certificates. Tokens are kept as SHA-256 only."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    DateTime,
    Dialect,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy import Connection as Database

SCHEMA = 1


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC: SQLite itself would forget the zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

facts = Table("facts", metadata, Column("key", String, primary_key=True), Column("value", String, nullable=False))

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String, primary_key=True),  # hex: larger than SQLite's integers
    Column("name", String, nullable=False, index=True),
    Column("role", String, nullable=False),
    Column("fingerprint", String, nullable=False, unique=True),
    Column("identity", String, nullable=False, index=True),
    Column("issued_at", UtcTime, nullable=False),
    Column("not_after", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Column("replaced_at", UtcTime),
    Column("good_until", UtcTime),  # of one that was replaced
    Column("pem", LargeBinary, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", LargeBinary, nullable=False, unique=True),  # SHA-256
    Column("name", String, nullable=False, index=True),
    Column("role", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("withdrawn_at", UtcTime),
    Column("used_at", UtcTime),
    Column("serial", String, ForeignKey(certificates.c.serial)),  # what it was used for
)

WRITING = "medfl_writing"
"""Execution option of a connection whose transactions take the write lock when they begin."""


def connect(path: Path) -> Engine:
    """Transactions are SQLite's own: a writer waits its turn at the start, instead of failing in the middle."""
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins no transactions of its own
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a revocation survives a power cut
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Database) -> None:
        writing = connection.get_execution_options().get(WRITING, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
