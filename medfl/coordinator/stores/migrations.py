"""Upgrades of the journal, step by step. A step is never changed once it was released: it names its own tables."""

from collections.abc import Callable

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

Step = Callable[[Connection], None]


def _to_2(connection: Connection) -> None:
    """Look events up by round; count each message once."""
    connection.exec_driver_sql("CREATE INDEX events_round ON events (round)")
    Table(
        "messages",
        MetaData(),
        Column("site", String, primary_key=True),
        Column("id", String, primary_key=True),
        Column("round", Integer, nullable=False),
        Column("kind", String, nullable=False),
        Column("digest", String, nullable=False),
        Column("at", DateTime(timezone=True), nullable=False),
    ).create(connection)
    connection.exec_driver_sql("CREATE INDEX messages_round ON messages (round)")


def _to_3(connection: Connection) -> None:
    """Keep an array's bytes apart from what is said of it."""
    connection.exec_driver_sql("ALTER TABLE arrays RENAME TO arrays_2")
    tables = MetaData()
    Table(
        "arrays",
        tables,
        Column("name", String, primary_key=True),
        Column("dtype", String, nullable=False),
        Column("shape", JSON().with_variant(Text(), "postgresql"), nullable=False),
        Column("checksum", Integer().with_variant(BigInteger(), "postgresql"), nullable=False),
    )
    Table(
        "chunks",
        tables,
        Column("name", String, primary_key=True),
        Column("chunk", Integer, primary_key=True),
        Column("data", LargeBinary, nullable=False),
    )
    tables.create_all(connection)
    connection.exec_driver_sql("INSERT INTO chunks SELECT name, chunk, data FROM arrays_2")
    about = "SELECT name, dtype, shape, checksum FROM arrays_2 WHERE chunk = 0"
    connection.exec_driver_sql(f"INSERT INTO arrays {about}")
    connection.exec_driver_sql("DROP TABLE arrays_2")


STEPS: tuple[Step, ...] = (_to_2, _to_3)
"""STEPS[n - 1] goes from schema n to n + 1."""
