"""Images that a site cannot use: their names stay at the site, in HOME/work/skipped.json, readable by its owner only.

Words of decoders and paths of files can name patients, so no text about a single image leaves: the coordinator is told
how many there are, and for each one of a few fixed reasons.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfl.data.reasons import outward
from medfl.errors import Fault, InputError, RunError, StudyError
from medfl.site.home import now, write_json


def outward_all(skipped: Mapping[str, str]) -> dict[str, str]:
    """What is told of skipped cases: numbers in place of their keys."""
    return {f"case {number}": outward(reason) for number, reason in enumerate(skipped.values(), 1)}


def in_words(skipped: Mapping[str, str]) -> str:
    """Counts by reason, for a log: "2: the file is damaged; 1: .."."""
    return "; ".join(f"{count}: {told}" for told, count in Counter(map(outward, skipped.values())).most_common())


def keep(work: Path, skipped: Mapping[str, str], problem: InputError | None = None) -> None:
    """Write down what could not be used, for the data steward."""
    faults = [] if problem is None else [str(fault) for fault in problem.faults]
    write_json(path_in(work), {"at": now(), "cases": dict(skipped), "faults": faults})


def read(work: Path) -> Mapping[str, Any] | None:
    """What was written down last: "at", "cases" (reason by key) and "faults"; None when nothing was. RunError when the
    file is damaged."""
    path = path_in(work)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"at": str(found["at"]), "cases": dict(found["cases"]), "faults": list(found["faults"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError.at(path, f"cannot be read: {error}", "start the agent again") from error


def discreet(site: str, problem: InputError) -> InputError:
    """The error as the coordinator may have it: what is about the study or the whole site as it is, faults of images as
    a number."""
    if isinstance(problem, StudyError):
        return problem
    whole = [fault for fault in problem.faults if fault.where == f"site {site}"]
    count = len(problem.faults) - len(whole)
    if not count:
        return problem
    what = f"its images cannot be used: {count} fault{'s' if count != 1 else ''}"
    return InputError(*whole, Fault(f"site {site}", what, "its data steward finds them with medfl site status"))


def path_in(work: Path) -> Path:
    """The file in a home's folder `work`."""
    return work / "skipped.json"
