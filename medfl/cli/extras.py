"""Libraries that are not always installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from medfl.errors import InputError


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Round an import: InputError with the command that installs what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "medfl":
            raise
        remedy = f"pip install 'medfl[{extra}]'"
        raise InputError.at("this installation", f"has no {error.name}", remedy) from error
