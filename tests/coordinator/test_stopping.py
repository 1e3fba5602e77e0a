from typing import Any

from medfl.coordinator.stopping import stopped_by
from medfl.study.model import StopSection, Target


def rounds(*values: float | None) -> list[dict[str, Any]]:
    return [{"metrics": None if v is None else {"global": {"auroc": {"value": v, "n": 9}}}} for v in values]


def test_goes_on_until_the_rounds_are_done() -> None:
    stop = StopSection(rounds=3)
    assert stopped_by(stop, "auroc", rounds()) is None
    assert stopped_by(stop, "auroc", rounds(0.5, 0.6)) is None
    assert stopped_by(stop, "auroc", rounds(0.5, 0.6, 0.7)) == "rounds"


def test_target_looks_at_the_newest_evaluation() -> None:
    stop = StopSection(rounds=9, target=Target(metric="auroc", value=0.8))
    assert stopped_by(stop, "auroc", rounds(0.5, 0.79)) is None
    assert stopped_by(stop, "auroc", rounds(0.5, 0.8)) == "target"
    assert stopped_by(stop, "auroc", rounds(0.9, 0.7)) is None


def test_patience_counts_evaluations_since_the_best_and_skips_rounds_without_one() -> None:
    stop = StopSection(rounds=9, patience=2)
    assert stopped_by(stop, "auroc", rounds(0.5, 0.7, 0.6)) is None
    assert stopped_by(stop, "auroc", rounds(0.5, 0.7, None, 0.6, None)) is None
    assert stopped_by(stop, "auroc", rounds(0.5, 0.7, None, 0.6, 0.7)) == "patience"
