"""A local training that was interrupted goes on from its last whole epoch, and nothing shows it."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys.parts import CPU, local_parts
from toys.problems import gaussian_classes
from toys.resuming import EPOCHS, Dying, Forgetful, Training, same
from toys.tasks import Classifier, Rows, site

from medfl.errors import RunError
from medfl.learning.checkpoint import Checkpoint, EpochStore, FileEpochStore, order_key
from medfl.learning.disclosure import Disclosure
from medfl.learning.executor import SiteExecutor
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.learning.optimizers import AdamOptimizer, SgdOptimizer
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.plugins import PluginConfig
from medfl.privacy.grid import BOUND, CLIP
from medfl.privacy.ledger.memory import MemoryLedger
from medfl.privacy.mechanisms.base import Facts
from medfl.privacy.mechanisms.local import LocalNoise, LocalNoiseConfig
from medfl.privacy.mechanisms.patient import PatientNoise, PatientNoiseConfig
from medfl.update.memories.base import SiteState

Arrays = dict[str, npt.NDArray[Any]]
Forget = Callable[[Arrays], Arrays]
Result = tuple[TrainReply, SiteState]
KINDS = ["classification", "detection", "segmentation"]
(POINTS,) = gaussian_classes([30], 3, 6, 1.0)


class Dropped(Classifier):
    """A network that draws from torch's generator in every step."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.size, 8), nn.Dropout(0.5), nn.Linear(8, self.classes))


def toy(**local: Any) -> Training:
    settings = {"optimizer": SgdOptimizer(momentum=0.9), **local}
    return Training(Dropped(6, 3), Rows(POINTS.features, POINTS.targets), settings, rate=0.1)


def interrupted(training: Training, path: Path, saves: int) -> None:
    """Leave the file that a process leaves which dies right after so many saves."""
    with pytest.raises(SystemExit):
        training.run(Dying(path, saves))
    assert path.is_file()


def resumed(training: Training, path: Path, forget: Forget = dict) -> Result:
    """What a new process makes of a copy of the file; `forget` is what a faulty store would do to its content."""
    copied = path.with_name(f"{path.name}-copied")
    shutil.copyfile(path, copied)
    return training.run(Forgetful(copied, forget))


def plain(path: Path) -> FileEpochStore:
    return FileEpochStore(path, "run", min_seconds=0)


def without(prefix: str) -> Forget:
    return lambda arrays: {name: array for name, array in arrays.items() if not name.startswith(prefix)}


def with_another_generator(arrays: Arrays) -> Arrays:
    state = torch.Generator().manual_seed(99).get_state().numpy()
    return arrays | {"generator/cpu": state}


def without_teachers_moments(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.endswith("/teacher_optimizer")}


def with_fresh_teacher(arrays: Arrays) -> Arrays:
    return arrays | {"local": np.zeros_like(arrays["local"])}


