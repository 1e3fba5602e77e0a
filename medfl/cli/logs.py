"""How services write their logs: to stderr, as text or as one JSON object a line. Never with a patient's identifier:
what names one stays in the site's own files, and so messages of foreign exceptions, which name files, are left out."""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Annotated

import typer

from medfl.cli.output import console
from medfl.errors import MedflError

_log = logging.getLogger("medfl.service")

LogFormat = Annotated[str, typer.Option("--log", help="text, or json for one object a line.", metavar="FORMAT")]

_Exception = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Discreet(logging.Formatter):
    def formatException(self, ei: _Exception) -> str:
        """Where it happened and what kind of exception it was; its words only where they are the system's."""
        kind, error, trace = ei
        if kind is None:
            return ""
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]
        words = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        return "\n".join([*places, f"{kind.__name__}{words}"])


class TextLines(_Discreet):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


class JsonLines(_Discreet):
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


@contextmanager
def logs(form: str) -> Iterator[Callable[[str], None]]:
    """Send medfl's logs to stderr within the block; BadParameter for an unknown form. Yields what notes for the
    operator are said with. With json, faults that end the service are lines of the log, too."""
    if form not in ("text", "json"):
        raise typer.BadParameter("is text or json", param_hint="--log")
    # gRPC's own library writes lines of another form; what they tell of is in medfl's
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    as_json, top = form == "json", logging.getLogger("medfl")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    top.addHandler(handler)
    top.setLevel(logging.INFO)
    try:
        yield _log.info if as_json else _print
    except MedflError as error:
        if not as_json:
            raise
        for fault in error.faults:
            _log.error(str(fault))
        raise typer.Exit(error.exit_code) from error
    finally:
        top.removeHandler(handler)


def _print(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
