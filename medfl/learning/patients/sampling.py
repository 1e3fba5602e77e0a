"""Who takes part in a step: each patient with probability q, independently, in secret (Poisson sampling).

Amplification by sampling holds only for this draw. Fixed-size batches from a shuffled list leak up to several times
the epsilon that Poisson accounting gives (arXiv 2411.10614), and a draw from the study's seed is known to everybody
who knows the seed. So the draw comes from the system's cryptographic generator. Empty draws happen, and still step.

Which views and images of a patient are used is no secret. It is decided by the step and the patient's own name alone,
so that adding or removing a patient changes nothing for the others.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfl.data.base import SampleSet
from medfl.errors import Faults, StudyError
from medfl.learning.patients.base import PatientBatch

Indices = npt.NDArray[np.int64]
Source = Callable[[int], bytes]
"""Random bytes, that many; `secrets.token_bytes` outside of tests."""

_BITS = 53
_SEED_MASK = 2**63 - 1


def poisson_draw(count: int, rate: float, source: Source = secrets.token_bytes) -> Indices:
    """The numbers of those of `count` patients that take part, each with probability floor(rate 2^53) / 2^53."""
    uniform = np.frombuffer(source(8 * count), dtype="<u8") >> np.uint64(64 - _BITS)
    return np.flatnonzero(uniform < np.uint64(int(rate * 2**_BITS))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Patient:
    """images: the sample indices of each image's views, the original first. number: 64 bits that only `key` decides."""

    key: str
    images: tuple[Indices, ...]
    number: int

    def choose(self, salt: int, views: int, images: int | None) -> Indices:
        """The patient's samples of a step: at most `views` of each of at most `images` images."""
        chosen: Sequence[Indices] = self.images
        if all(len(found) <= views for found in chosen) and (images is None or len(chosen) <= images):
            return np.concatenate(chosen)
        rng = np.random.default_rng((salt, self.number))
        if images is not None and len(chosen) > images:
            chosen = [chosen[place] for place in np.sort(rng.choice(len(chosen), images, replace=False))]
        return np.concatenate([np.sort(rng.choice(v, min(views, len(v)), replace=False)) for v in chosen])


@dataclass(frozen=True, slots=True)
class PatientIndex:
    """The patients of a sample set, sorted by key."""

    patients: tuple[Patient, ...]

    @classmethod
    def of(cls, samples: SampleSet, indices: Sequence[int] | Indices | None = None) -> "PatientIndex":
        """The patients of these samples (of all when None). Samples of one key are views of one image."""
        found: dict[str, dict[str, list[int]]] = {}
        for index in range(len(samples)) if indices is None else sorted({int(index) for index in indices}):
            info = samples.info(index)
            found.setdefault(info.patient, {}).setdefault(info.key, []).append(index)
        return cls(
            tuple(
                Patient(key, tuple(np.array(views, np.int64) for views in found[key].values()), _number(key))
                for key in sorted(found)
            )
        )

    def __len__(self) -> int:
        return len(self.patients)

    @property
    def keys(self) -> tuple[str, ...]:
        """Sorted patient keys, for the ledger's name of the data set."""
        return tuple(patient.key for patient in self.patients)


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Sampling:
    """rate: the probability q with which a patient takes part in a step.

    views: augmented views of an image whose gradients are averaged before the clip (augmentation multiplicity, De et
    al. 2022, arXiv 2204.13650). images: a patient's images in a step at most, which bounds memory; None for all.
    StudyError with all faults.
    """

    rate: float
    views: int = 1
    images: int | None = None

    def __post_init__(self) -> None:
        faults = Faults()
        if not 0 < self.rate <= 1:
            faults.add("privacy.sampling_rate", f"is {self.rate}", "give a probability above 0 and up to 1")
        if self.views < 1:
            faults.add("privacy.views", f"is {self.views}", "give 1 or more")
        if self.images is not None and self.images < 1:
            faults.add("privacy.images", f"is {self.images}", "give 1 or more, or leave it out for all images")
        faults.raise_if_any(StudyError)


class PatientSampler:
    """Draws the patients of one step after another from a site's training samples."""

    def __init__(
        self, samples: SampleSet, index: PatientIndex, sampling: Sampling, source: Source = secrets.token_bytes
    ) -> None:
        self._samples = samples
        self.index = index
        self.sampling = sampling
        self._source = source

    def draw(self, rng: np.random.Generator) -> Iterator[PatientBatch]:
        """The batches of one step's patients, each read when it is asked for; possibly none at all.

        rng: decides views, images and the seed of each patient's loss, not who takes part. One number is taken from it
        a step, however many patients there are.
        """
        salt = int(rng.integers(2**63))
        drawn = poisson_draw(len(self.index), self.sampling.rate, self._source)
        return self._batches([self.index.patients[number] for number in drawn], salt)

    def examples(self, count: int = 3) -> list[PatientBatch]:
        """The first patients' batches, to try engines on (`medfl.learning.patients.choice.choose`)."""
        return list(self._batches(self.index.patients[:count], 0))

    def _batches(self, patients: Sequence[Patient], salt: int) -> Iterator[PatientBatch]:
        for patient in patients:
            chosen = patient.choose(salt, self.sampling.views, self.sampling.images)
            yield PatientBatch(self._samples.batch(chosen), (salt ^ patient.number) & _SEED_MASK)
