"""Where journals are kept: the contract of a place."""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from medfl.errors import Fault, InputError
from medfl.update.wire import Buffer

Where = Path | str
"""A file (SQLite), or the URL of a PostgreSQL database."""

IN_USE = "stop that process first; to look only, use `medfl report` or `medfl coordinator status`"


class Place(ABC):
    """One journal's place. One process at a time may write; readers are never blocked and block nobody.

    text: the place as a reader would look it up, without passwords; it can be given as a `Where` again.
    """

    text: str

    @abstractmethod
    def made(self, run: str) -> "Place":
        """The place of a new journal of this run; InputError when there is a journal already."""

    @abstractmethod
    def found(self) -> "Place":
        """The place of the journal that is there; InputError when there is none."""

    @abstractmethod
    def reader(self) -> Engine:
        """Reads a snapshot a transaction, and cannot write."""

    @abstractmethod
    def copy(self) -> Engine:
        """A copy in memory, to be read with a newer schema; InputError where the place has no such thing."""

    @abstractmethod
    def writer(self, token: str, durable: bool) -> Engine:
        """Reads and writes, alone until `release`: InputError names the process that writes already.

        token: what this process writes into the journal as its own. durable: a commit is on disk when it returns, also
        if the machine loses its power then.
        """

    @abstractmethod
    def maker(self, token: str) -> Engine:
        """Makes a new journal in one transaction."""

    @abstractmethod
    def placed(self, maker: Engine, token: str, durable: bool) -> Engine:
        """Let the journal appear that was made, whole, and go on as its `writer`."""

    @abstractmethod
    def opened(self) -> None:
        """The journal holds the writer's token."""

    @abstractmethod
    def prepare(self, connection: Connection) -> None:
        """What has to be there before a new journal's tables are made, in their transaction."""

    def overwrite(self, connection: Connection, name: str, chunk: int, data: Buffer) -> bool:
        """Write over the bytes of a chunk in a transaction, sooner than SQL can; False where that is not to be had."""
        return False

    @abstractmethod
    def backup(self, schema: int) -> str:
        """Keep a copy of a journal that is about to be upgraded; where it is, "" when that is left to its keeper."""

    @abstractmethod
    def release(self) -> None:
        """Let another process write."""


def myself(token: str) -> dict[str, Any]:
    """This process, as the journal names its writer."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"token": token, "process": os.getpid(), "host": socket.gethostname(), "since": since}


def in_use(where: str, writer: Mapping[str, Any] | None) -> InputError:
    """The error of a second writer."""
    who = "another process"
    if writer is not None:
        who = f"process {writer['process']} on {writer['host']} since {writer['since']}"
    return InputError(Fault(where, f"is in use by {who}", IN_USE))
