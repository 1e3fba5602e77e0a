"""What kind of folder somebody gave, so that an error can name the command that is for it. By names of files alone."""

from pathlib import Path

from medfl.errors import InputError

COORDINATOR = "a coordinator's folder"
SITE = "a site's home"
PEER = "the home of a key holder or an auditor"
RUN = "a run folder"

_SIGNS = {
    COORDINATOR: ("coordinator.yaml",),
    SITE: ("site.yaml",),
    PEER: ("connection.json",),
    RUN: ("journal.db", "journal.url", "summary.json"),
}
_COMMANDS = {
    COORDINATOR: "medfl coordinator start, status or audit {0}, and medfl report {0} are for it",
    SITE: "medfl site start, status or audit --home {0} are for it",
    PEER: "medfl keyholder start --home {0}, or medfl auditor evidence --home {0} is for it",
    RUN: "medfl report, evaluate or predict are for it",
}


def kind_of(folder: Path) -> str | None:
    """Which of the kinds above; None for none of them."""
    return next((kind for kind, names in _SIGNS.items() if any((folder / name).is_file() for name in names)), None)


def refuse_other(folder: Path, *wanted: str) -> None:
    """InputError when the folder is of a known kind, and of none of those."""
    found = kind_of(folder)
    if found is not None and found not in wanted:
        raise InputError.at(folder, f"is {found}, not {wanted[0]}", _COMMANDS[found].format(folder))


def require(folder: Path, wanted: str, remedy: str) -> None:
    """InputError unless the folder is of this kind. remedy: where it is of no kind at all."""
    refuse_other(folder, wanted)
    if kind_of(folder) is None:
        why = f"has no {_SIGNS[wanted][0]}" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise InputError.at(folder, f"is not {wanted}: it {why}", remedy)


def run_in(folder: Path) -> Path:
    """The run folder that is meant: that of a coordinator, or else the folder itself, whatever it holds. InputError for
    a coordinator that has not run, and for the home of a peer, which holds no run."""
    found = kind_of(folder)
    if found == COORDINATOR:
        run = folder / "run"
        if kind_of(run) != RUN:
            raise InputError.at(folder, f"is {COORDINATOR} that has not run yet", f"medfl coordinator start {folder}")
        return run
    if found in (SITE, PEER):
        remedy = f"the coordinator has the run; {_COMMANDS[found].format(folder)}"
        raise InputError.at(folder, f"is {found}, and holds no run", remedy)
    return folder
