"""The sample cache: preprocessing and augmentation are done once, then memory-mapped.

A pack (`medfl.data.pack`) is named by a SHA-256 over everything that decides its content: the bytes of the image and
mask files, labels, boxes, configuration, seed, the source of `medfl.data`, and the versions of the libraries that
decode and resample. A damaged pack, found when it is opened or when an array is first used, is rebuilt from
the files. Packs are built in a temporary folder and renamed, so processes may share a cache.

File hashes are remembered in `stamps/` beside size, inode, modification and change time: a file where these are
equal is not read again. The content hash is what counts; delete `stamps/` to have every file hashed anew.

The folder holds patient data and is readable by its owner only.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.data.augment.base import AugmentConfig, augment
from medfl.data.base import Case, SampleInfo, Skipped
from medfl.data.fingerprint import fingerprints
from medfl.data.pack import Pack, PackError, PackWriter
from medfl.data.preprocess import PreprocessConfig, preprocess
from medfl.errors import DataError

LIBRARIES = (
    "numpy",
    "scipy",
    "nibabel",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "Pillow",
    "opencv-python-headless",
    "albumentations",
    "monai",
)
ATTEMPTS = 5
ABANDONED = 24 * 3600
"""Seconds after which an unfinished pack is taken for the remains of a process that was killed."""

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`$MEDFL_CACHE`, else `medfl` in the user's cache folder."""
    if chosen := os.environ.get("MEDFL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medfl"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done to cases. augment: None leaves each case one sample. seed: of the augmentation."""

    task: str
    classes: tuple[str, ...]
    preprocess: PreprocessConfig
    augment: AugmentConfig | None = None
    seed: int = 0

    @property
    def factor(self) -> int:
        return 1 if self.augment is None else self.augment.factor

    def content(self) -> list[Any]:
        """What decides the samples, for the key."""
        augmented = None if self.augment is None else [self.augment.model_dump(mode="json"), self.seed]
        return [self.task, list(self.classes), self.preprocess.model_dump(mode="json"), augmented]


class CachedSamples:
    """The SampleSet of a pack, rebuilt when an array turns out to be damaged."""

    def __init__(self, cache: "SampleCache", cases: tuple[Case, ...], recipe: Recipe, key: str, pack: Pack) -> None:
        self._cache, self._recipe, self._key, self._pack = cache, recipe, key, pack
        self._source = cases

    @property
    def cases(self) -> int:
        return self._pack.cases

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Cases that could not be read, with the reason."""
        return self._pack.skipped

    @property
    def patients(self) -> frozenset[str]:
        """Patients of the readable cases; a case that names none counts as a patient."""
        return self._pack.patients

    @property
    def lost(self) -> int:
        """Boxes, or classes of masks, that preprocessing cut away."""
        return self._pack.lost

    def __len__(self) -> int:
        return len(self._pack.labels)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
        chosen = np.asarray(indices, np.int64)
        try:
            return self._pack.take(chosen)
        except PackError as error:
            log.warning("the sample cache is rebuilt: %s", error)
            self._pack = self._cache.rebuild(self._source, self._recipe, self._key)
            return self._pack.take(chosen)

    def info(self, index: int) -> SampleInfo:
        return self._pack.info(index)

    def labels(self) -> npt.NDArray[np.int64]:
        return self._pack.labels.copy()


class SampleCache:
    """Packs below one folder (`default_folder()` when None)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def load(self, cases: Sequence[Case], recipe: Recipe) -> CachedSamples:
        """The samples of `cases`, in their order, from the cache or made now.

        Cases that cannot be used are left out and listed in `skipped`. Raises DataError when the folder cannot be
        written.
        """
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = self._key(cases, recipe)
            return CachedSamples(self, tuple(cases), recipe, key, self._open_or_build(cases, recipe, key))

    def rebuild(self, cases: Sequence[Case], recipe: Recipe, key: str) -> Pack:
        """Replace the pack `key`; DataError when the files are no longer those it was made of."""
        with self._usable():
            if self._key(cases, recipe) != key:
                raise DataError.at(self.folder, "image files have changed during the run", "start the run again")
            return self._install(self._build(cases, recipe, key), key, replace=True)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "give a folder with room that you may write, in MEDFL_CACHE"
            raise DataError.at(self.folder, f"the sample cache cannot be used: {error}", remedy) from error

    def _key(self, cases: Sequence[Case], recipe: Recipe) -> str:
        masks = [case.label for case in cases if isinstance(case.label, Path)]
        content = fingerprints([*(case.image for case in cases), *masks], self.folder / "stamps")
        described = [
            [
                case.key,
                case.patient,
                content[case.image],
                case.array,
                case.index,
                content[case.label] if isinstance(case.label, Path) else case.label,
                case.boxes,
            ]
            for case in cases
        ]
        text = json.dumps([_engine(), recipe.content(), described])
        return hashlib.sha256(text.encode()).hexdigest()

    def _open_or_build(self, cases: Sequence[Case], recipe: Recipe, key: str) -> Pack:
        if (self._place(key)).exists():
            try:
                return Pack(self._place(key), key)
            except PackError as error:
                log.warning("the sample cache is rebuilt: %s", error)
        return self._install(self._build(cases, recipe, key), key)

    def _build(self, cases: Sequence[Case], recipe: Recipe, key: str) -> Path:
        """A new pack in a temporary folder."""
        self._sweep()
        folder = Path(tempfile.mkdtemp(prefix="building-", dir=self.folder))
        ragged = ("box", "label") if recipe.task == "detection" else ("box",)
        writer = PackWriter(folder, key, recipe.factor, ragged)
        try:
            for case in cases:
                _add(writer, case, recipe)
            writer.close()
        except BaseException:
            writer.abort()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def _install(self, built: Path, key: str, replace: bool = False) -> Pack:
        """Rename a built pack to its place, unless another process put a whole one there first."""
        place = self._place(key)
        place.parent.mkdir(exist_ok=True, mode=0o700)
        try:
            for _ in range(ATTEMPTS):
                try:
                    built.rename(place)
                    return Pack(place, key)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                try:
                    if not replace:
                        return Pack(place, key)
                except PackError as error:
                    log.warning("a damaged pack is replaced: %s", error)
                self._remove(place)
        finally:
            shutil.rmtree(built, ignore_errors=True)
        raise DataError.at(place, "other processes keep replacing it", "give each run a cache of its own")

    def _remove(self, place: Path) -> None:
        """Take a pack away in one step; processes that have it mapped keep their copy."""
        aside = Path(tempfile.mkdtemp(prefix="removed-", dir=self.folder))
        try:
            place.rename(aside / "pack")
        except FileNotFoundError:
            log.info("another process has removed %s already", place)
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        for pattern in ("building-*", "removed-*"):
            for folder in self.folder.glob(pattern):
                try:
                    age = time.time() - folder.stat().st_mtime
                except FileNotFoundError:
                    continue  # Another process has done with it.
                if age > ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)

    def _place(self, key: str) -> Path:
        return self.folder / "packs" / key


def _add(writer: PackWriter, case: Case, recipe: Recipe) -> None:
    """One case with its variants; a case that cannot be used is listed."""
    try:
        prepared = preprocess(case, recipe.preprocess, recipe.task, recipe.classes)
        samples = [prepared.sample]
        if recipe.augment is not None:
            samples = [
                augment(prepared.sample, recipe.augment, recipe.seed, case.key, turn) for turn in range(recipe.factor)
            ]
    except (DataError, OSError) as error:
        writer.skip(Skipped(case.key, str(error)))
        return
    writer.add(SampleInfo(case.key, case.patient or case.key, prepared.spacing), samples, prepared.lost)


@lru_cache(maxsize=1)
def _engine() -> list[str]:
    """Everything beside the data that decides pixel values: our source and the libraries' versions."""
    source = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        source.update(file.read_bytes())
    return [source.hexdigest(), *(f"{name} {_version(name)}" for name in LIBRARIES)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
