"""What a site's agent keeps in HOME/work: how much of it there is, and what of finished or forgotten runs makes way.

Of a run that nothing was written of for long the answers, private arrays and checkpoints go. What stays is small: which
sums the site helped to open, which images it showed, and that something is gone, so that nobody goes on with the run as
if it were not.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EDQUOT
from pathlib import Path

from medfl.audit.log import AuditLog
from medfl.site.home import now, write_json
from medfl.study.model import Storage

ENDED = "ended"
"""File of a run's folder: the coordinator said that the run is over."""
PRUNED = "pruned.json"
"""File of a run's folder: what lay beside it is gone."""
GIB = 2**30

_PRUNABLE = re.compile(r"\.?(round-[0-9]{6,}|training)(\.draft)?")
_BLOCK = 512
_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes that HOME/work takes on the disk, and may take."""

    bytes: int
    limit: int

    def __str__(self) -> str:
        return f"{self.bytes / GIB:.2f} of {self.limit / GIB:g} GiB"


def use_of(work: Path, storage: Storage) -> Use:
    return Use(sum(_taken(path) for path in (work, *work.rglob("*"))), round(storage.quota_gib * GIB))


def require_room(use: Use, size: int) -> None:
    """OSError when a message of so many bytes has no room."""
    if use.bytes + size > use.limit:
        raise OSError(EDQUOT, f"{size} bytes more are too many, HOME/work takes {use}")


def prune(
    runs: Path, storage: Storage, audit: AuditLog, spare: str = "", clock: Callable[[], float] = time.time
) -> None:
    """Remove what is kept of runs that ended, or were touched last, longer ago than the site's file says. Each is noted
    in the audit log first. spare: a run that is not touched."""
    for folder in _folders(runs):
        files = [path for path in folder.iterdir() if _PRUNABLE.fullmatch(path.name)]
        ended = (folder / ENDED).exists()
        last = max((path.lstat().st_mtime for path in folder.iterdir()), default=0.0)
        days = storage.keep_ended_days if ended else storage.keep_days
        if not files or folder.name == spare or clock() - last <= days * _DAY:
            continue
        told = {"run": folder.name, "why": "ended" if ended else "unused", "days": days, "files": len(files)}
        audit.append("pruned", {**told, "bytes": sum(map(_taken, files))})
        write_json(folder / PRUNED, {"at": now(), "why": told["why"]})
        for path in files:
            path.unlink(missing_ok=True)


def _folders(runs: Path) -> Iterator[Path]:
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield path


def _taken(path: Path) -> int:
    try:
        return path.lstat().st_blocks * _BLOCK
    except FileNotFoundError:
        # gone since it was listed
        return 0
