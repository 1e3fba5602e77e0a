"""Warm-up: listed values by round, then the last."""

import json

import pytest
from pydantic import ValidationError
from toys.parts import configured, plugin

from medfl.hyperparameters.base import HYPERPARAMETERS, Progress
from medfl.update.codecs.base import CODECS


def course(count: int, **settings: object) -> list[float]:
    moving = plugin(HYPERPARAMETERS, "warmup", **settings)
    found = []
    for number in range(1, count + 1):
        found.append(moving.value())
        moving.update(Progress(number, 1.0))
    return found


def test_the_last_value_stays() -> None:
    assert course(7) == [0.25, 0.063, 0.015, 0.004, 0.001, 0.001, 0.001]
    assert course(5, values=[3, 1], rounds=2) == [3, 3, 1, 1, 1]


def test_it_goes_on_where_it_was() -> None:
    moving = plugin(HYPERPARAMETERS, "warmup")
    moving.update(Progress(1, 1.0))
    moving.update(Progress(2, 1.0))
    again = plugin(HYPERPARAMETERS, "warmup")
    again.restore(json.loads(json.dumps(moving.state())))
    assert again.value() == moving.value() == 0.015


def test_its_lowest_value_is_known() -> None:
    assert plugin(CODECS, "topk", density={"kind": "warmup"}).config.density.lowest() == 0.001
    with pytest.raises(ValidationError):
        configured(HYPERPARAMETERS, "warmup", values=[])
