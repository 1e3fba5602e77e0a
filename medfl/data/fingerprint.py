"""What a file contains, as a SHA-256 that is only computed anew when the file seems to have changed."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISDIR

SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change again within its clock's resolution: its hash is not remembered."""
MISSING = "missing"


def fingerprints(paths: Iterable[Path], stamps: Path) -> dict[Path, str]:
    """The SHA-256 of each file (or of a folder's files and their names); "missing" where it cannot be read.

    stamps: folder in which hashes are remembered beside size, modification and change time, one file for each
    collection of paths; a damaged one is ignored. Raises OSError when it cannot be written.
    """
    wanted = sorted({str(path) for path in paths})
    name = hashlib.sha256("\0".join(wanted).encode()).hexdigest()
    file = stamps / f"{name}.json"
    known, found, changed = _load(file), {}, False
    result: dict[Path, str] = {}
    for path in wanted:
        stamp, newest = _stamp(path)
        before, digest = known.get(path, ("", ""))
        if not stamp:
            digest = MISSING
        elif stamp != before:
            digest, changed = _digest(path), True
        if digest != MISSING and time.time_ns() - newest > SETTLED_NS:
            found[path] = (stamp, digest)
        result[Path(path)] = digest
    if changed and found:
        write_atomically(file, json.dumps(found).encode())
    return result


def write_atomically(file: Path, content: bytes) -> None:
    """Write beside and rename; readers see the old or the new file."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _load(file: Path) -> dict[str, tuple[str, str]]:
    try:
        stored = json.loads(file.read_bytes())
        return {str(path): (str(stamp), str(digest)) for path, (stamp, digest) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _stamp(path: str) -> tuple[str, int]:
    """Size and times of a file, or of all files of a folder; and the newest of the times in nanoseconds."""
    try:
        state = os.stat(path)  # noqa: PTH116 - thousands of files at every start
        newest = max(state.st_mtime_ns, state.st_ctime_ns)
        stamp = f"{state.st_size}:{state.st_mtime_ns}:{state.st_ctime_ns}:{state.st_ino}"
        if not S_ISDIR(state.st_mode):
            return stamp, newest
        parts = [(str(file), *_stamp(str(file))) for file in _files(path)]
    except OSError:
        return "", 0
    summary = hashlib.sha256(repr([(name, part) for name, part, _ in parts]).encode()).hexdigest()
    return summary, max([newest, *(time for _, _, time in parts)])


def _files(folder: str) -> list[Path]:
    return sorted(file for file in Path(folder).rglob("*") if file.is_file())


def _digest(path: str) -> str:
    try:
        if not Path(path).is_dir():
            return _file_digest(Path(path))
        parts = [(file.relative_to(path).as_posix(), _file_digest(file)) for file in _files(path)]
    except OSError:
        return MISSING
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
