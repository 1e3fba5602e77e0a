"""Who calls the HTTPS port by hand, and says what a test wants."""

import http.client
import socket
import ssl
import time
from typing import Any

from medfl.keys import to_pem
from medfl.transport.https.frames import PATH, TOKEN_HEADER, decode, encode
from medfl.transport.https.http1 import Limits
from medfl.transport.https.tls import client_context
from medfl.transport.post import VERSIONS
from medfl.transport.protocol.medfl_pb2 import Frame, Hello
from toys.https_lines import Lead

LIMITS = Limits(handshake=0.6, begun=0.6, body=0.6, idle=1.5, rate=2**20, strangers=2, each=3, connections=6)
SESSION = "0123456789abcdef"


class Caller:
    """A peer that says what a test wants."""

    def __init__(self, lead: Lead, port: int, name: str = "north") -> None:
        self.applicant, self.certificate = lead.house.enrolled(name)
        self.name = name
        self.port = port
        self.key = to_pem(self.applicant.key)
        self.context = client_context(self.key, self.certificate, lead.ca)

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        return self.context.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(self, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.context, timeout=5)
        connection.request(method, path, body)
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.getheaders())
        connection.close()
        return found

    def hello(self, **changed: Any) -> bytes:
        said = {"name": self.name, "session": SESSION, "versions": VERSIONS} | changed
        return encode([Frame(hello=Hello(**said)).SerializeToString()])

    def line(self) -> str:
        status, body, fields = self.ask(PATH, self.hello())
        assert status == 200 and decode(body)[0].WhichOneof("kind") == "welcome"
        return f"{PATH}/{fields[TOKEN_HEADER]}"


def raw(connection: ssl.SSLSocket, request: bytes) -> bytes:
    connection.sendall(request)
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except OSError:
        pass
    return found


def closed_after(connection: socket.socket) -> float:
    """Seconds until the other end closes the connection."""
    begun = time.monotonic()
    connection.settimeout(10)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begun
