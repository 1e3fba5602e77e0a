"""What is left of a local training when its process is killed: the last whole local epoch, in one file.

    message of named arrays (`medfl.update.wire`) | SHA-256 of the message

The header names the order that the training answers (`order_key`). Nothing of the file is believed before the digest
fits, and no pickle is read. It holds parameters without any noise, is readable by its owner only and never travels.
"""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from medfl.errors import RunError
from medfl.learning.messages import TrainOrder
from medfl.update.vector import FloatVector
from medfl.update.wire import as_bytes, pack_arrays, unpack_arrays

MIN_SECONDS = 5.0
_FORMAT = 1
_DIGEST = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A local training after `step` steps.

    setup: digest of what else decides the training, such as the network, the optimiser and the samples' labels. arrays:
    by name; of a training that runs they are views of its memory, so whoever keeps them copies them.
    """

    step: int
    setup: str
    arrays: Mapping[str, npt.NDArray[Any]]


class EpochStore(ABC):
    """Where the local training of one site keeps its last whole epoch; holds one checkpoint.

    run: the run's name, a part of every key. min_seconds: a training that started, or was saved, less than this ago is
    not saved, so that short epochs cost nothing.
    """

    def __init__(self, run: str = "", min_seconds: float = MIN_SECONDS) -> None:
        self.run = run
        self.min_seconds = min_seconds

    @abstractmethod
    def load(self, key: str) -> Checkpoint | None:
        """The checkpoint that was saved under this key; None when there is none that can be trusted."""

    @abstractmethod
    def save(self, key: str, checkpoint: Checkpoint) -> None:
        """Replace what is kept, durably. The checkpoint is a safeguard: failing to keep it does not end a training."""

    @abstractmethod
    def clear(self) -> None:
        """Forget what is kept. To be called once the training's reply is durable, and never before."""


class FileEpochStore(EpochStore):
    """One file with one writer. A file that is damaged, or of another order, counts as none, which is logged."""

    def __init__(self, path: Path, run: str = "", min_seconds: float = MIN_SECONDS) -> None:
        super().__init__(run, min_seconds)
        self.path = path
        self._draft = path.with_name(f".{path.name}.draft")

    def load(self, key: str) -> Checkpoint | None:
        try:
            found, checkpoint = _parse(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, RunError) as error:
            log.warning("%s is not used, the round is trained from its start: %s", self.path, error)
            return None
        if found != key:
            log.info("%s is not used: it belongs to another order", self.path)
            return None
        return checkpoint

    def save(self, key: str, checkpoint: Checkpoint) -> None:
        try:
            self._write(key, checkpoint)
        except OSError as error:
            log.warning(
                "%s cannot be written, so a crash would cost the local epochs of this round: %s (make room there)",
                self.path,
                error,
            )

    def clear(self) -> None:
        for path in (self.path, self._draft):
            path.unlink(missing_ok=True)

    def _write(self, key: str, checkpoint: Checkpoint) -> None:
        header = {"format": _FORMAT, "key": key, "step": checkpoint.step, "setup": checkpoint.setup}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._draft.unlink(missing_ok=True)
        descriptor = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        digest = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pack_arrays(header, dict(checkpoint.arrays)):
                    digest.update(piece)
                    file.write(piece)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            self._draft.replace(self.path)
        except BaseException:
            self._draft.unlink(missing_ok=True)
            raise
        _flush_folder(self.path.parent)


def order_key(run: str, order: TrainOrder, model: FloatVector, cases: int) -> str:
    """The name of a local training: SHA-256, as hex, of everything in an order that decides it, of the global vector
    `model` [size] and of the number of unique cases. Not of the ledger's head, which may differ when an order is sent
    again."""
    asked = {
        "run": run,
        "site": order.site,
        "round": order.round,
        "values": {name: float(value) for name, value in order.values.items()},
        "cases": cases,
        "counted": order.counted,
        "part": dict(order.part),
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(as_bytes(model))
    return digest.hexdigest()


def _parse(content: bytes) -> tuple[str, Checkpoint]:
    """Key and checkpoint of a file's bytes; RunError for anything but a whole file that `FileEpochStore` wrote."""
    message = memoryview(content)[:-_DIGEST]
    if hashlib.sha256(message).digest() != content[-_DIGEST:]:
        raise RunError.at("checkpoint", "is damaged: its SHA-256 does not fit")
    header, arrays = unpack_arrays(message)
    found = (header.get("format"), header.get("key"), header.get("step"), header.get("setup"))
    match found:
        case (int(form), str(key), int(step), str(setup)) if form == _FORMAT and step > 0:
            return key, Checkpoint(step, setup, arrays)
    raise RunError.at("checkpoint", f"is not of format {_FORMAT}")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