def without_losses(arrays: Arrays) -> Arrays:
    return arrays | {"losses": np.zeros_like(arrays["losses"])}


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_goes_on_to_the_bit(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = Training.of(kind)
    expected = training.run()
    assert expected[0].epochs == EPOCHS
    for saves in (1, 2):
        interrupted(training, tmp_path / f"{saves}", saves)
        with caplog.at_level(logging.INFO, "medfl.learning.resume"):
            assert same(training.run(plain(tmp_path / f"{saves}")), expected)
        assert f"goes on after step {3 * saves}" in caplog.text


@pytest.mark.parametrize(
    ("kind", "forget"),
    [
        ("classification", without("optimizer/")),
        ("detection", without("optimizer/")),
        ("detection", with_another_generator),
        ("segmentation", without("optimizer/")),
        ("segmentation", without_teachers_moments),
        ("segmentation", with_fresh_teacher),
        ("segmentation", without_losses),
    ],
)
def test_a_store_that_loses_anything_is_found_out(kind: str, forget: Forget, tmp_path: Path) -> None:
    training = Training.of(kind)
    expected = training.run()
    interrupted(training, tmp_path / "epoch", 1)
    assert same(resumed(training, tmp_path / "epoch"), expected)
    assert not same(resumed(training, tmp_path / "epoch", forget), expected)


@pytest.mark.parametrize("optimizer", [SgdOptimizer(), SgdOptimizer(momentum=0.9), AdamOptimizer(weight_decay=0.1)])
def test_every_optimiser_and_dropout(optimizer: SgdOptimizer | AdamOptimizer, tmp_path: Path) -> None:
    training = toy(optimizer=optimizer)
    expected = training.run()
    for saves in (1, 2, 3):
        path = tmp_path / str(saves)
        interrupted(training, path, saves)
        assert same(resumed(training, path), expected)
        assert not same(resumed(training, path, with_another_generator), expected)


def test_a_training_may_be_interrupted_again_and_again(tmp_path: Path) -> None:
    training = toy()
    for _ in range(EPOCHS - 1):
        interrupted(training, tmp_path / "epoch", 1)
    done: list[tuple[int, int]] = []
    assert same(training.run(plain(tmp_path / "epoch"), step_done=lambda *counts: done.append(counts)), training.run())
    assert done[0] == (3 * 8 + 1, 4 * 8) and len(done) == 8


def test_the_sites_private_state_of_earlier_rounds_counts(tmp_path: Path) -> None:
    training = Training.of("segmentation")
    _, state = training.run()
    later = replace(training, state=state, round=3)
    interrupted(later, tmp_path / "epoch", 2)
    assert same(resumed(later, tmp_path / "epoch"), later.run())
    assert not same(later.run(), replace(training, round=3).run())


class Counting(EpochStore):
    """Remembers the steps of what it was given."""

    def __init__(self, min_seconds: float) -> None:
        super().__init__("run", min_seconds)
        self.steps: list[int] = []
        self.loads = 0

    def load(self, key: str) -> Checkpoint | None:
        self.loads += 1
        return None

    def save(self, key: str, checkpoint: Checkpoint) -> None:
        self.steps.append(checkpoint.step)

    def clear(self) -> None:
        raise AssertionError("only the caller knows when the reply is durable")


def test_every_epoch_but_the_last_is_saved() -> None:
    store = Counting(0)
    toy().run(store)
    assert store.steps == [8, 16, 24]
    for limit, steps in ((8, []), (9, [8]), (16, [8]), (17, [8, 16])):
        store = Counting(0)
        toy(max_steps=limit).run(store)
        assert store.steps == steps


def test_short_epochs_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Counting(5)
    toy().run(store)
    assert store.steps == [] and store.loads == 1
    clock = iter(np.arange(0, 100, 2.5))
    monkeypatch.setattr("medfl.learning.resume.time.monotonic", lambda: float(next(clock)))
    store = Counting(5)
    replace(toy(), epochs=7).run(store)
    # 0 at the start, then 2.5, 5 (saved; looks again at 7.5), 10, 12.5 (saved), ..
    assert store.steps == [16, 32, 48]


def test_without_a_store_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfl.learning.executor.Bookmark", None)
    monkeypatch.setattr("medfl.learning.executor.setup_digest", None)
    toy().run()


class Averaging(LocalRule):
    """Follows the mean gradient, a tensor, and counts the steps, in an array; both in `scratch`."""

    def direction(self, context: LocalContext) -> None:
        scratch, gradient = context.scratch, context.network.gradient
        mean = scratch.get("averaging.mean")
        scratch["averaging.mean"] = gradient.clone() if mean is None else mean * 0.9 + gradient * 0.1
        scratch["averaging.steps"] = scratch.get("averaging.steps", np.zeros(1)) + 1
        gradient.add_(scratch["averaging.mean"])

    def finish(self, context: LocalContext) -> None:
        context.state["steps"] = context.scratch["averaging.steps"]


class Moving(LocalRule):
    """Changes the site's private arrays while it trains: counts in one and drops another."""

    def begin(self, context: LocalContext) -> None:
        context.state["begun"] = context.state.get("begun", np.zeros(1)) + 1

    def direction(self, context: LocalContext) -> None:
        if "count" not in context.state:
            context.state.pop("old", None)
        context.state["count"] = context.state.get("count", np.zeros(1)) + 1


class Hiding(LocalRule):
    """Keeps what cannot be saved."""

    def begin(self, context: LocalContext) -> None:
        context.scratch["hiding.list"] = [1]


class Late(LocalRule):
    """Makes its optimiser only when it first needs it: nobody could put its moments back."""

    def direction(self, context: LocalContext) -> None:
        parameters = context.network.parameters
        context.scratch.setdefault("late.optimizer", torch.optim.SGD([parameters], lr=1e-3))


def rule(kind: type[LocalRule]) -> LocalRule:
    return kind(PluginConfig(kind=kind.__name__.lower()))


@pytest.mark.parametrize("folder", ["tensor/", "array/"])
def test_what_rules_keep_while_they_train_comes_back(folder: str, tmp_path: Path) -> None:
    training = toy(rules=[rule(Averaging)])
    expected = training.run()
    interrupted(training, tmp_path / "epoch", 2)
    assert same(resumed(training, tmp_path / "epoch"), expected)
    assert not same(resumed(training, tmp_path / "epoch", without(folder)), expected)


def test_a_private_state_that_changes_in_training_comes_back(tmp_path: Path) -> None:
    training = replace(toy(rules=[rule(Moving)]), state={"old": np.arange(3), "still": np.arange(4)})
    expected = training.run()
    assert set(expected[1]) == {"begun", "count", "still"} and expected[1]["begun"] == 1
    interrupted(training, tmp_path / "epoch", 2)
    found = resumed(training, tmp_path / "epoch")
    assert same(found, expected)
    assert all(array.flags.writeable for array in found[1].values())
    assert not same(resumed(training, tmp_path / "epoch", without("gone/")), expected)
    assert not same(resumed(training, tmp_path / "epoch", without("state/count")), expected)


@pytest.mark.parametrize(("kind", "name"), [(Hiding, "hiding.list"), (Late, "late.optimizer")])
def test_a_rule_that_hides_things_is_not_saved_and_says_so_once(
    kind: type[LocalRule], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Counting(0)
    training = toy(rules=[rule(kind)])
    assert same(training.run(store), training.run())
    assert store.steps == []
    assert caplog.text.count(name) == 1


def test_a_rules_own_optimiser_may_have_any_name(tmp_path: Path) -> None:
    class Two(LocalRule):
        def begin(self, context: LocalContext) -> None:
            for name in ("", "a/b", "a"):
                optimizer = torch.optim.SGD([context.network.parameters], lr=1e-2, momentum=0.5 + len(name) / 10)
                context.scratch[f"two/{name}"] = optimizer

        def direction(self, context: LocalContext) -> None:
            for name in ("", "a/b", "a"):
                context.scratch[f"two/{name}"].step()

    training = toy(rules=[rule(Two)])
    interrupted(training, tmp_path / "epoch", 2)
    assert same(training.run(plain(tmp_path / "epoch")), training.run())


def test_another_order_starts_anew(tmp_path: Path) -> None:
    training = toy()
    interrupted(training, tmp_path / "epoch", 2)
    for other in (replace(training, round=3), replace(training, rate=0.2), replace(training, epochs=3)):
        copied = shutil.copyfile(tmp_path / "epoch", tmp_path / "copied")
        assert same(other.run(plain(copied)), other.run())


@pytest.mark.parametrize("change", ["labels", "state", "optimiser", "rules", "clip"])
def test_a_changed_site_starts_anew_and_says_so(change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = toy()
    interrupted(training, tmp_path / "epoch", 2)
    targets = POINTS.targets[::-1].copy() if change == "labels" else POINTS.targets
    local = {
        "optimiser": {"optimizer": AdamOptimizer()},
        "rules": {"rules": [rule(Averaging)]},
        "clip": {"gradient_clip": 0.1},
    }
    state = {"kept": np.ones(3)} if change == "state" else {}
    other = replace(toy(**local.get(change, {})), samples=Rows(POINTS.features, targets), state=state)
    assert same(other.run(plain(tmp_path / "epoch")), other.run())
    assert "changed since the checkpoint" in caplog.text


def test_a_disk_that_is_full_costs_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    training = toy()
    assert same(training.run(plain(tmp_path / "file" / "epoch")), training.run())
    assert "cannot be written" in caplog.text and "epoch" in caplog.text


def order(**changes: Any) -> TrainOrder:
    return replace(TrainOrder("a", 2, {"local.epochs": 3.0, "x": 0.1}), **changes)


def test_the_key_names_the_order_and_nothing_else() -> None:
    model = np.arange(4, dtype=np.float32)
    key = order_key("run", order(), model, 7)
    assert key == order_key("run", order(values={"x": np.float64(0.1), "local.epochs": 3}), model.copy(), 7)
    assert key == order_key("run", order(ledger="head"), model, 7)
    others = [
        order_key("other", order(), model, 7),
        order_key("run", order(site="b"), model, 7),
        order_key("run", order(round=3), model, 7),
        order_key("run", order(values={"local.epochs": 3.0, "x": float(np.nextafter(0.1, 1))}), model, 7),
        order_key("run", order(values={"local.epochs": 3.0}), model, 7),
        order_key("run", order(), np.nextafter(model, np.float32(9)), 7),
        order_key("run", order(), model[:3], 7),
        order_key("run", order(), model, 8),
    ]
    assert len({key, *others}) == 9


KEPT = Checkpoint(
    5,
    "setup",
    {
        "a": np.arange(3, dtype=np.float32),
        "step": np.array(2.0, np.float32),
        "empty": np.zeros(0),
        "b": np.ones((2, 2)),
    },
)


def test_a_file_comes_back_whole_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "site" / "epoch"
    before = os.umask(0)
    try:
        plain(path).save("key", KEPT)
    finally:
        os.umask(before)
    found = plain(path).load("key")
    assert found is not None and (found.step, found.setup) == (5, "setup")
    assert {name: (array.shape, array.dtype, array.tolist()) for name, array in found.arrays.items()} == {
        name: (array.shape, array.dtype, array.tolist()) for name, array in KEPT.arrays.items()
    }
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["epoch"]


def test_clearing_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    store = plain(tmp_path / "epoch")
    store.clear()
    store.save("key", KEPT)
    (tmp_path / ".epoch.draft").write_bytes(b"half")
    store.clear()
    assert not list(tmp_path.iterdir()) and store.load("key") is None


def test_a_process_killed_while_saving_leaves_the_epoch_before(tmp_path: Path) -> None:
    training = toy()
    interrupted(training, tmp_path / "epoch", 1)
    draft = tmp_path / ".epoch.draft"
    draft.write_bytes((tmp_path / "epoch").read_bytes()[:100])
    draft.chmod(0o644)
    assert same(training.run(plain(tmp_path / "epoch")), training.run())
    assert not draft.exists() and (tmp_path / "epoch").stat().st_mode & 0o777 == 0o600


def test_an_epoch_that_cannot_be_saved_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = plain(tmp_path / "epoch")
    store.save("key", KEPT)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medfl.learning.checkpoint.os.fsync", full)
    store.save("key", replace(KEPT, step=6))
    assert "No space left" in caplog.text
    found = store.load("key")
    assert found is not None and found.step == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch"]


def test_another_key_finds_nothing(tmp_path: Path) -> None:
    store = plain(tmp_path / "epoch")
    store.save("key", KEPT)
    assert store.load("other") is None and store.load("key") is not None


@given(data=st.data())
def test_damage_of_any_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "epoch"
    plain(path).save("key", KEPT)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    path.write_bytes(content)
    assert plain(path).load("key") is None


@given(content=st.binary(max_size=400))
def test_any_bytes_count_as_none(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    from hashlib import sha256

    path = tmp_path_factory.mktemp("foreign") / "epoch"
    for tail in (b"", sha256(content).digest()):
        path.write_bytes(content + tail)
        assert plain(path).load("key") is None


@pytest.mark.parametrize("wrong", [{"format": 2}, {"step": 0}, {"step": "5"}, {"setup": None}, {"key": ["key"]}])
def test_a_whole_file_of_another_make_counts_as_none(
    wrong: Mapping[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from hashlib import sha256

    from medfl.update.wire import pack_arrays

    header = {"format": 1, "key": "key", "step": 5, "setup": "setup"}
    for fields in (header, header | wrong):
        content = b"".join(bytes(piece) for piece in pack_arrays(fields, dict(KEPT.arrays)))
        (tmp_path / "epoch").write_bytes(content + sha256(content).digest())
        assert (plain(tmp_path / "epoch").load("key") is None) == (fields is not header)
    assert json.dumps("is not used")[1:-1] in caplog.text


def disclosure(mechanism: PatientNoise | LocalNoise, size: int) -> Disclosure:
    plan = mechanism.plan(Facts({"a": 30, "b": 30, "c": 30}, size, 3))
    ledger = MemoryLedger("a")
    return Disclosure("a", "study", "run", mechanism, plan, ledger, ledger.register(["p"]))


@pytest.mark.parametrize("kind", ["patient", "local"])
def test_under_privacy_of_patients_nothing_is_kept(kind: str) -> None:
    class Untouched(Counting):
        def load(self, key: str) -> Checkpoint | None:
            raise AssertionError("noised steps must never be taken again")

        save = load  # type: ignore[assignment]

    settings: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-5, "accept_low_utility": True}
    private = (
        PatientNoise(PatientNoiseConfig(**settings)) if kind == "patient" else LocalNoise(LocalNoiseConfig(**settings))
    )
    task = Classifier(6, 3)
    executor = SiteExecutor(local_parts(task), CPU)
    made = disclosure(private, executor.network.layout.size)
    numbers = {"local.epochs": 1.0, "local.learning_rate": 0.1}
    numbers |= {CLIP: made.plan.clip, BOUND: 256.0} if kind == "patient" else {}
    reply = executor.train(
        site("a", Rows(POINTS.features, POINTS.targets)),
        TrainOrder("a", 1, numbers),
        executor.network.store(),
        {},
        disclosure=made,
        checkpoints=Untouched(0),
    )
    assert reply.payload is not None
    with pytest.raises(AssertionError):
        toy().run(Untouched(0))


def test_a_training_that_diverged_fails_alike_when_gone_on_with(tmp_path: Path) -> None:
    training = replace(toy(), rate=1e30)
    interrupted(training, tmp_path / "epoch", 2)
    for store in (None, plain(tmp_path / "epoch")):
        with pytest.raises(RunError, match=r"not finite from step \d"):
            training.run(store)
