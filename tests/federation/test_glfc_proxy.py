"""GLFC with its proxy server (algorithms' test t12, on pictures): three tasks of four classes come to eight hospitals
that have three of each four. The coordinator chooses old models by images that it rebuilds from gradients."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from toys.parts import Federated, federation_parts, plugin
from toys.pictures import Pictures, Reader
from toys.tasks import site

from medfl.data.base import SiteData
from medfl.data.plans.base import PLANS
from medfl.federation.proxy import ProxyServer
from medfl.federation.schedule.base import SCHEDULES
from medfl.learning.rebuilding import Rebuilder
from medfl.learning.rules.base import LocalContext, LocalRule
from medfl.learning.rules.glfc import Glfc, GlfcConfig
from medfl.learning.rules.sgd import Sgd, SgdConfig

EDGE, TASKS, EACH, SITES, ROUNDS, IMAGES = 5, 3, 4, 8, 12, 2
CLASSES = TASKS * EACH
MEMORY = 90
"""Ten exemplars of each of a site's nine classes."""
PROXIED = GlfcConfig(
    memory=MEMORY,
    detect="entropy",
    old_model="proxy",
    prototype_size=EDGE,
    rebuilt_images=IMAGES,
    rebuild_iterations=100,
)


class Watched(Glfc):
    """Notes the old models of sites by round."""

    def __init__(self, config: GlfcConfig) -> None:
        super().__init__(config)
        self.taught: dict[tuple[str, int], npt.NDArray[np.float32]] = {}

    def begin(self, context: LocalContext) -> None:
        super().begin(context)
        if "glfc.old_model" in context.state:
            self.taught[context.site, context.round] = context.state["glfc.old_model"]


@dataclass
class Course:
    """accuracies [task learned, task tested] of the global model. scores, since: of the proxy server after each round.
    models: the global model after each."""

    accuracies: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((TASKS, TASKS)))
    scores: list[float] = field(default_factory=list)
    since: list[int] = field(default_factory=list)
    models: list[npt.NDArray[np.float32]] = field(default_factory=list)
    sent: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def forgetting(self) -> float:
        """How far earlier tasks fell below their best."""
        return float((self.accuracies.max(axis=0) - self.accuracies[-1])[:-1].mean())


def hospitals(seed: int) -> tuple[list[SiteData], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The sites with 40 pictures of each of their classes, and 50 test pictures of every class."""
    rng = np.random.default_rng(seed)
    means = 1.25 * rng.normal(size=(CLASSES, 1, EDGE, EDGE))

    def drawn(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return (means[labels] + rng.normal(size=(len(labels), 1, EDGE, EDGE))).astype(np.float32)

    found = []
    for number in range(SITES):
        own = [task * EACH + rng.choice(EACH, 3, replace=False) for task in range(TASKS)]
        labels = np.repeat(np.concatenate(own), 40)
        found.append(site(f"s{number}", Pictures(drawn(labels), labels)))
    tested = np.repeat(np.arange(CLASSES), 50)
    return found, drawn(tested), tested


def course(rule: LocalRule, proxy: ProxyServer | None, seed: int = 0) -> Course:
    sites, images, labels = hospitals(seed)
    task, found = Reader(CLASSES, EDGE), Course()
    if proxy is not None:
        proxy.bind(Rebuilder(task, seed, EDGE, PROXIED.rebuild_iterations, None))
    plan = plugin(PLANS, "class_stream", classes_per_task=EACH, rounds_per_task=ROUNDS)
    schedule = plugin(SCHEDULES, "uniform", fraction=0.75)
    local: dict[str, Any] = {"plan": plan, "rules": [rule], "batch_size": 60, "seed": seed}
    made = Federated(task, sites, federation_parts(0.5, 4, schedule=schedule, proxy=proxy), **local)
    for number in range(TASKS * ROUNDS):
        outcome = made.round()
        told = {name: mine.prototypes for name, mine in outcome.sites.items() if mine.prototypes}
        found.sent |= {outcome.plan.round: told} if told else {}
        found.models.append(made.model.copy())
        if proxy is not None:
            found.scores.append(proxy.score)
            found.since.append(proxy.since)
        if (number + 1) % ROUNDS == 0:
            made.executor.network.load(made.model)
            right = task.right(made.executor.network.module, images, labels)
            found.accuracies[number // ROUNDS] = right.reshape(TASKS, -1).mean(axis=1)
    return found


@cache
def proxied() -> tuple[Course, Watched, ProxyServer]:
    rule, proxy = Watched(PROXIED), ProxyServer(CLASSES, IMAGES)
    return course(rule, proxy), rule, proxy


@cache
def finetuned() -> Course:
    return course(Sgd(SgdConfig()), None)


def remembers(found: Course) -> bool:
    return found.forgetting <= 0.02 and found.accuracies[-1].mean() > 0.95


def test_with_a_proxy_server_classes_that_are_gone_are_remembered() -> None:
    found, _, _ = proxied()
    assert remembers(found), found.accuracies
    assert not remembers(finetuned()) and finetuned().forgetting > 0.8


def test_the_proxy_server_follows_the_tasks_and_what_it_rebuilt_tells_models_apart() -> None:
    found, _, proxy = proxied()
    assert sorted(set(found.since)) == [1, ROUNDS + 1, 2 * ROUNDS + 1]
    for task in range(TASKS):
        first, last = found.scores[task * ROUNDS], found.scores[(task + 1) * ROUNDS - 1]
        assert last > 0.8 and last > first
    _, labels = proxy.rebuilt
    assert np.bincount(labels).tolist() == [IMAGES] * CLASSES


def test_each_site_names_each_of_its_classes_once_in_its_first_round_of_a_task() -> None:
    found, _, _ = proxied()
    named = {name: sum(told.get(name, 0) for told in found.sent.values()) for name in (f"s{n}" for n in range(SITES))}
    assert set(named.values()) == {3 * TASKS}
    assert all(count == 3 for told in found.sent.values() for count in told.values())


def test_sites_distil_from_the_best_model_of_the_task_before() -> None:
    found, rule, _ = proxied()
    for task in (1, 2):
        before, scores = found.models[: task * ROUNDS], found.scores[: task * ROUNDS]
        best = max(range((task - 1) * ROUNDS, task * ROUNDS), key=lambda number: (scores[number], number))
        last = {name: number for name, number in rule.taught if number <= (task + 1) * ROUNDS}
        assert len(last) == SITES
        for name, number in last.items():
            np.testing.assert_array_equal(rule.taught[name, number], before[best])
