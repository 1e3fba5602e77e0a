import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys.watched import PRIVATE, infos, play, play_on, record_of, study_of

from medfl.coordinator.files import write_lines
from medfl.errors import InputError
from medfl.federation.outcome import Contribution, RoundPlan
from medfl.report.dashboard.drawing import SHAPES
from medfl.report.dashboard.state import KEPT_EVENTS, PARTS, LiveState
from medfl.report.dashboard.view import Pages
from medfl.report.dashboard.words import HIDDEN, STATES, TAKES_PART, plain
from medfl.report.run import read_run

IDENTIFIERS = ("4711", "scan.nii", "/data", "Miller^John", "1.2.840", "p_17", "MRN-0042")


def test_snapshot_says_how_the_run_stands(state):
    play_on(state)
    found = json.loads(json.dumps(state.snapshot(), allow_nan=False))
    run, sites = found["run"], found["sites"]
    assert (run["phase"], run["round"], run["done"], run["planned"], run["primary"]) == ("training", 7, 6, 12, "auroc")
    assert run["seconds_left"] == pytest.approx(6 * 44.8, rel=0.05)
    assert sites["aachen"]["progress"] == {"done": 14, "steps": 40} and sites["aachen"]["activity"] == "training"
    assert (sites["delft"]["state"], sites["delft"]["detail"]) == ("lost", "no heartbeat for 30 s")
    assert sites["cluj"]["last_loss"] == 0.4 and sites["aachen"]["last_loss"] == pytest.approx(0.8 / 6 + 0.1)
    assert sites["bergen"]["outcomes"] == {"admitted": 4, "refused": 2} and sites["bergen"]["skipped"] == 1
    assert sites["aachen"]["up_bytes"] == 6 * 1_350_000 and found["traffic"]["up_bytes"] == 6 * 5_400_000
    assert sites["evora"]["role"] == "unseen" and sites["evora"]["metrics"]["auroc"]["n"] == 40
    assert found["regulator"]["outcomes"] == {"admit": 20, "refuse": 2, "failed": 1, "down-weight": 1}
    assert [row["round"] for row in found["rounds"]] == [1, 2, 3, 4, 5, 6] and found["privacy"] is None
    assert found["events"][-1] | {"at": "", "number": 0} == {
        "number": 0, "at": "", "kind": "lost", "site": "delft", "text": "connection lost: no heartbeat for 30 s"
    }  # fmt: skip


def test_budget_and_what_was_spent_of_it():
    state = LiveState(study_of(**PRIVATE))
    assert state.snapshot()["privacy"]["epsilon"] == 0.0
    play(state, 3, private=True)
    privacy = state.snapshot()["privacy"]
    assert privacy == {
        "mechanism": "site",
        "unit": "site",
        "epsilon": pytest.approx(1.65),
        "delta": 1e-5,
        "budget": 4.0,
    }


def test_changes_are_only_what_changed(state):
    version, everything = state.changes(0)
    assert set(everything) == set(PARTS) and state.changes(version) == (version, {})
    state.local_progress("aachen", 1, 40)
    later, parts = state.changes(version)
    assert later > version and set(parts) == {"sites"}
    state.presence("aachen", "lost")
    assert set(state.changes(later)[1]) == {"sites", "events"}
    before = state.snapshot()
    state.local_progress("aachen", 2, 40)
    assert before["sites"]["aachen"]["progress"] is None, "a snapshot changed after it was taken"


def test_a_site_at_work_is_there_and_does_not_fill_the_log(state):
    """Sites over a network tell that they load, train and are ready again."""
    for name in state.snapshot()["sites"]:
        state.presence(name, "ready")
    tiles, events = Pages(state), len(state.snapshot()["events"])
    for step in ("training", "ready", "training"):
        state.presence("aachen", step, "" if step == "ready" else "round 7")
    found = state.snapshot()
    assert found["sites"]["aachen"]["state"] == "training" and len(found["events"]) == events
    tiles.update()
    there = "<b>{0} of {0}</b>".format(len(found["sites"]))
    assert there in tiles.since(0)["tiles"]
    state.presence("aachen", "ready", "round 7 failed")
    state.presence("aachen", "paused")
    tiles.update()
    assert len(state.snapshot()["events"]) == events + 2 and there not in tiles.since(0)["tiles"]


def test_every_state_is_drawn():
    assert STATES.keys() == SHAPES.keys() and STATES.keys() > TAKES_PART


