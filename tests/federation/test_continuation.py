"""A run that is interrupted between two rounds continues to the bit, with every plug-in."""

import copy
import json
from typing import Any

import numpy as np
import pytest
from toys.parts import Federated, configured, federation_parts, pipeline, plugin
from toys.problems import gaussian_classes, least_squares
from toys.tasks import Classifier, LeastSquares, Rows, site

from medfl.federation.regulator.base import REGULATORS, RegulatorRule
from medfl.federation.schedule.base import SCHEDULES
from medfl.federation.server_steps.base import SERVER_STEPS
from medfl.hyperparameters.base import HYPERPARAMETERS
from medfl.learning.rules.base import RULES


def rules(*kinds: str) -> list[RegulatorRule]:
    return [plugin(REGULATORS, kind) for kind in kinds]


def snapshot(federated: Federated) -> tuple[Any, Any, Any]:
    plain, arrays = federated.federation.state()
    return (
        json.loads(json.dumps(plain, allow_nan=False)),
        {name: array.copy() for name, array in arrays.items()},
        copy.deepcopy(federated.states),
    )


def resumed(federated: Federated, kept: tuple[Any, Any, Any]) -> Federated:
    plain, arrays, states = kept
    federated.federation.restore(plain, arrays)
    federated.states = states
    return federated


CLASSES = gaussian_classes([40, 25, 31, 12], 3, 6, 1.5)
MOVING = {
    "local.epochs": configured(HYPERPARAMETERS, "loss_driven", start=3, patience=1),
    "local.learning_rate": configured(HYPERPARAMETERS, "cosine", start=0.3, rounds=6, warmup=2),
    "fedprox.mu": configured(HYPERPARAMETERS, "adaptive_mu", start=0.1, patience=1),
}
ADACOMM = MOVING | {"local.epochs": configured(HYPERPARAMETERS, "adacomm", start=4, block=1)}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "momentum and error feedback": (
        {"server": ("momentum", {}), "regulator": ["finite", "norm_history"], "codec": "fp16"},
        {"pipeline": pipeline("fp16", "error_feedback")},
    ),
    "adam, a part of the sites": ({"server": ("adam", {}), "schedule": ("uniform", {"fraction": 0.5})}, {}),
    "moving numbers": ({"moving": MOVING}, {"rules": [plugin(RULES, "fedprox")]}),
    "adacomm, rules that compare": (
        {"moving": ADACOMM, "regulator": ["finite", "median_distance", "validation"]},
        {"rules": [plugin(RULES, "fedprox")]},
    ),
    "distillation": (
        {"server": ("momentum", {"nesterov": False})},
        {"rules": [plugin(RULES, "distillation", teacher_learning_rate=0.02)]},
    ),
}


def made_anew(name: str) -> Federated:
    coordinator, local = VARIANTS[name]
    changes = dict(coordinator)
    if "server" in changes:
        kind, settings = changes["server"]
        changes["server"] = plugin(SERVER_STEPS, kind, **settings)
    if "schedule" in changes:
        kind, settings = changes["schedule"]
        changes["schedule"] = plugin(SCHEDULES, kind, **settings)
    if "regulator" in changes:
        changes["regulator"] = rules(*changes["regulator"])
    if "codec" in changes:
        changes["codec"] = pipeline(changes["codec"]).codec
    task = Classifier(6, 3)
    task.hidden, task.teacher = 4, 8
    sites = [site(f"s{number}", Rows(rows.features, rows.targets)) for number, rows in enumerate(CLASSES)]
    federated = Federated(task, sites, federation_parts(0.2, 2, **changes), **({"batch_size": 8} | local))
    federated.validate = lambda model: {"loss": float(np.square(model).mean())}
    return federated


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_an_interrupted_run_continues_to_the_bit(name: str, cut: int) -> None:
    whole = made_anew(name)
    expected = whole.run(5)
    first = made_anew(name)
    before = first.run(cut)
    second = resumed(made_anew(name), snapshot(first))
    first.run(1)
    after = second.run(5 - cut)
    assert repr(before + after) == repr(expected)
    assert second.model.tobytes() == whole.model.tobytes()
    assert second.federation.state()[0] == whole.federation.state()[0]
    assert second.states.keys() == whole.states.keys()
    for site_name, state in whole.states.items():
        assert {key: array.tobytes() for key, array in second.states[site_name].items()} == {
            key: array.tobytes() for key, array in state.items()
        }


def test_the_runs_that_continue_really_move() -> None:
    """Guards the test above: every variant's state changes what the next round does."""
    for name in VARIANTS:
        federated = made_anew(name)
        models = [federated.model.tobytes()]
        for outcome in (federated.round() for _ in range(3)):
            assert outcome.moved
            models.append(federated.model.tobytes())
        assert len(set(models)) == 4


def test_forgetting_the_servers_arrays_shows() -> None:
    name = "momentum and error feedback"
    whole, first = made_anew(name), made_anew(name)
    whole.run(4)
    first.run(2)
    plain, arrays, states = snapshot(first)
    second = resumed(made_anew(name), (plain, {"model": arrays["model"]}, states))
    second.run(2)
    assert second.model.tobytes() != whole.model.tobytes()
    third = resumed(made_anew(name), (plain, arrays, {site_name: {} for site_name in states}))
    third.run(2)
    assert third.model.tobytes() != whole.model.tobytes()


def test_restore_copies() -> None:
    first, second = made_anew("adam, a part of the sites"), made_anew("adam, a part of the sites")
    first.run(2)
    second.federation.restore(*first.federation.state())
    mine = second.federation.state()[1]
    assert mine.keys() == {"model", "server.first", "server.second"}
    assert not any(np.shares_memory(mine[name], array) for name, array in first.federation.state()[1].items())


def test_two_sites_of_least_squares_meet_in_the_middle() -> None:
    rows = least_squares(2, 4, 30, 0.0, noise=0.0)
    sites = [site(f"s{number}", Rows(one.features, one.targets)) for number, one in enumerate(rows)]
    federated = Federated(LeastSquares(4), sites, federation_parts(0.3, 1))
    losses = [outcome.loss_start for outcome in federated.run(60)]
    assert losses[-1] < 1e-3 * losses[0]
    np.testing.assert_allclose(federated.model, rows[0].optimum, atol=0.1)
