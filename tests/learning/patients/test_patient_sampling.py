"""Who takes part in a step: independent draws of patients, in secret, and nobody changes what others contribute."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from toys.patients import PatientImages

from medfl.errors import StudyError
from medfl.learning.patients.sampling import Indices, PatientIndex, PatientSampler, Sampling, poisson_draw

PATIENTS, STEPS, RATE = 20, 4000, 0.3
Draw = Callable[[], Indices]


def repeatable(seed: int) -> Callable[[int], bytes]:
    """Bytes for a test that must always come out the same."""
    return np.random.default_rng(seed).bytes


def poisson() -> Draw:
    source = repeatable(5)
    return lambda: poisson_draw(PATIENTS, RATE, source)


def shuffled_loader() -> Draw:
    """Wrong: fixed-size batches from a permutation, as a data loader gives."""
    rng, size, rest = np.random.default_rng(5), int(PATIENTS * RATE), []

    def draw() -> Indices:
        nonlocal rest
        if len(rest) < size:
            rest = rng.permutation(PATIENTS).tolist()
        taken, rest = rest[:size], rest[size:]
        return np.array(taken)

    return draw


def drawn(draw: Draw) -> np.ndarray:
    """[STEPS, PATIENTS] of 0 and 1."""
    table = np.zeros((STEPS, PATIENTS), np.int64)
    for row in table:
        row[draw()] = 1
    return table


def independence(table: np.ndarray) -> list[float]:
    """p values: the rate of each patient; pairs in one step; a patient from step to step; the number drawn a step."""
    rates = stats.binomtest(int(table.sum()), table.size, RATE).pvalue
    pairs = _contingency(table[:, :-1], table[:, 1:])
    steps = _contingency(table[:-1], table[1:])
    counts = np.bincount(table.sum(axis=1), minlength=PATIENTS + 1)
    expected = stats.binom.pmf(np.arange(PATIENTS + 1), PATIENTS, RATE) * STEPS
    usual = expected > 10
    observed = [*counts[usual], counts[~usual].sum()]
    number = stats.chisquare(observed, [*expected[usual], expected[~usual].sum()]).pvalue
    return [float(rates), pairs, steps, float(number)]


def _contingency(first: np.ndarray, second: np.ndarray) -> float:
    joint = np.bincount((2 * first + second).ravel(), minlength=4)
    wanted = np.array([(1 - RATE) ** 2, RATE * (1 - RATE), RATE * (1 - RATE), RATE**2]) * joint.sum()
    return float(stats.chisquare(joint, wanted).pvalue)


def test_patients_are_drawn_independently() -> None:
    assert min(independence(drawn(poisson()))) > 0.001


def test_a_shuffled_loader_is_found_out() -> None:
    p = independence(drawn(shuffled_loader()))
    assert min(p) < 1e-9


def test_rates_at_the_ends() -> None:
    def high(count: int) -> bytes:
        return b"\xff" * count

    assert len(poisson_draw(9, 1.0, high)) == 9
    assert len(poisson_draw(9, 1 - 2**-53, high)) == 0
    assert len(poisson_draw(9, 1e-300, lambda count: bytes(count))) == 0, "never more often than the rate says"
    assert len(poisson_draw(0, 0.5)) == 0


def test_empty_draws_occur() -> None:
    source = repeatable(0)
    sizes = [len(poisson_draw(3, 0.2, source)) for _ in range(200)]
    assert 0.35 < np.mean([size == 0 for size in sizes]) < 0.67


def one_image_each(count: int = 40) -> PatientImages:
    return PatientImages({"image": np.zeros((count, 1, 2, 2), np.float32)}, [f"p{n}" for n in range(count)])


def test_no_seed_of_the_experiment_decides_who_takes_part() -> None:
    samples = one_image_each()
    seen = set()
    for _ in range(3):
        np.random.seed(0)
        torch.manual_seed(0)
        sampler = PatientSampler(samples, PatientIndex.of(samples), Sampling(0.5))
        seen.add(tuple(len(list(sampler.draw(np.random.default_rng(0)))) for _ in range(8)))
        seen.add(str(samples.asked))
        samples.asked.clear()
    assert len(seen) > 4


def several_images(patients: list[str], views: int = 4) -> PatientImages:
    """Two images a patient, each in `views` views."""
    owners = [patient for patient in patients for _ in range(2 * views)]
    keys = [f"{patient}/{image}" for patient in patients for image in range(2) for _ in range(views)]
    marks = np.array([hash_of(patient) for patient in owners], np.float32)
    return PatientImages({"image": marks[:, None, None]}, owners, keys)


def hash_of(patient: str) -> int:
    return int(patient[1:])


def test_the_index_knows_patients_images_and_views() -> None:
    index = PatientIndex.of(several_images(["p2", "p1"]))
    assert index.keys == ("p1", "p2") and len(index) == 2
    assert [view.tolist() for view in index.patients[1].images] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert PatientIndex.of(several_images(["p2", "p1"]), [9, 8, 3]).patients[0].images[0].tolist() == [8, 9]


@pytest.mark.parametrize(("views", "images", "count"), [(1, None, 2), (3, None, 6), (9, None, 8), (2, 1, 2), (9, 1, 4)])
def test_views_and_images_a_step_are_limited(views: int, images: int | None, count: int) -> None:
    patient = PatientIndex.of(several_images(["p1"])).patients[0]
    chosen = [patient.choose(salt, views, images) for salt in range(60)]
    assert {len(found) for found in chosen} == {count}
    assert all(len(set(found.tolist())) == count for found in chosen)
    by_image = [np.bincount(found // 4, minlength=2) for found in chosen]
    assert all(found.max() <= views for found in by_image)
    assert {index for found in chosen for index in found.tolist()} == set(range(8)), "every view has its turn"


def choices(patients: list[str], seed: int) -> dict[float, tuple[list[int], int]]:
    """What each patient contributes in the third step: places within the patient, and the seed of the loss."""
    samples = several_images(patients)
    sampler = PatientSampler(samples, PatientIndex.of(samples), Sampling(1.0, views=2, images=1))
    rng = np.random.default_rng(seed)
    for _ in range(2):
        list(sampler.draw(rng))
    samples.asked.clear()
    batches = list(sampler.draw(rng))
    return {
        float(batch.arrays["image"].flat[0]): ([index % 8 for index in chosen], batch.seed)
        for batch, chosen in zip(batches, samples.asked, strict=True)
    }


def test_a_patient_more_changes_nothing_for_the_others() -> None:
    with_, without = choices(["p1", "p2", "p3", "p4"], 0), choices(["p1", "p3", "p4"], 0)
    del with_[2.0]
    assert with_ == without
    assert choices(["p1", "p3", "p4"], 1) != without


def test_batches_are_read_when_asked_for_and_carry_no_weights() -> None:
    samples = one_image_each()
    draw = PatientSampler(samples, PatientIndex.of(samples), Sampling(1.0)).draw(np.random.default_rng(0))
    assert not samples.asked
    assert set(next(draw).arrays) == {"image"} and len(samples.asked) == 1


def test_all_faults_of_a_sampling_are_named() -> None:
    with pytest.raises(StudyError) as caught:
        Sampling(0.0, views=0, images=0)
    assert len(caught.value.faults) == 3
    with pytest.raises(StudyError):
        Sampling(1.01)
