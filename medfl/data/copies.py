"""Which images are copies of others, byte for byte, wherever they lie and whatever they are called.

    image                      looked at first     then, where that is equal
    a file                     its size            SHA-256 of the file
    a folder (DICOM series)    size of its files   SHA-256 of the files and their names
    an entry of an npz         its shape           SHA-256 of the values

Near-duplicates are other images here: what was saved anew, in another format, with another header (a pseudonymised
DICOM file), cropped or rescaled.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from medfl.data.base import Case
from medfl.data.fingerprint import MISSING, fingerprints
from medfl.errors import DataError

Place = tuple[Path, str, int | None]


def place_of(case: Case) -> Place:
    """Where the image lies: the same for the same image, whatever the case is called."""
    return case.image.resolve(), case.array, case.index


def copies(cases: Sequence[Case], others: Sequence[Case], stamps: Path) -> list[Case]:
    """Those of `cases` whose image is one of the images of `others`, or a copy of one.

    stamps: folder in which hashes of files are remembered (`medfl.data.fingerprint`). A file that cannot be read is no
    copy: it is left out where images are loaded, with its reason. DataError when an archive is broken, or the folder
    cannot be written.
    """
    asked, known = {place_of(case) for case in cases}, {place_of(case) for case in others}
    sizes = {place: _size(place) for place in asked | known}
    alike = {sizes[place] for place in asked} & {sizes[place] for place in known} - {None}
    contents = _contents([place for place, size in sizes.items() if size in alike], stamps)
    held = {contents[place] for place in known if place in contents}
    return [case for case in cases if contents.get(place_of(case)) in held]


def _size(place: Place) -> tuple[int, ...] | tuple[str, int] | None:
    """What copies have in common, and costs no reading; None where there is nothing to read."""
    from medfl.data.readers.npz import array_shape

    path, array, index = place
    if index is not None:
        return array_shape(path, array)[1:]
    try:
        if path.is_dir():
            return "folder", sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return "file", path.stat().st_size
    except OSError:
        return None


def _contents(places: Sequence[Place], stamps: Path) -> dict[Place, str]:
    """What is at each of these places that can be read."""
    whole = [place for place in places if place[2] is None]
    try:
        digests = fingerprints((path for path, *_ in whole), stamps)
    except OSError as error:
        remedy = "give a folder with room that you may write, in MEDFL_CACHE"
        raise DataError.at(stamps, f"hashes of images cannot be kept: {error}", remedy) from error
    # one folder may hold several series: the name says which
    found = {place: f"{digests[place[0]]} {place[1]}" for place in whole if digests[place[0]] != MISSING}
    return found | _of_entries(place for place in places if place[2] is not None)


def _of_entries(places: Iterable[Place]) -> dict[Place, str]:
    from medfl.data.readers.npz import NpzReader

    reader, found = NpzReader(), {}
    # rising entries are read in one pass over the archive
    for path, array, index in sorted(places, key=lambda place: (place[0], place[1], place[2] or 0)):
        pixels = reader.read(path, index=index, array=array).array
        found[path, array, index] = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    return found
