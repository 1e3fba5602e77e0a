"""Hyper-parameters that move: their values, their bounds, and exact continuation."""

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from medfl.hyperparameters.adacomm import AdaComm, AdaCommConfig
from medfl.hyperparameters.adaptive_mu import AdaptiveMu, AdaptiveMuConfig
from medfl.hyperparameters.base import (
    HYPERPARAMETERS,
    Hyperparameter,
    HyperparameterConfig,
    Progress,
    at_least,
    found_in,
)
from medfl.hyperparameters.constant import ConstantConfig
from medfl.hyperparameters.cosine import Cosine, CosineConfig
from medfl.hyperparameters.loss_driven import LossDriven, LossDrivenConfig
from medfl.learning.rules.fedprox import FedProxConfig

LOSSES = st.lists(st.one_of(st.floats(1e-3, 1e3), st.sampled_from([math.nan, math.inf, 0.0])), max_size=40)
CONFIGS: list[HyperparameterConfig] = [
    ConstantConfig(value=3),
    AdaCommConfig(start=16, block=2, minimum=2),
    LossDrivenConfig(start=9, patience=2),
    CosineConfig(start=0.1, end=0.01, rounds=12, warmup=3),
    AdaptiveMuConfig(start=0.2, patience=2),
]


def run(moving: Hyperparameter, losses: list[float], first: int = 1) -> list[float]:
    """The values after each of these rounds."""
    values = []
    for round_, loss in enumerate(losses, first):
        moving.update(Progress(round_, loss))
        values.append(moving.value())
    return values


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
@given(losses=LOSSES, cut=st.integers(0, 40))
def test_state_and_restore_continue_exactly(config: HyperparameterConfig, losses: list[float], cut: int) -> None:
    whole: Hyperparameter = HYPERPARAMETERS.build(config)
    first: Hyperparameter = HYPERPARAMETERS.build(config)
    second: Hyperparameter = HYPERPARAMETERS.build(config)
    cut = min(cut, len(losses))
    expected = run(whole, losses)
    before = run(first, losses[:cut])
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert second.value() == first.value()
    assert before + run(second, losses[cut:], cut + 1) == expected
    assert second.state() == whole.state()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
@given(losses=LOSSES)
def test_values_stay_finite_and_above_the_lowest(config: HyperparameterConfig, losses: list[float]) -> None:
    lowest = config.lowest()
    assert lowest is not None
    values = run(HYPERPARAMETERS.build(config), losses)
    assert all(math.isfinite(value) and value >= lowest for value in values)


def test_adacomm_follows_its_rule() -> None:
    moving = AdaComm(AdaCommConfig(start=32, block=1, smoothing=0))
    # ceil(sqrt(F/F_0) 32), halved where that is not smaller
    assert run(moving, [1.0, 0.5, 0.25, 0.25, 0.04, 4.0]) == [16, 8, 4, 2, 1, 1]
    moving = AdaComm(AdaCommConfig(start=32, block=1, smoothing=0))
    assert run(moving, [1.0, 0.2]) == [16, 15]
    moving = AdaComm(AdaCommConfig(start=32, block=2, smoothing=0))
    assert run(moving, [1.0, 0.5, 0.1, 0.02, 0.3]) == [32, math.ceil(math.sqrt(0.5) * 32), 23, 5, 5]


def test_adacomm_smooths_its_loss() -> None:
    moving = AdaComm(AdaCommConfig(start=100, block=3, smoothing=0.5))
    # the average after losses 1, 0.5, 0.5 is 0.625
    assert run(moving, [1.0, 0.5, 0.5])[-1] == math.ceil(math.sqrt(0.625) * 100)


@given(LOSSES, st.integers(1, 40), st.integers(1, 5), st.integers(1, 5))
def test_adacomm_never_rises_and_never_leaves_its_bounds(
    losses: list[float], start: int, minimum: int, block: int
) -> None:
    minimum = min(minimum, start)
    values = run(AdaComm(AdaCommConfig(start=start, minimum=minimum, block=block)), losses)
    falling = [start, *values]
    assert all(later <= earlier for earlier, later in itertools.pairwise(falling))
    assert all(value >= minimum and value == int(value) for value in values)


def test_adacomm_halves_while_the_loss_stands_still() -> None:
    assert run(AdaComm(AdaCommConfig(start=9, block=1)), [1.0] * 6) == [4, 2, 1, 1, 1, 1]


