"""The gRPC health protocol of the services."""

import threading

import pytest

pytest.importorskip("grpc_health")

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from toys.federations import until
from toys.ports import free_port

from medfl.cli.health import health_address
from medfl.errors import InputError, RunError
from medfl.transport.grpc.health import HealthServer, check


def test_says_what_is_so_now() -> None:
    working = threading.Event()
    server = HealthServer(working.is_set)
    address = f"127.0.0.1:{server.start('127.0.0.1:0')}"
    try:
        assert check(address) == "NOT_SERVING"
        working.set()
        until(lambda: check(address) == "SERVING", 10)
        working.clear()
        until(lambda: check(address) == "NOT_SERVING", 10)
    finally:
        server.stop()
    with pytest.raises(RunError, match="answers no question"):
        check(address, 0.5)


def test_who_watches_hears_of_a_change() -> None:
    working = threading.Event()
    server = HealthServer(working.is_set)
    with grpc.insecure_channel(f"127.0.0.1:{server.start('127.0.0.1:0')}") as channel:
        told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(told).status == health_pb2.HealthCheckResponse.NOT_SERVING
        working.set()
        assert next(told).status == health_pb2.HealthCheckResponse.SERVING
        server.stop()


def test_a_port_in_use_is_refused() -> None:
    first, second = HealthServer(lambda: True), HealthServer(lambda: True)
    port = first.start("127.0.0.1:0")
    try:
        with pytest.raises(RunError, match="cannot be listened on"):
            second.start(f"127.0.0.1:{port}")
    finally:
        first.stop()


@pytest.mark.parametrize(
    ("text", "address"),
    [("8446", "127.0.0.1:8446"), ("0", "127.0.0.1:0"), ("0.0.0.0:9", "0.0.0.0:9"), ("[::1]:8446", "[::1]:8446")],
)
def test_loopback_unless_a_host_is_named(text: str, address: str) -> None:
    assert health_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "70000", "127.0.0.1", "a b:3", "-1", "host:0x50"])
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="health port"):
        health_address(text)


def test_nobody_there() -> None:
    with pytest.raises(RunError, match="answers no question"):
        check(f"127.0.0.1:{free_port()}", 1.0)
