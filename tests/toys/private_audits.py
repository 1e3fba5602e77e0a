"""Neighbour pairs for audits of the real mechanisms, and the observers who look at their releases."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medfl.coordinator.desk import NoiseDesk
from medfl.coordinator.rounds import Rounds
from medfl.federation.regulator.base import RegulatorRule
from medfl.learning.disclosure import Disclosure
from medfl.learning.executor import SiteExecutor
from medfl.learning.messages import TrainOrder, TrainReply
from medfl.privacy.accounting.gaussian import gaussian_mu
from medfl.privacy.audit import Estimate, mechanism_mu
from medfl.privacy.audit.canary import gaussian_canaries
from medfl.privacy.codec import GridCodec
from medfl.privacy.noise import NoiseSource, SystemNoise
from medfl.study.model import Study
from medfl.update.base import Update
from medfl.update.vector import FloatVector
from toys.parts import CPU, local_parts
from toys.private import RNG, Coordinated, Vector, View, names, study
from toys.tasks import LeastSquares, Rows, site

Chosen = npt.NDArray[np.bool_]
"""Which of the audited patients are there."""

SITES = names(10)
BLOCK = 16
CLIP = 1.0
LARGE = 10 * CLIP


def site_mu(
    calls: int,
    noise_multiplier: float,
    confidence: float,
    rule: Callable[[], RegulatorRule] | None = None,
    source: Callable[[], NoiseSource] = SystemNoise,
    desk: type[NoiseDesk] = NoiseDesk,
    rounds: type[Rounds] = Rounds,
    channel: str = "clear",
    sites: Sequence[str] = SITES,
) -> tuple[Estimate, float]:
    """mu of site-level noise and what the ledger claims. The worst case for what a site can do to the others: all
    sites pass the clip by far, and all but the first point against it, which is there or away."""
    direction = np.full(BLOCK, BLOCK**-0.5, np.float32)
    observed: list[Vector] = []
    for away in (False, True):
        made = study({"kind": "site", "noise_multiplier": noise_multiplier, "clip": CLIP}, channel)
        run = Coordinated(made, _cases(sites), BLOCK, desk, rounds, source())
        if rule is not None:
            run.federation.parts.regulator.append(rule())  # type: ignore[attr-defined]
        others = dict.fromkeys(sites[1:], -LARGE * direction)
        run.set(others if away else {sites[0]: LARGE * direction, **others})
        observed.append(run.play(calls // 2, lambda change: change @ direction))
    return mechanism_mu(*observed, paired=True, confidence=confidence), run.claim


def adaptive_mu(
    calls: int, noise_multiplier: float, confidence: float, bit_alone: bool = False, desk: type[NoiseDesk] = NoiseDesk
) -> tuple[Estimate, float]:
    """As `site_mu`, where the clip moves: an observer weighs the update's direction and the clip bit as they deserve,
    or looks at the bit alone."""
    direction = np.full(BLOCK, BLOCK**-0.5, np.float32)
    observed: list[Vector] = []
    for away in (False, True):
        # all are clipped, so the clip rises; were it by more, it would soon clip nobody
        privacy = {"kind": "site", "noise_multiplier": noise_multiplier, "adaptive": {"forced": True, "rate": 1e-6}}
        run = Coordinated(study(privacy), _cases(SITES), BLOCK, desk)
        run.set(dict.fromkeys(SITES[away:], LARGE * direction))
        sent = GridCodec(run.grid, bit=run.bit).encode(Update(LARGE * direction, BLOCK), RNG)
        weights = np.frombuffer(sent.buffers[0], np.int32).astype(np.float64)
        weights[: BLOCK * bit_alone] = 0
        observed.append(run.play(calls // 2, lambda _, run=run, weights=weights: run.opened @ weights))
    return mechanism_mu(*observed, paired=True, confidence=confidence), run.claim


def patient_mu(
    calls: int,
    noise_multiplier: float,
    confidence: float,
    tolerated: int = 1,
    colluders: int = 1,
    away: int = 0,
    patients: int = 256,
    sites: int = 10,
    channel: str = "clear",
    trained: bool = False,
    source: Callable[[], NoiseSource] = SystemNoise,
) -> tuple[Estimate, float]:
    """mu of summed noise shares as the coordinator and `colluders` sites see it, and what the ledger claims.

    Many patients are audited at once, each with a block of coordinates of its own and a coin that says in which of two
    worlds it is. That is as good as one patient a call: each is clipped by itself, a sum of shares treats every
    coordinate by itself, and noise of different coordinates is independent. The last sites are away, the colluders
    come before them; both hold none of the patients. trained: by the sites' real training and clip.
    """
    everyone = names(sites)
    there = everyone[: sites - away]
    honest = there[: len(there) - colluders]
    settings = {"kind": "patient", "tolerated": tolerated, "colluders": colluders}

    def world(chosen: Chosen) -> tuple[Coordinated, View]:
        run = Coordinated(
            _by_patient(settings, noise_multiplier, channel), _cases(everyone), chosen.size * BLOCK, source=source()
        )
        held = {site: chosen & (np.arange(chosen.size) % len(honest) == place) for place, site in enumerate(honest)}
        held |= {site: np.zeros_like(chosen) for site in there[len(honest) :]}
        _hold(run, held, trained)
        return run, lambda _: _blocks(_unknown(run, there[len(honest) :]))

    return _coin_mu(world, patients, calls, confidence)


def local_mu(
    calls: int,
    noise_multiplier: float,
    confidence: float,
    epochs: int = 1,
    patients: int = 40,
    source: Callable[[], NoiseSource] = SystemNoise,
) -> tuple[Estimate, float]:
    """As `patient_mu`, for one site's real training with noise of its own in each of `epochs` steps."""

    def world(chosen: Chosen) -> tuple[Coordinated, View]:
        made = _by_patient({"kind": "local"}, noise_multiplier, "clear", epochs)
        run = Coordinated(made, _cases(SITES[:1]), chosen.size * BLOCK, source=source())
        _hold(run, {SITES[0]: chosen}, trained=True)
        return run, _blocks

    return _coin_mu(world, patients, calls, confidence)


