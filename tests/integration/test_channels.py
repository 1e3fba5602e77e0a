"""Clear, masked and encrypted sums are the same bits, in one process or in a pool, also when a site drops out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import simulate
from medfl.errors import RunError, StudyError
from medfl.federation.summing import RoundSum
from medfl.learning.messages import TrainOrder
from medfl.privacy.ledger.file import FileLedger
from medfl.transport.host import SiteHost
from medfl.update.vector import FloatVector

CHANNELS = ("clear", "masks", "he")
SUM = ("update.clip=0.5", "stop.rounds=2", "evaluation.every=2")


def model(run: Path) -> Any:
    (vector,) = [np.concatenate([tensor.ravel() for tensor in load_file(run / "model" / "model.safetensors").values()])]
    return vector


def rounds(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def with_fault(tiny: Any, fault: str) -> None:
    (tiny.sites / "extra.yaml").write_text("name: extra")
    (tiny.sites / "east.yaml").write_text(f"{{name: east, fault: {fault}}}")


def test_every_channel_gives_the_same_model_bit_for_bit(tiny: Any, tmp_path: Path) -> None:
    for channel in CHANNELS:
        simulate(tiny.inputs(*SUM, f"update.channel={channel}"), tmp_path / channel, Observer(), workers=1)
    simulate(tiny.inputs(*SUM, "update.channel=masks"), tmp_path / "pool", Observer(), workers=2)
    clear = model(tmp_path / "clear")
    for other in ("masks", "he", "pool"):
        assert np.array_equal(clear, model(tmp_path / other))
    # the fake: sums of floats are another model
    simulate(tiny.inputs("stop.rounds=2"), tmp_path / "floats", Observer(), workers=1)
    assert not np.array_equal(clear, model(tmp_path / "floats"))


@pytest.mark.parametrize("submodel", ["{kind: low_rank, rank: 2, shared: true}", "{kind: seeded_mask, shared: true}"])
def test_parts_that_all_sites_share_are_summed_to_the_same_bits(tiny: Any, tmp_path: Path, submodel: str) -> None:
    partly = (*SUM, f"update.submodel={submodel}", "local.optimizer={kind: sgd}")
    for channel in CHANNELS:
        simulate(tiny.inputs(*partly, f"update.channel={channel}"), tmp_path / channel, Observer(), workers=1)
    clear = model(tmp_path / "clear")
    assert np.array_equal(clear, model(tmp_path / "masks"))
    assert np.array_equal(clear, model(tmp_path / "he"))
    # the fake: sums of floats are another model
    floats = (*partly, "update.clip=null")
    simulate(tiny.inputs(*floats), tmp_path / "floats", Observer(), workers=1)
    assert not np.array_equal(clear, model(tmp_path / "floats"))


def test_a_site_that_drops_out_changes_no_bit_of_the_others_sum(tiny: Any, tmp_path: Path) -> None:
    with_fault(tiny, "{kind: nan, from_round: 2}")
    for channel in CHANNELS:
        simulate(tiny.inputs(*SUM, f"update.channel={channel}"), tmp_path / channel, Observer(), workers=1)
        first, second = rounds(tmp_path / channel)
        assert not first["failed"] and "not finite" in second["failed"]["east"]
        assert second["moved"] and not second["void"]
    assert np.array_equal(model(tmp_path / "clear"), model(tmp_path / "masks"))
    assert np.array_equal(model(tmp_path / "clear"), model(tmp_path / "he"))


@pytest.mark.parametrize("down", ["update.codec_down=fp32", "update.codec_down=int8", "update.down=change"])
@pytest.mark.parametrize("channel", ["masks", "he"])
def test_a_site_with_another_model_than_the_others_is_in_no_sum(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: str, down: str
) -> None:
    """From models that are dead for the others, the sum would be the update of one site."""
    (tiny.sites / "extra.yaml").write_text("name: extra")
    study = tiny.inputs(*SUM, f"update.channel={channel}", down)
    simulate(study, tmp_path / "fair", Observer(), workers=1)
    assert all(record["moved"] and not record["failed"] for record in rounds(tmp_path / "fair"))
    real = SiteHost._received_for

    def told(self: SiteHost, order: TrainOrder, *rest: Any) -> FloatVector:
        return real(self, order, *rest) + np.float32(0.5 * (order.site == "west" and order.round == 2))

    monkeypatch.setattr(SiteHost, "_received_for", told)
    simulate(study, tmp_path / "unfair", Observer(), workers=1)
    first, second = rounds(tmp_path / "unfair")
    assert first["moved"] and not first["failed"]
    assert second["moved"] and list(second["failed"]) == ["west"]
    assert "another model than the sites agreed on" in second["failed"]["west"]
    # the fake: orders alone are compared
    for module in ("medfl.transport.door", "medfl.coordinator.rounds"):
        monkeypatch.setattr(f"{module}.vector_digest", lambda vector: "")
    simulate(study, tmp_path / "unseen", Observer(), workers=1)
    assert not any(record["failed"] for record in rounds(tmp_path / "unseen"))


@pytest.mark.parametrize("channel", ["masks", "he"])
def test_a_sum_of_two_is_never_opened(tiny: Any, tmp_path: Path, channel: str) -> None:
    (tiny.sites / "east.yaml").write_text("{name: east, fault: {kind: nan, from_round: 2}}")
    simulate(tiny.inputs(*SUM, f"update.channel={channel}"), tmp_path / "run", Observer(), workers=1)
    first, second = rounds(tmp_path / "run")
    assert first["moved"] and not second["moved"]
    assert "round 2" in second["void"]


@pytest.mark.parametrize("channel", ["masks", "he"])
def test_two_sites_are_refused_before_anything_runs(tiny: Any, tmp_path: Path, channel: str) -> None:
    (tiny.sites / "east.yaml").unlink()
    with pytest.raises(StudyError, match=f"{channel} hides nothing among 2 sites"):
        simulate(tiny.inputs(*SUM, f"update.channel={channel}"), tmp_path / "run", Observer(), workers=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channel", ["masks", "he"])
def test_cohorts_of_two_are_refused_before_anything_runs(tiny: Any, tmp_path: Path, channel: str) -> None:
    drawn = f"update.channel={channel}", "federation.schedule=uniform"
    with pytest.raises(StudyError, match=f"draws 2 of 3 sites a round, and {channel} opens no sum of fewer than 3"):
        simulate(tiny.inputs(*SUM, *drawn), tmp_path / "run", Observer(), workers=1)
    assert not (tmp_path / "run").exists()


def test_an_opened_sum_is_used_once_after_a_kill(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies between opening and commit goes on with the sum that it persisted."""
    from medfl.coordinator.journal import Journal

    private = ("privacy={kind: site, noise_multiplier: 1, delta: 1e-3, accept_low_utility: true}", "stop.rounds=2")
    commit, died = Journal.commit, []

    def dying(self: Journal, record: Any, *rest: Any) -> None:
        if record["round"] == 2 and not died:
            died.append(record)
            raise SystemExit(9)
        commit(self, record, *rest)

    monkeypatch.setattr(Journal, "commit", dying)
    inputs = tiny.inputs(*private, "local.rules=[sgd]")
    with pytest.raises(SystemExit):
        simulate(inputs, tmp_path / "run", Observer(), workers=1)
    kept = Journal.open(tmp_path / "run" / "journal.db")
    release = kept.release()
    kept.close()
    assert release is not None and release[0]["outcome"]["plan"]["round"] == 2
    summary = simulate(inputs, tmp_path / "run", Observer(), workers=1, resume=True)
    # two rounds, two charges: the second was neither drawn nor charged again
    assert summary["rounds_completed"] == 2 and summary["privacy"]["releases"] == 2
    first, second = rounds(tmp_path / "run")
    assert second["participants"] == first["participants"] and second["epsilon"] > first["epsilon"]


def test_a_charge_whose_sum_stayed_closed_is_not_noted_as_released(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> Any:
        raise RunError.at("round 1", "its sum stays closed")

    monkeypatch.setattr(RoundSum, "total", closed)
    private = "privacy={kind: site, noise_multiplier: 1, delta: 1e-3, accept_low_utility: true}"
    summary = simulate(
        tiny.inputs(private, "stop.rounds=1", "local.rules=[sgd]"), tmp_path / "run", Observer(), workers=1
    )
    ledger = FileLedger.read(tiny.folder / "ledgers" / "coordinator.ledger")
    assert summary["privacy"]["releases"] == 1 and not rounds(tmp_path / "run")[0]["moved"]
    assert len(ledger.charges()) == 1 and not list(ledger.releases(ledger.charges()[0].run))
