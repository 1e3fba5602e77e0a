"""`medfl coordinator start`: the service of the study lead."""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfl.cli.extras import needing
from medfl.cli.health import HealthPort, answering_health
from medfl.cli.logs import LogFormat, logs
from medfl.cli.output import Json, console, print_json
from medfl.cli.passphrase import PassphraseFile, asking
from medfl.cli.simulate import print_summary, write_reports

if TYPE_CHECKING:
    from medfl.coordinator.observer import Observer
    from medfl.coordinator.service import CoordinatorService
    from medfl.coordinator.settings import CoordinatorHome


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

    Ctrl-C ends the run with the model as it is; SIGTERM, as systemd sends it, leaves it for the next start.

    Example: medfl coordinator start coordinator --dashboard
    """
    signal.signal(signal.SIGTERM, _stop)
    with logs(log) as say:
        with needing("grpc"):
            from medfl.coordinator.service import CoordinatorService
        from medfl.coordinator.settings import CoordinatorHome

        home = CoordinatorHome.open(folder)
        if over(home.run):
            say(f"the run in {home.run} has ended: its sites are waited for once more, to tell them; Ctrl-C leaves it")
        with ExitStack() as ends:
            observers = [_progress(home, log)]
            if dashboard:
                observers.append(_page(home, dashboard_port, log, say, ends))
            if metrics_port is not None:
                observers.append(_metrics(home, metrics_port, ends))
            make = partial(CoordinatorService, folder, ask=asking(passphrase_file))
            summary = _serve(make, observers, home.folder / "status.json", (minimum, wait), health, say)
        write_reports(home.run)
        if log == "json":
            # a service's tables would be lines of another form among those of its log
            say(f"the run is over, by {summary['stopped_by']}: {home.run}")
    if json:
        print_json({"run": str(home.run), **summary})
    elif log == "text":
        print_summary(home.run, summary)


def over(run: Path) -> bool:
    """Whether the run in a folder has ended, other than by its operator, after whom it can go on."""
    import json

    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # none yet, or cut off by a crash: the journal tells, and writes it again
        return False
    return summary.get("stopped_by") not in (None, "operator")


def _serve(
    make: "Callable[[Observer], CoordinatorService]",
    observers: "list[Observer]",
    path: Path,
    beginning: tuple[int | None, float | None],
    health: str | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Listen, and see the run to its end; the summary. path: of the status file; beginning: minimum of sites, and how
    long to wait for them."""
    from medfl.coordinator.observer import Observers
    from medfl.coordinator.status import StatusFile

    told = StatusFile(path)
    service = make(Observers([*observers, told]))
    minimum, wait = beginning
    try:
        service.open()
        told.start()
        text = f"coordinator {service.home.settings.name}: sites call at port {service.port}"
        text += f", by HTTPS at {service.https_port}" if service.https_port else ""
        say(f"{text}, enrol at {service.enrol_port}")
        with answering_health(health, lambda: True):
            return service.run(minimum, float("inf") if wait is None else wait)
    finally:
        service.close()
        told.stop()


def _stop(number: int, _: object) -> None:
    """Leave the run as it is, for the next start to go on with; Ctrl-C ends it."""
    raise SystemExit(128 + number)


def _progress(home: "CoordinatorHome", log: str) -> "Observer":
    from medfl.cli.progress import LogProgress, make_progress
    from medfl.study.build import build_task

    primary = build_task(home.study()).primary
    return LogProgress(console, primary) if log == "json" else make_progress(console, primary)


def _page(home: "CoordinatorHome", port: int, log: str, say: Callable[[str], None], ends: ExitStack) -> "Observer":
    """The page. Its address has a token, which logs that are collected must not have: it is then in DIR/page.url."""
    from medfl.audit.file import rewrite
    from medfl.coordinator.journal import journal_in
    from medfl.report.dashboard.server import serve
    from medfl.report.dashboard.state import LiveState

    state = LiveState.from_run(home.run) if journal_in(home.run) else LiveState(home.study())
    page = serve(state, port=port)
    ends.callback(page.stop)
    if log == "text":
        say(f"page: {page.url}")
    else:
        rewrite(home.folder / "page.url", f"{page.url}\n".encode())
        say(f"page: its address is in {home.folder / 'page.url'}")
    return state


def _metrics(home: "CoordinatorHome", port: int, ends: ExitStack) -> "Observer":
    from medfl.report.metrics import MetricsObserver, serve_metrics

    watch = MetricsObserver(home.study())
    ends.callback(serve_metrics(watch, port).stop)
    return watch
