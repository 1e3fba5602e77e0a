"""Runs every variant with every seed: what is finished is not run again, what was interrupted goes on."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfl.coordinator.files import write_text
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.errors import MedflError
from medfl.report.compare.variants import Plan
from medfl.report.run import read_json
from medfl.transport.engines import Engine

Watch = Callable[[Plan, int, int], Observer]
"""Who watches a run. Takes the run, its number from 1, and how many there are."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run: the summary, or why there is none."""

    plan: Plan
    summary: Mapping[str, Any] | None = None
    reason: str = ""


class Interrupted(Exception):
    """Somebody pressed Ctrl-C: the run can be resumed, and no other begins."""


def run_all(plans: Sequence[Plan], watch: Watch, engine: Engine) -> Iterator[Outcome]:
    """Run what is not done, one after another. A run that fails is an outcome with its reason; Interrupted when the
    operator stopped one."""
    for number, one in enumerate(plans, 1):
        if one.state == "done":
            yield Outcome(one, read_json(one.folder / "summary.json"))
            continue
        outcome = _run(one, watch(one, number, len(plans)), engine)
        if outcome.summary is not None and outcome.summary["stopped_by"] == "operator":
            raise Interrupted
        yield outcome


def _run(one: Plan, observer: Observer, engine: Engine) -> Outcome:
    story = one.folder.with_name(f"{one.folder.name}.error.txt")
    story.unlink(missing_ok=True)
    try:
        begun = one.state == "begun"
        summary = simulate(one.inputs, one.folder, observer, resume=begun, engine=engine)
        return Outcome(one, summary)
    except KeyboardInterrupt as stop:
        raise Interrupted from stop
    except MedflError as error:
        return Outcome(one, None, str(error))
    except Exception as error:
        # what one variant does wrong must not cost the others' results; its whole story lies beside its folder
        write_text(story, traceback.format_exc())
        return Outcome(one, None, f"{type(error).__name__}: {error} (see {story})")