def _coin_mu(
    world: Callable[[Chosen], tuple[Coordinated, View]], patients: int, calls: int, confidence: float
) -> tuple[Estimate, float]:
    coins = np.random.default_rng(0).permutation(patients) < patients // 2
    observed = []
    for chosen in (coins, ~coins):
        run, view = world(chosen)
        observed.append(run.play(calls // 2, view))
    present, absent = np.where(coins, *observed), np.where(coins, *reversed(observed))
    return mechanism_mu(present, absent, paired=True, confidence=confidence), run.claim


def _by_patient(settings: dict[str, Any], noise_multiplier: float, channel: str, epochs: int = 1) -> Study:
    privacy = {**settings, "sampling_rate": 1, "clip": CLIP, "noise_multiplier": noise_multiplier, "engine": "loop"}
    return study(privacy, channel, epochs)


def _cases(sites: Sequence[str]) -> dict[str, int]:
    return dict.fromkeys(sites, 1000)


def _hold(run: Coordinated, held: dict[str, Chosen], trained: bool) -> None:
    """Give the sites their patients: as sums of clipped gradients, or as data whose gradients must be clipped. Patient
    i points along block i, where the model grows against the gradient."""
    if not trained:
        run.set(
            {site: (-CLIP * BLOCK**-0.5 * chosen.repeat(BLOCK)).astype(np.float32) for site, chosen in held.items()}
        )
        return
    for name, chosen in held.items():
        hold_rows(run, name, np.eye(chosen.size)[chosen].repeat(BLOCK, axis=1))


def hold_rows(run: Coordinated, name: str, features: npt.NDArray[np.floating]) -> None:
    """Let a site train on these patients [n, size], each of whom pulls the model along its row far past the clip."""
    size = run.plan.parameters
    # one that holds nothing, so that no site is empty
    features = np.vstack([np.zeros(size), features])
    rows = Rows(features, np.full(len(features), 1000 * LARGE))
    executor = SiteExecutor(local_parts(LeastSquares(size)), CPU)

    def train(order: TrainOrder, disclosure: Disclosure) -> TrainReply:
        model = np.zeros(size, np.float32)
        return executor.train(site(order.site, rows), order, model, {}, disclosure=disclosure)

    run.sites[name].train = train


def _blocks(vector: Vector | FloatVector) -> Vector:
    return vector.reshape(-1, BLOCK).sum(1, dtype=np.float64)


def _unknown(run: Coordinated, knowing: Sequence[str]) -> Vector:
    """The opened sum without what the coalition itself put in."""
    return run.opened - sum(run.sites[site].sent.astype(np.float64) for site in knowing)


def canary_run(
    rounds: int, noise_multiplier: float, canaries: int = 2000, size: int = 50_000, ordinary: int = 10
) -> tuple[Vector, npt.NDArray[np.bool_], float]:
    """A whole run under patient-level privacy, ten sites, with ordinary patients and canaries among them.

    An ordinary patient's gradient is that of |w - a|^2 / 2 for a point a of its own, clipped. Each canary's is a random
    direction of norm C, and it takes part by a fair coin. Given back: the projection of the final model on every
    canary [m], who took part [m], and the mu that the ledger claims for the run.
    """
    rng = np.random.default_rng(0)
    included = rng.random(canaries) < 0.5
    everyone = {"kind": "patient", "tolerated": 0, "colluders": 0}
    run = Coordinated(_by_patient(everyone, noise_multiplier, "clear"), _cases(SITES), size)
    planted = np.zeros((len(SITES), size), np.float32)
    for place, start in enumerate(range(0, canaries, _CHUNK)):
        drawn = _canaries(place, size)[: canaries - start]
        planted[place % len(SITES)] -= CLIP * (included[start : start + _CHUNK].astype(np.float32) @ drawn)
    points = rng.standard_normal((len(SITES), ordinary, size), dtype=np.float32) / np.float32(size**0.5)
    model = np.zeros(size, np.float32)
    for _ in range(rounds):
        for place, name in enumerate(SITES):
            pulls = model - points[place]
            clips = np.minimum(1, CLIP / np.linalg.norm(pulls, axis=1))
            run.sites[name].vector = planted[place] + clips.astype(np.float32) @ pulls
        model += run.play(1, lambda change: change.copy())[0].astype(np.float32)
    scores = [_canaries(place, size) @ model for place in range(-(-canaries // _CHUNK))]
    return (
        np.concatenate(scores)[:canaries].astype(np.float64),
        included,
        gaussian_mu([c.event for c in run.ledger.charged]),
    )


_CHUNK = 100


def _canaries(place: int, size: int) -> npt.NDArray[np.float32]:
    """One chunk of all the canaries, which together would take much memory; always the same."""
    return gaussian_canaries(_CHUNK, size, np.random.default_rng((1, place)))
