"""A PostgreSQL server of a test's own: made from Debian's binaries in a temporary folder, on a free port, and ended.

The server refuses to run as root; then everything of it runs as the user `postgres`.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toys.ports import free_port

ADMIN, PASSWORD = "medfl", "s3cret-of-the-test"
_PATIENCE = 60.0  # seconds


def _binary(name: str) -> str:
    found = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    given = [*found, shutil.which(name)]
    usable = [path for path in given if path]
    if not usable:
        pytest.skip(f"PostgreSQL's {name} is not installed")
    return usable[-1] if not found else found[-1]


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv") or subprocess.run(["id", "postgres"], capture_output=True).returncode:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv or no user postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


class Server:
    """fsync is off: what is tested is a server that dies, not a machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._user = _as_user()
        self._server: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(folder, "postgres", "postgres")
        secret = folder / "password"
        secret.write_text(PASSWORD)
        options = ["-D", str(folder / "data"), "-U", ADMIN, "-A", "scram-sha-256", f"--pwfile={secret}"]
        done = self._run(_binary("initdb"), *options, "--no-sync", "-E", "UTF8", "--locale=C")
        if done.returncode:
            pytest.skip(f"initdb does not work here: {done.stderr.decode()[-300:]}")

    def url(self, database: str = "postgres", user: str = ADMIN, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(self.folder), "-p", str(self.port)]
        # a test that is killed takes its server with it
        dies = ["setpriv", "--pdeathsig=SIGQUIT"] if shutil.which("setpriv") else []
        command = [*(self._user or dies[:1]), *dies[1:], _binary("postgres"), "-D", str(self.folder / "data"), *options]
        log = (self.folder / "log").open("ab")
        self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > end:
                self.stop()
                pytest.skip(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-300:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End at once, in the middle of whatever is going on (PostgreSQL's immediate shutdown: no checkpoint)."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def sql(self, text: str, database: str = "postgres") -> str:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text)  # type: ignore[call-overload]
            return str(cursor.fetchall()) if cursor.description else ""

    def _run(self, *command: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run([*self._user, *command], capture_output=True, cwd=self.folder)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _end(self, how: int) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.send_signal(how)
        try:
            server.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def running() -> Iterator[Server]:
    """A server until the block ends; the test is skipped, with the reason, where there can be none."""
    pytest.importorskip("psycopg", reason="needs medfl[postgres]")
    # not pytest's folder: the server's own user cannot look into that
    folder = Path(tempfile.mkdtemp(prefix="medfl-postgres-"))
    server = None
    try:
        server = Server(folder)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
