"""`medfl health`, and the option `--health` of the services."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.cli.extras import needing
from medfl.cli.output import Json, print_json, result

if TYPE_CHECKING:
    from types import ModuleType

HealthPort = Annotated[
    str | None,
    typer.Option(
        "--health",
        metavar="[HOST:]PORT",
        help="Answer the gRPC health protocol here, on 127.0.0.1 unless a host is named.",
        show_default=False,
    ),
]


def health(
    address: Annotated[
        str, typer.Argument(metavar="[HOST:]PORT", help="Where the service answers.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Ask a service that was started with --health whether it does its work. Exit code 0: it does.

    A coordinator does while it listens, a site while it has a line to its coordinator.

    Example: medfl health 8446
    """
    module = _library()
    status = module.check(module.health_address(address))
    if json:
        print_json({"status": status})
    else:
        result().print(status, highlight=False)
    if status != "SERVING":
        raise typer.Exit(1)


@contextmanager
def answering_health(address: str | None, serving: Callable[[], bool]) -> Iterator[None]:
    """Answer at `[HOST:]PORT` within the block, if one is given. serving: whether the work is done now."""
    if address is None:
        yield
        return
    module = _library()
    server = module.HealthServer(serving)
    server.start(module.health_address(address))
    try:
        yield
    finally:
        server.stop()


def _library() -> "ModuleType":
    with needing("grpc"):
        from medfl.transport.grpc import health as module
    return module