def test_the_log_is_bounded_and_keeps_the_newest(state):
    for number in range(KEPT_EVENTS + 50):
        state.presence("aachen", "ready" if number % 2 else "lost", f"{number} seconds")
    version, _ = state.changes(0)
    state.presence("aachen", "paused")
    events = state.changes(version)[1]["events"]
    assert len(events) == KEPT_EVENTS and events[-1]["kind"] == "paused"
    numbers = [event["number"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + KEPT_EVENTS))


def test_the_end_and_breaking_off(state, make_run):
    state.close()
    assert state.snapshot()["run"]["phase"] == "broken off"
    summary = read_run(make_run()).summary
    state.ended(summary)
    state.close()
    run = state.snapshot()["run"]
    assert (run["phase"], run["stopped_by"], run["final"]["split"]) == ("ended", "rounds", "test")


def test_history_of_a_run_folder_then_goes_on(make_run):
    folder = make_run(rounds=8, ended=False)
    state = LiveState.from_run(folder)
    found = state.snapshot()
    assert (found["run"]["done"], found["run"]["phase"], found["run"]["planned"]) == (8, "starting", 12)
    assert found["traffic"]["up_bytes"] == sum(record["bytes"]["up_bytes"] for record in read_run(folder).rounds)
    assert any("refused by" in event["text"] for event in found["events"])
    assert set(found["sites"]) >= {"hospital-01", "hospital-04"} and found["sites"]["hospital-01"]["last_round"]
    state.opened(infos(), 12, 8)
    state.round_finished(record_of(9))
    assert [row["round"] for row in state.snapshot()["rounds"]] == list(range(1, 10))
    numbers = [event["number"] for event in state.snapshot()["events"]]
    assert numbers == sorted(set(numbers))
    with pytest.raises(InputError):
        LiveState.from_run(folder / "nothing")


def test_history_of_a_run_that_ended(make_run):
    run = LiveState.from_run(make_run()).snapshot()["run"]
    assert (run["phase"], run["stopped_by"], run["done"]) == ("ended", "rounds", 12)


def test_history_without_a_journal(make_run):
    folder = make_run(rounds=3)
    (folder / "journal.db").unlink()
    write_lines(folder / "rounds.jsonl", read_run(folder).rounds[:2])
    assert LiveState.from_run(folder).snapshot()["run"]["done"] == 2


def test_nothing_about_patients_is_kept():
    state = LiveState(study_of())
    reason = "site cluj, round 5: case 'Miller^John' p_17 MRN-0042: /data/4711/scan.nii.gz (1.2.840.7): is damaged"
    play(state, 5)
    state.presence("cluj", "lost", reason)
    state.round_started(RoundPlan(6, ("cluj",), {}, {}))
    state.answered("cluj", Contribution(failure=reason))
    state.round_finished(record_of(6, failed={"cluj": reason}, verdicts={}))
    text = json.dumps(state.snapshot(), ensure_ascii=False)
    assert not [one for one in IDENTIFIERS if one in text]
    assert f"site cluj, round 5: case {HIDDEN} is damaged" in text


@given(st.text(max_size=400))
def test_plain_words_have_no_marks_of_identifiers(text):
    said = plain(text).replace(HIDDEN, "")
    assert len(said) <= 300 and not any(mark in said for mark in '/\\_^@<>=&#|~\n\t\x00"')


def test_plain_keeps_what_helps():
    assert plain("CUDA out of memory. Tried to allocate 2.00 GiB") == "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert plain("no answer for 60 s") == "no answer for 60 s"
    assert plain("site north-1, round 3: patient 17 in a/b.dcm c.dcm is damaged", "north-1") == (
        "site north-1, round 3: patient […] in […] is damaged"
    )


class Restless(LiveState):
    """Lets another thread go on in the middle of each change."""

    @property
    def version(self):
        found = super().version
        time.sleep(0)
        return found


def test_hooks_from_many_threads():
    state = Restless(study_of())
    play(state, 2)
    begun, broken, together = state.version, [], threading.Barrier(3)

    def work(site: str) -> None:
        together.wait(10)
        for step in range(300):
            state.local_progress(site, step, 300)
            if step % 30 == 0:
                state.presence(site, "ready")

    def read() -> None:
        seen = 0
        while threads[0].is_alive():
            version, parts = state.changes(seen)
            if version < seen or (version > seen and not parts):
                broken.append((seen, version))
            seen = version
            json.dumps(parts)

    threads = [threading.Thread(target=work, args=(site,)) for site in ("aachen", "bergen", "cluj")]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in [*threads, *readers]:
        thread.start()
    for thread in [*threads, *readers]:
        thread.join(30)
    assert not broken and state.version == begun + 3 * 310
    assert all(state.snapshot()["sites"][site]["progress"]["done"] == 299 for site in ("aachen", "bergen", "cluj"))