def test_rounds_without_a_loss_change_nothing() -> None:
    for moving in (AdaComm(AdaCommConfig(start=9, block=1)), LossDriven(LossDrivenConfig(start=9, patience=1))):
        before = moving.state()
        run(moving, [math.nan, math.inf, 0.0, -1.0])
        assert moving.state() == before


@given(LOSSES, st.integers(1, 20), st.floats(0.1, 3), st.integers(1, 4))
def test_loss_driven_is_monotone(losses: list[float], start: int, power: float, patience: int) -> None:
    values = [start, *run(LossDriven(LossDrivenConfig(start=start, power=power, patience=patience)), losses)]
    assert all(1 <= later <= earlier for earlier, later in itertools.pairwise(values))


def test_loss_driven_follows_the_loss() -> None:
    moving = LossDriven(LossDrivenConfig(start=8, smoothing=0, patience=99))
    assert run(moving, [1.0, 0.25, 0.9, 0.01]) == [8, 4, 4, 1]


def test_loss_driven_steps_down_on_a_plateau_and_ends_at_the_minimum() -> None:
    moving = LossDriven(LossDrivenConfig(start=4, minimum=2, smoothing=0, patience=2))
    assert run(moving, [1.0] * 9) == [4, 4, 3, 3, 2, 2, 2, 2, 2]


def test_loss_driven_stays_while_the_loss_falls() -> None:
    moving = LossDriven(LossDrivenConfig(start=2, smoothing=0, patience=1))
    assert run(moving, [1.0, 0.99, 0.98, 0.97]) == [2, 2, 2, 2]


def test_cosine_warms_up_and_decays() -> None:
    moving = Cosine(CosineConfig(start=1.0, end=0.2, rounds=12, warmup=4))
    values = [moving.value(), *run(moving, [1.0] * 14)]
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert values[8] == pytest.approx(0.6) and values[12] == pytest.approx(0.2) and values[14] == values[12]
    assert all(later <= earlier for earlier, later in itertools.pairwise(values[4:]))


def test_cosine_without_warm_up_begins_at_its_start() -> None:
    assert Cosine(CosineConfig(start=0.3, rounds=5)).value() == pytest.approx(0.3)


def test_adaptive_mu_rises_at_once_and_falls_after_patience() -> None:
    moving = AdaptiveMu(AdaptiveMuConfig(start=0.0, step=0.5, patience=2))
    assert run(moving, [1.0, 2.0, 3.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6]) == [0, 0.5, 1, 1, 0.5, 0.5, 0, 0, 0]


def test_adaptive_mu_ignores_rounds_without_a_loss() -> None:
    moving = AdaptiveMu(AdaptiveMuConfig(step=0.5))
    assert run(moving, [1.0, math.inf, math.nan, 0.9]) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("model", "settings", "where"),
    [
        (AdaCommConfig, {"start": 2, "minimum": 3}, "minimum"),
        (LossDrivenConfig, {"start": 2, "minimum": 3}, "minimum"),
        (AdaCommConfig, {"start": 0}, "start"),
        (AdaCommConfig, {"smoothing": 1.0}, "smoothing"),
        (CosineConfig, {"start": 0.1}, "rounds"),
        (ConstantConfig, {"value": math.nan}, "value"),
        (ConstantConfig, {"value": math.inf}, "value"),
        (FedProxConfig, {"mu": -0.1}, "below 0"),
        (AdaptiveMuConfig, {"step": 0}, "step"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model: type[BaseModel], settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        model.model_validate(settings)


def test_at_least_accepts_what_it_cannot_know() -> None:
    unknown = HyperparameterConfig(kind="other")
    assert at_least(unknown, 5) is unknown
    with pytest.raises(ValueError, match="may become 0"):
        at_least(CosineConfig(start=0.1, rounds=3), 0.01)


def test_a_plain_number_is_a_constant_and_is_found_by_name() -> None:
    config = FedProxConfig.model_validate({"mu": 0.3})
    assert config.mu == ConstantConfig(value=0.3)
    assert found_in("fedprox", config) == {"fedprox.mu": ConstantConfig(value=0.3)}
    moving = FedProxConfig.model_validate({"mu": {"kind": "adaptive_mu", "step": 0.2}})
    assert HYPERPARAMETERS.build(found_in("fedprox", moving)["fedprox.mu"]).value() == 0.0


@pytest.mark.parametrize("wrong", [True, "no_such", [1], {"value": 1}, None])
def test_what_is_no_hyper_parameter_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        FedProxConfig.model_validate({"mu": wrong})
