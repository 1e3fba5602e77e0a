"""Free ports on loopback that stay free."""

import random
import socket


def free_port() -> int:
    """A port that nobody has and that no outgoing connection is given: those come from 32768 on."""
    for port in random.SystemRandom().sample(range(15_000, 32_000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")
