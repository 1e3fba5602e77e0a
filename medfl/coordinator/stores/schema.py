"""The journal's tables, as this version writes them. A change here needs a new number and a step in `migrations`."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

SCHEMA = 3


class _JsonText(TypeDecorator[Any]):
    """JSON as text: PostgreSQL's own type refuses the NaN of a site that failed."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class _Moment(TypeDecorator[datetime]):
    """A time in UTC: SQLite forgets the zone, PostgreSQL answers in the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is None:
            return value
        return value.astimezone(UTC).replace(tzinfo=None)


Json = JSON().with_variant(_JsonText(), "postgresql")
_Crc = Integer().with_variant(BigInteger(), "postgresql")

metadata = MetaData()
run = Table("run", metadata, Column("key", String, primary_key=True), Column("value", Json, nullable=False))
rounds = Table(
    "rounds",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("record", Json, nullable=False),
    Column("committed_at", _Moment, nullable=False),
)
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("site", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("detail", Json, nullable=False),
    Column("at", _Moment, nullable=False),
    Index("events_round", "round"),
)
arrays = Table(
    "arrays",
    metadata,
    Column("name", String, primary_key=True),
    Column("dtype", String, nullable=False),
    Column("shape", Json, nullable=False),
    Column("checksum", _Crc, nullable=False),
)
# apart from what is said of them, so that bytes can be written over in place
chunks = Table(
    "chunks",
    metadata,
    Column("name", String, primary_key=True),
    Column("chunk", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
# a site's message counts once: its id is unique at the site
messages = Table(
    "messages",
    metadata,
    Column("site", String, primary_key=True),
    Column("id", String, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("at", _Moment, nullable=False),
    Index("messages_round", "round"),
)
