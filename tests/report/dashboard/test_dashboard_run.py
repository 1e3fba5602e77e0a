"""Real runs under watch: what the hooks said is what the run folder says afterwards."""

import pytest
from toys.runs import SITE, make_private

from medfl.coordinator.observer import Observers
from medfl.coordinator.runner import inputs_of, simulate
from medfl.report.dashboard.state import LiveState
from medfl.report.dashboard.view import Pages
from medfl.report.metrics import MetricsObserver

PARTS = ("rounds", "regulator", "traffic", "privacy")


@pytest.mark.parametrize("private", [False, True])
def test_a_run_its_folder_and_its_resumption_show_the_same(tiny, tmp_path, private):
    pytest.importorskip("prometheus_client")
    if private:
        make_private(tiny, SITE, "clear", 3)
    inputs, folder = tiny.inputs("stop.rounds=3"), tmp_path / "run"
    state, numbers = LiveState(inputs.study), MetricsObserver(inputs.study)
    simulate(inputs, folder, Observers([state, numbers]), workers=1)
    seen, found = state.snapshot(), LiveState.from_run(folder).snapshot()
    assert [row["round"] for row in seen["rounds"]] == [1, 2, 3]
    # the journal knows how long a round took but for the commit of that knowledge
    for snapshot in (seen, found):
        snapshot["rounds"] = [row | {"seconds": None} for row in snapshot["rounds"]]
    assert {part: seen[part] for part in PARTS} == {part: found[part] for part in PARTS}
    assert seen["run"]["phase"] == found["run"]["phase"] == "ended" and seen["run"]["final"] == found["run"]["final"]
    live = ("outcomes", "metrics", "up_bytes", "down_bytes", "last_round", "last_loss", "last")
    for site, about in seen["sites"].items():
        assert {key: about[key] for key in live} == {key: found["sites"][site][key] for key in live}
        assert about["state"] == "ready" and sum(about["cases"].values()) > 0
    assert (seen["privacy"] is not None) == private and bool(seen["privacy"] and seen["privacy"]["epsilon"]) == private
    assert numbers.registry.get_sample_value("medfl_rounds_completed") == 3
    up = numbers.registry.get_sample_value("medfl_bytes_total", {"direction": "up", "purpose": "training"})
    assert up == seen["traffic"]["up_bytes"] > 0
    pages = Pages(state)
    pages.update()
    assert "Ended after round 3 of 3" in pages.page()


def test_a_run_that_goes_on_shows_its_history(tiny, tmp_path):
    folder = tmp_path / "run"

    class Stop(LiveState):
        def round_finished(self, record):
            super().round_finished(record)
            if record["round"] == 2:
                raise RuntimeError("the process dies")

    dying = Stop(tiny.inputs().study)
    with pytest.raises(RuntimeError, match="dies"):
        simulate(tiny.inputs("stop.rounds=3"), folder, dying, workers=1)
    assert dying.snapshot()["run"]["phase"] == "broken off"
    whole = LiveState.from_run(folder)
    assert whole.snapshot()["run"]["done"] == 2
    simulate(inputs_of(folder), folder, whole, workers=1, resume=True)
    assert [row["round"] for row in whole.snapshot()["rounds"]] == [1, 2, 3]
