"""Whole runs with the union of the sites' supports: the same bits over every channel and after every death, and nothing
of who asked for what stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys.crashes import model_bytes, records
from toys.runs import crash

from medfl.coordinator.journal import Journal
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import inputs_of, simulate
from medfl.federation.open_round import OpenRound
from medfl.federation.round import Federation

UNION = ("update.submodel={kind: union, share: 0.05, limit: 0.2}", "update.memory=error_feedback")
SUMS = ("federation.regulator=[finite]", "update.clip=5", "stop.rounds=4", "evaluation.every=4")


def play(tiny: Any, run: Path, *overrides: str) -> Path:
    simulate(tiny.inputs(*UNION, *SUMS, *overrides), run, Observer(), workers=1)
    return run


def test_clear_masked_and_encrypted_sums_are_the_same_bits(tiny: Any, tmp_path: Path) -> None:
    made = {
        channel: play(tiny, tmp_path / channel, f"update.channel={channel}") for channel in ("clear", "masks", "he")
    }
    clear = model_bytes(made["clear"])
    assert clear == model_bytes(made["masks"]) == model_bytes(made["he"])
    assert all(record["moved"] and not record["failed"] for run in made.values() for record in records(run))
    assert not set(verdicts(made["masks"])) - {"admit"}
    # the fake: places that nobody asked for
    drawn = "update.submodel={kind: seeded_mask, share: 0.05, shared: true, trains: false}"
    assert model_bytes(play(tiny, tmp_path / "drawn", drawn)) != clear


def verdicts(run: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((run / "summary.json").read_text())["regulator"]["outcomes"]
    return found


@pytest.mark.parametrize("channel", ["clear", "masks"])
@pytest.mark.parametrize("after", [False, True])
def test_a_sum_that_was_opened_before_a_death_takes_what_was_asked_with_it(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: str, after: bool
) -> None:
    over = f"update.channel={channel}"
    whole = play(tiny, tmp_path / "whole", over)
    for number in (1, 3):
        with crash(Journal, "commit", number, after=after):
            play(tiny, tmp_path / str(number), over)
        simulate(inputs_of(tmp_path / str(number)), tmp_path / str(number), Observer(), workers=1, resume=True)
        assert model_bytes(whole) == model_bytes(tmp_path / str(number))
    if after:
        return
    # the fake: the sum is kept, and what the sites asked for is not
    real = Federation.hear
    monkeypatch.setattr(Federation, "hear", lambda self, plan, notices: real(self, plan, {}))
    with crash(Journal, "commit", 3):
        play(tiny, tmp_path / "deaf", over)
    simulate(inputs_of(tmp_path / "deaf"), tmp_path / "deaf", Observer(), workers=1, resume=True)
    assert model_bytes(whole) != model_bytes(tmp_path / "deaf")


def test_who_asked_for_what_does_not_outlive_the_round(tiny: Any, tmp_path: Path) -> None:
    with crash(Journal, "commit", 2):
        play(tiny, tmp_path / "run", "update.channel=masks")
    journal = Journal.open(tmp_path / "run" / "journal.db")
    kept = journal.release()
    journal.close()
    assert kept is not None and kept[0]["notices"].keys() == {"east", "south", "west"}
    simulate(inputs_of(tmp_path / "run"), tmp_path / "run", Observer(), workers=1, resume=True)
    journal = Journal.open(tmp_path / "run" / "journal.db")
    assert journal.release() is None
    assert [name for name in journal.arrays() if name.startswith("submodel.")] == ["submodel.union"]
    journal.close()
    told = kept[0]["notices"]["east"].encode()
    assert told not in (tmp_path / "run" / "rounds.jsonl").read_bytes()


def test_a_site_that_asks_for_what_it_may_not_is_refused_and_the_sum_goes_on(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under masks as well: a refused site's masks are taken out of the sum."""
    (tiny.sites / "extra.yaml").write_text("name: extra")
    real = OpenRound.receive

    def lying(self: OpenRound, reply: Any) -> Any:
        return real(self, replace(reply, notice=b"everything") if reply.site == "east" else reply)

    monkeypatch.setattr(OpenRound, "receive", lying)
    run = play(tiny, tmp_path / "run", "update.channel=masks")
    for record in records(run):
        assert "does not ask for" in record["verdicts"]["east"]["reason"] and record["moved"]
