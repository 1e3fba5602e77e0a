"""What a study is approved by: one hash over everything that it says."""

import hashlib
import json

from medfl.study.model import Study


def study_hash(study: Study) -> str:
    """SHA-256, in hex, of the canonical JSON of the whole validated study, defaults included.

    The same for every way to write the same study down, and for the study that a peer built from its JSON; another for
    any change of what would happen. A version of medfl that gives a study a new setting gives it a new hash.
    """
    text = json.dumps(study.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
