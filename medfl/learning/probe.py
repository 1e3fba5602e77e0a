"""Which training images a schedule's probe is about: so many that no number of probes tells a single image's loss."""

import numpy as np

from medfl.data.base import SampleSet, origin_of


def probed(samples: SampleSet, least: int | None, dealt: np.random.Generator, drawn: np.random.Generator) -> list[int]:
    """Samples of the site's own images, rising. Images that are lent to it are others': their loss is not the site's.

    The images, one sample of each, are dealt out into groups of `least` or more, or into one where there are no more;
    a probe is of a whole group, so that no difference of two probes is of fewer images. None: all samples. dealt: the
    same in each probe of a run. drawn: which group it is.
    """
    own: dict[str, list[int]] = {}
    for index in range(len(samples)):
        key = samples.info(index).key
        if not origin_of(key):
            own.setdefault(key, []).append(index)
    if least is None:
        return [index for variants in own.values() for index in variants]
    images = dealt.permutation([variants[dealt.integers(len(variants))] for variants in own.values()])
    groups = max(1, len(images) // least)
    chosen: list[int] = np.sort(np.array_split(images, groups)[drawn.integers(groups)]).tolist()
    return chosen
