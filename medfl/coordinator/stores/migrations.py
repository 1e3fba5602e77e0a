"""Upgrades of the journal, step by step. A step is never changed once it was released: it names its own tables."""

from collections.abc import Callable

from sqlalchemy import Column, Connection, DateTime, Integer, MetaData, String, Table

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


STEPS: tuple[Step, ...] = (_to_2,)
"""STEPS[n - 1] goes from schema n to n + 1."""
