"""How services write their logs: to stderr, as text or as one JSON object a line. Never with a patient's identifier:
what names one stays in the site's own check reports."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

LogFormat = Annotated[str, typer.Option("--log", help="text, or json for one object a line.", metavar="FORMAT")]


class JsonLines(logging.Formatter):
    """{"at", "level", "logger", "message"} and, for an error, "exception"."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logs(form: str) -> None:
    """Send medfl's logs to stderr; BadParameter for an unknown form."""
    if form not in ("text", "json"):
        raise typer.BadParameter("is text or json", param_hint="--log")
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    logging.getLogger("medfl").addHandler(handler)
    logging.getLogger("medfl").setLevel(logging.INFO)
