"""The gRPC health protocol (grpc.health.v1), for supervisors on the same machine: whether a service does its work.

Says yes or no and nothing else, without TLS; it listens on the loopback interface unless it is told otherwise.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from medfl.errors import RunError

_LOOK = 0.25
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServer:
    """Answers Check and Watch for the service name "". serving: whether the work is done now; asked four times a
    second, so that who watches hears of a change."""

    def __init__(self, serving: Callable[[], bool]) -> None:
        self._serving = serving
        self._stopped = threading.Event()
        self._servicer = health.HealthServicer()
        self._servicer.set("", _NOT_SERVING)
        self._server = grpc.server(
            ThreadPoolExecutor(4, "health"), maximum_concurrent_rpcs=16, options=[("grpc.so_reuseport", 0)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)

    def start(self, address: str) -> int:
        """Listen on host:port; the port (of its own choice for 0). RunError when it cannot."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise RunError.at(address, "cannot be listened on for --health", "choose a free port") from error
        self._server.start()
        threading.Thread(target=self._watch, name="health", daemon=True).start()
        return port

    def stop(self) -> None:
        """NOT_SERVING from now on, and then nobody there."""
        self._stopped.set()
        self._servicer.enter_graceful_shutdown()
        self._server.stop(0.5).wait()

    def _watch(self) -> None:
        last = False
        while not self._stopped.wait(_LOOK):
            now = self._serving()
            if now != last:
                self._servicer.set("", _SERVING if now else _NOT_SERVING)
                last = now


def check(address: str, seconds: float = 5.0) -> str:
    """What the health service at host:port says: "SERVING", "NOT_SERVING", .. RunError when nobody answers."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            found = stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=seconds)
        except grpc.RpcError as error:
            what = "answers no question about its health"
            raise RunError.at(address, what, "see that the service runs with --health at this port") from error
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))
