"""What a site's file names under `shared`: images to train on beside its own, for data plans that read them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medfl.data.base import Case, Datalist, lent
from medfl.data.copies import copies, place_of
from medfl.data.split import refuse_split_patients
from medfl.errors import DataError, Faults, StudyError
from medfl.study.fitting import require_classes, require_task
from medfl.study.model import SharedImages, Site, Study

_ORIGIN = "shared-"
_NAMED = 5
"""Images that a fault names."""


def reads_shared(study: Study) -> bool:
    """Whether a study trains on what sites' files name under `shared`."""
    return "reads-shared" in study.local.plan.traits()


def shared_cases(
    study: Study, site: Site, own: Sequence[Case], tested: Sequence[Case], prefix: str, stamps: Path
) -> tuple[Case, ...]:
    """The lent training cases of a site, in the order of its file.

    own: all cases of the site. tested: the validation and test cases of all sites that are known here. prefix: what
    stands before the identifiers of the site's own patients. stamps: where hashes of files are remembered.

    StudyError when the file names none, or they do not fit the study; DataError when one of them shows a patient who is
    in the site's validation or test images, when an image is tested on here or elsewhere or is a copy of one that is
    (`medfl.data.copies`), or is there twice.
    """
    if not site.shared:
        raise StudyError.at(
            f"site {site.name}",
            f"its file names nothing under `shared`, and the study's local.plan {study.local.plan.kind} trains on that",
            f"add `shared: [{{manifest: .., consent: ..}}]` to {site.name}.yaml, or use local.plan: shards",
        )
    found = [
        lent(replace(case, split="train", patient=f"{prefix}{case.patient or case.key}"), site.name, origin)
        for number, entry in enumerate(site.shared, 1)
        for origin in (f"{_ORIGIN}{number}",)
        for case in _for_training(study, site, entry)
    ]
    refuse_split_patients([*own, *found])
    _refuse_known_images(site, found, own, tested, stamps)
    return tuple(found)


def offered(study: Study, site: Site) -> tuple[int, ...]:
    """How many images each entry of a site's file lends to a study's training. StudyError or DataError when they cannot
    be read, or do not fit the study."""
    return tuple(len(_for_training(study, site, entry)) for entry in (site.shared if reads_shared(study) else ()))


def consents(site: Site | None, counts: Mapping[str, int]) -> dict[str, int]:
    """How many lent cases a site trains on, by the consent that its file states; copies that a simulation makes have
    none. counts: by origin."""
    told = Counter[str]()
    for origin, count in counts.items():
        entry = origin.removeprefix(_ORIGIN)
        stated = site is not None and origin.startswith(_ORIGIN) and entry.isdigit() and int(entry) <= len(site.shared)
        text = site.shared[int(entry) - 1].consent if stated and site is not None else f"a copy of {origin}'s"
        told[text] += count
    return dict(told)


def _for_training(study: Study, site: Site, entry: SharedImages) -> list[Case]:
    """The cases of a manifest that it holds neither for validation nor for test."""
    from medfl.data.importers import find_datalist

    datalist: Datalist = find_datalist(entry.manifest)
    require_task(study, datalist)
    require_classes(study, datalist)
    found = [case for case in datalist.cases if case.split in ("", "train")]
    if not found:
        raise DataError.at(
            f"the file of site {site.name}: shared",
            f"{entry.manifest} holds all of its {len(datalist.cases)} images for validation or test",
            "name a manifest with training images",
        )
    return found


def _refuse_known_images(
    site: Site, found: Sequence[Case], own: Sequence[Case], tested: Sequence[Case], stamps: Path
) -> None:
    faults, places = Faults(), [place_of(case) for case in found]
    held = {place_of(case) for case in tested}
    copied = [place_of(case) for case in copies(found, tested, stamps)]
    trained = Counter([*places, *(place_of(case) for case in own if case.split == "train")])
    wrong = {
        "are validation or test images of a site": [at for at in places if at in held],
        "are copies of validation or test images of a site": [at for at in copied if at not in held],
        "are there twice, or are the site's own": [at for at in dict.fromkeys(places) if trained[at] > 1],
    }
    for what, which in wrong.items():
        if which:
            named = ", ".join(str(image) for image, *_ in which[:_NAMED])
            more = "" if len(which) <= _NAMED else f" and {len(which) - _NAMED} more"
            faults.add(
                f"the file of site {site.name}: shared",
                f"{len(which)} images {what}: {named}{more}",
                "leave them out of the manifest",
            )
    faults.raise_if_any(DataError)
