"""The ServerApp: medfl's coordinator, over the lines of a `Dispatcher`.

Setting of the run (`flwr run -c`): coordinator="FOLDER", as `medfl coordinator init` made it on this machine. A run
that was cut off goes on where it was when it is started again.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medfl.coordinator.observer import Observer
from medfl.coordinator.service import CoordinatorService
from medfl.errors import InputError
from medfl.integrations.flower.dispatch import Dispatcher
from medfl.integrations.flower.grid import GridCourier
from medfl.integrations.flower.tunnel import context as tunnel_context
from medfl.keys import Ask, read_passphrase

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    folder = context.run_config.get("coordinator")
    if not isinstance(folder, str) or not folder:
        raise InputError.at("run config", "names no coordinator", """give flwr run -c 'coordinator="FOLDER"'""")
    logging.basicConfig(level=logging.INFO)
    run(grid, Path(folder))


def run(grid: Grid, folder: Path, observer: Observer | None = None) -> dict[str, Any]:
    """Run the folder's study over a grid, or go on with it; the summary."""
    ask = _asking()
    service = CoordinatorService(folder, observer or LogObserver(), ask)
    home = service.home
    key, certificate = home.server_credentials(home.authority(ask), ask)
    settings = tunnel_context(True, home.ca_certificate.read_bytes(), key, certificate)
    dispatcher = Dispatcher(service.post, service.register, service.note, GridCourier(grid), settings)
    try:
        # also sites that call by gRPC may take part, and new ones enrol
        service.open()
        dispatcher.start()
        summary = service.run()
    finally:
        # a no-op after a run that ended; else sites learn that this process stops
        service.post.close("the coordinator stops", over=False)
        dispatcher.finish()
        service.close()
    _write_reports(home.run)
    return summary


def _asking() -> Ask | None:
    named = os.environ.get("MEDFL_PASSPHRASE_FILE")
    return None if not named else lambda _: read_passphrase(Path(named))


def _write_reports(folder: Path) -> None:
    from medfl.report.card import write_model_card
    from medfl.report.page import write_report

    write_model_card(folder)
    write_report(folder)


class LogObserver(Observer):
    """The run in Flower's log."""

    def presence(self, site: str, state: str, detail: str = "") -> None:
        log.info("site %s: %s%s", site, state, f" ({detail})" if detail else "")

    def round_finished(self, record: Mapping[str, Any]) -> None:
        log.info("round %d is done", record["round"])

    def ended(self, summary: Mapping[str, Any]) -> None:
        log.info("the run ended after %d rounds: %s", summary["rounds_completed"], summary["stopped_by"])
