"""Where commands take passphrases from: a file or a prompt, never the command line or the environment."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfl.errors import InputError

if TYPE_CHECKING:
    from medfl.keys import Ask

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="MEDFL_PASSPHRASE_FILE",
        help="The passphrase of the private keys is this file's first line; else it is asked for.",
        show_default=False,
    ),
]
Protect = Annotated[
    bool,
    typer.Option("--protect", help="Protect new private keys with a passphrase; so does --passphrase-file."),
]


def asking(file: Path | None, new: bool = False) -> "Ask":
    """Gives the passphrase, asked for once at most, and twice over when it is a new one."""
    kept: list[bytes] = []

    def ask(key: Path) -> bytes:
        if not kept:
            kept.append(_given(file) if file is not None else _prompted(key, new))
        return kept[0]

    return ask


def _given(file: Path) -> bytes:
    from medfl.keys import read_passphrase

    return read_passphrase(file)


def _prompted(key: Path, new: bool) -> bytes:
    if not sys.stdin.isatty():
        remedy = "give --passphrase-file, or set MEDFL_PASSPHRASE_FILE"
        raise InputError.at(key, "needs a passphrase, and there is nobody to ask", remedy)
    text = typer.prompt(f"Passphrase of {key}", hide_input=True, confirmation_prompt=new, err=True)
    return str(text).encode()
