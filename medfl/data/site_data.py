"""Everything one site brings to a study: its splits as cached samples, and what had to be left out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medfl.data.augment.base import AugmentConfig
from medfl.data.base import SPLITS, Case, SiteData, origin_of
from medfl.data.cache import CachedSamples, Recipe, SampleCache
from medfl.data.preprocess import PreprocessConfig
from medfl.errors import DataError


def load_site(
    site: str,
    cases: Sequence[Case],
    *,
    task: str,
    classes: Sequence[str],
    preprocess: PreprocessConfig,
    augment: AugmentConfig | None,
    seed: int,
    cache_dir: Path,
    minimum_cases: int = 1,
) -> SiteData:
    """The data of one site, read or taken from the cache in `cache_dir`.

    cases: the datalist's; those of other sites are ignored. Only the train split is augmented. `splits` holds the
    splits with at least one readable case. minimum_cases: readable training cases of its own that the site needs; 0
    for a site that is only evaluated. facts: "read", "skipped", "patients", "lost" (boxes, or classes of masks, that
    preprocessing cut away), and for each split "train", "train patients" and so on, lent cases among them.

    Raises DataError when cases have no split or too few training cases are readable; it lists every skipped case.
    """
    own = [case for case in cases if case.site == site]
    unsplit = sum(case.split not in SPLITS for case in own)
    if unsplit:
        raise DataError.at(site, f"{unsplit} of {len(own)} cases are in no split", "run `medfl data split` first")
    cache = SampleCache(cache_dir)
    loaded: dict[str, CachedSamples] = {}
    for split in SPLITS:
        members = [case for case in own if case.split == split]
        if members:
            recipe = Recipe(task, tuple(classes), preprocess, augment if split == "train" else None, seed)
            loaded[split] = cache.load(members, recipe)
    skipped = tuple(entry for samples in loaded.values() for entry in samples.skipped)
    lent = Counter(origin_of(case.key) for case in own if case.split == "train")
    lent.subtract(origin_of(entry.key) for entry in (loaded["train"].skipped if "train" in loaded else ()))
    del lent[""]
    train = loaded["train"].cases - lent.total() if "train" in loaded else 0
    if train < minimum_cases:
        reasons = "".join(f"; {entry.key}: {entry.reason}" for entry in skipped)
        what = f"{train} training cases can be used, {minimum_cases} are needed{reasons}"
        raise DataError.at(site, what, "add or repair cases, or leave the site out")
    facts = {
        "read": sum(samples.cases for samples in loaded.values()),
        "skipped": len(skipped),
        "patients": len(frozenset().union(*(samples.patients for samples in loaded.values()))),
        "lost": sum(samples.lost for samples in loaded.values()),
    }
    for split, samples in loaded.items():
        facts |= {split: samples.cases, f"{split} patients": len(samples.patients)}
    splits = {split: samples for split, samples in loaded.items() if samples.cases}
    return SiteData(site, splits, skipped, facts, {origin: count for origin, count in lent.items() if count})
