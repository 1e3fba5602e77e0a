"""One message to the site's medfl service, and its answer."""

import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from medfl.errors import RunError

_LENGTH = struct.Struct("<Q")
_PATIENCE = 300.0
_START = 120.0


def ask(home: Path, data: bytes, start: bool = False) -> bytes:
    """start: start the service when it does not run. RunError when there is none."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_PATIENCE)
        _connect(line, home, start)
        line.sendall(_LENGTH.pack(len(data)))
        line.sendall(data)
        (size,) = _LENGTH.unpack(_read(line, _LENGTH.size))
        return bytes(_read(line, size))


def _connect(line: socket.socket, home: Path, start: bool) -> None:
    path = str(home.resolve() / "work" / "flower.sock")
    end, started = time.monotonic() + _START, False
    while True:
        try:
            line.connect(path)
            return
        except OSError as error:
            if not start or time.monotonic() >= end:
                remedy = "its steward starts it: medfl site start --flower"
                raise RunError.at("site", "its medfl service does not run", remedy) from error
        if not started:
            _start_service(home)
            started = True
        time.sleep(0.2)


def _start_service(home: Path) -> None:
    """On its own: it outlives this process. A second one that is started at the same time finds the first and ends."""
    command = [sys.executable, "-m", "medfl", "site", "start", "--home", str(home), "--flower"]
    descriptor = os.open(home / "work" / "flower.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "wb") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _read(line: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view, at = memoryview(found), 0
    while at < size:
        count = line.recv_into(view[at:])
        if not count:
            raise RunError.at("site", "its medfl service ended while it was asked")
        at += count
    return found
