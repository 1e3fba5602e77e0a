"""`medfl health`, and the option `--health` of the services."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.extras import needing
from medfl.cli.output import Json, print_json, result
from medfl.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType


def health_address(text: str | None) -> str | None:
    """host:port of `[HOST:]PORT`, on the loopback interface unless a host is named; InputError when it is none."""
    from medfl.transport.invitation import join_address, split_address

    if text is None:
        return None
    try:
        host, port = ("127.0.0.1", int(text)) if text.isascii() and text.isdigit() else split_address(text)
    except ValueError as error:
        raise InputError.at(f"health port {text!r}", str(error), "give a port, or HOST:PORT") from error
    if port is None or port >= 2**16:
        raise InputError.at(f"health port {text!r}", "is not a port", "give a port, or HOST:PORT")
    return join_address(host, port)


HealthPort = Annotated[
    str | None,
    typer.Option(
        "--health",
        metavar="[HOST:]PORT",
        help="Answer the gRPC health protocol here, on 127.0.0.1 unless a host is named.",
        show_default=False,
        callback=health_address,
    ),
]


def health(
    address: Annotated[
        str,
        typer.Argument(
            metavar="[HOST:]PORT", help="Where the service answers.", show_default=False, callback=health_address
        ),
    ],
    json: Json = False,
) -> None:
    """Ask a service that was started with --health whether it does its work. Exit code 0: it does.

    A coordinator does while it listens, a site while it has a line to its coordinator.

    Example: medfl health 8446
    """
    status = _library().check(address)
    if json:
        print_json({"status": status})
    else:
        result().print(status, highlight=False)
    if status != "SERVING":
        raise typer.Exit(1)


@contextmanager
def answering_health(address: str | None, serving: Callable[[], bool]) -> Iterator[None]:
    """Answer at host:port within the block, if one is given. serving: whether the work is done now."""
    if address is None:
        yield
        return
    server = _library().HealthServer(serving)
    server.start(address)
    try:
        yield
    finally:
        server.stop()


def _library() -> "ModuleType":
    with needing("grpc"):
        from medfl.transport.grpc import health as module
    return module
