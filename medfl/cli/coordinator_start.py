"""`medfl coordinator start`: the service of the study lead."""

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.extras import needing
from medfl.cli.health import HealthPort, answering_health
from medfl.cli.logs import LogFormat, set_up_logs
from medfl.cli.output import Json, console, print_json
from medfl.cli.passphrase import PassphraseFile, asking
from medfl.cli.simulate import print_summary, write_reports

if TYPE_CHECKING:
    from medfl.coordinator.observer import Observer


def start(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.", show_default=False)],
    minimum: Annotated[
        int | None,
        typer.Option(min=1, help="Begin with this many sites; default: all that were invited.", show_default=False),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds after which the run begins without the others.", show_default=False),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve a read-only page; its address is printed.")
    ] = False,
    dashboard_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for any.")] = 0,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics", min=1, max=65535, help="Serve Prometheus metrics here.", show_default=False),
    ] = None,
    health: HealthPort = None,
    passphrase_file: PassphraseFile = None,
    log: LogFormat = "text",
    json: Json = False,
) -> None:
    """Listen for sites and run the study, or go on with it: after a crash the same command continues the same round.

    Example: medfl coordinator start coordinator --dashboard
    """
    from medfl.coordinator.observer import Observers
    from medfl.coordinator.settings import CoordinatorHome
    from medfl.coordinator.status import StatusFile

    with needing("grpc"):
        from medfl.coordinator.service import CoordinatorService

    set_up_logs(log)
    home = CoordinatorHome.open(folder)
    observers, pages = _observers(home, dashboard, dashboard_port, metrics_port)
    told, probe = StatusFile(home.folder / "status.json"), ExitStack()
    service = CoordinatorService(folder, Observers([*observers, told]), asking(passphrase_file))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        service.open()
        probe.enter_context(answering_health(health, lambda: True))
        told.start()
        text = f"coordinator {home.settings.name}: sites call at port {service.port}, enrol at {service.enrol_port}"
        if service.https_port:
            text += f", call by HTTPS at {service.https_port}"
        console.print(text, markup=False, highlight=False)
        summary = service.run(minimum, float("inf") if wait is None else wait)
    finally:
        probe.close()
        service.close()
        told.stop()
        for page in pages:
            page.stop()
    write_reports(home.run)
    if json:
        print_json({"run": str(home.run), **summary})
    else:
        print_summary(home.run, summary)


def _observers(home: Any, dashboard: bool, port: int, metrics: int | None) -> "tuple[list[Observer], list[Any]]":
    from medfl.cli.progress import make_progress
    from medfl.study.build import build_task

    primary = build_task(home.study()).primary
    observers: list[Observer] = [make_progress(console, primary)]
    pages: list[Any] = []
    if dashboard:
        from medfl.coordinator.journal import journal_in
        from medfl.report.dashboard.server import serve
        from medfl.report.dashboard.state import LiveState

        state = LiveState.from_run(home.run) if journal_in(home.run) else LiveState(home.study())
        page = serve(state, port=port)
        console.print(f"page: {page.url}", markup=False, highlight=False, soft_wrap=True)
        observers.append(state)
        pages.append(page)
    if metrics is not None:
        from medfl.report.metrics import MetricsObserver, serve_metrics

        watch = MetricsObserver(home.study())
        pages.append(serve_metrics(watch, metrics))
        observers.append(watch)
    return observers, pages
