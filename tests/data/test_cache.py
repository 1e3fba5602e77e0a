import json
import logging
import multiprocessing
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import medfl.data.cache as module
from medfl.data.augment.base import AugmentConfig, augment
from medfl.data.base import Case
from medfl.data.cache import Recipe, SampleCache, default_folder
from medfl.data.fingerprint import fingerprints
from medfl.data.pack import Pack, PackError
from medfl.data.preprocess import PreprocessConfig, preprocess
from medfl.errors import DataError

RECIPE = Recipe("classification", ("a", "b"), PreprocessConfig(), None, 0)


def write_images(folder: Path, count: int = 6, shape: tuple[int, int] = (12, 10)) -> list[Case]:
    rng = np.random.default_rng(len(str(folder)))
    cases = []
    for number in range(count):
        path = folder / f"{number}.png"
        Pillow.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
        # An old file: its hash is remembered at once.
        os.utime(path, (1e9, 1e9))
        cases.append(Case(path.name, path, number % 2, None, f"p{number // 2}", "s", "train"))
    return cases


@pytest.fixture
def cases(tmp_path):
    (tmp_path / "images").mkdir()
    return write_images(tmp_path / "images")


@pytest.fixture
def cache(tmp_path):
    return SampleCache(tmp_path / "cache")


@pytest.fixture
def builds(monkeypatch):
    """The keys of the cases that were preprocessed."""
    seen = []

    def counted(case, *rest):
        seen.append(case.key)
        return preprocess(case, *rest)

    monkeypatch.setattr(module, "preprocess", counted)
    return seen


def pack_of(cache):
    (found,) = (cache.folder / "packs").iterdir()
    return found


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        pairs = zip(one[name], other[name], strict=True)
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_a_batch_is_what_preprocessing_and_augmentation_make(cache, cases):
    config = AugmentConfig(factor=3)
    recipe = replace(RECIPE, augment=config, seed=5)
    samples = cache.load(cases, recipe)
    assert (len(samples), samples.cases, len(samples.patients)) == (18, 6, 3)
    batch = samples.batch([4, 0, 17])
    assert batch["image"].shape == (3, 1, 12, 10) and batch["label"].tolist() == [1, 0, 1]
    for place, (case, variant) in enumerate([(cases[1], 1), (cases[0], 0), (cases[5], 2)]):
        sample = preprocess(case, recipe.preprocess, "classification", ("a", "b")).sample
        expected = augment(sample, config, 5, case.key, variant)
        assert np.array_equal(batch["image"][place], expected["image"])
    assert samples.info(4).key == "1.png" and samples.info(17).patient == "p2"
    assert samples.labels().tolist() == [0, 0, 0, 1, 1, 1] * 3
    with pytest.raises(IndexError):
        samples.batch([18])
    with pytest.raises(IndexError):
        samples.info(18)


def test_a_second_load_reads_the_pack_alone(cache, cases, builds):
    first = cache.load(cases, RECIPE).batch(range(6))
    second = SampleCache(cache.folder).load(cases, RECIPE).batch(range(6))
    assert len(builds) == 6
    equal(first, second)


def test_batches_are_copies(cache, cases):
    samples = cache.load(cases, RECIPE)
    samples.batch([0])["image"][:] = 9
    assert samples.batch([0])["image"].max() <= 1


def test_everything_that_decides_the_content_decides_the_key(cache, cases, builds, monkeypatch):
    cache.load(cases, RECIPE)
    changes = [
        (cases, replace(RECIPE, preprocess=PreprocessConfig(size=(8, 8)))),
        (cases, replace(RECIPE, augment=AugmentConfig(factor=2))),
        (cases, replace(RECIPE, augment=AugmentConfig(factor=2), seed=1)),
        ([replace(cases[0], label=1), *cases[1:]], RECIPE),
        ([replace(cases[0], patient="other"), *cases[1:]], RECIPE),
        (cases[:-1], RECIPE),
        (cases[::-1], RECIPE),
    ]
    for number, (listed, recipe) in enumerate(changes, 2):
        cache.load(listed, recipe)
        assert len(list((cache.folder / "packs").iterdir())) == number
    monkeypatch.setattr(module, "_engine", lambda: ["other code"])
    cache.load(cases, RECIPE)
    assert len(list((cache.folder / "packs").iterdir())) == len(changes) + 2
    before = len(builds)
    # Without augmentation the seed decides nothing, nor does where the files lie.
    cache.load(cases, replace(RECIPE, seed=9))
    assert len(builds) == before


def test_moved_files_are_the_same_files(cache, cases, builds, tmp_path):
    cache.load(cases, RECIPE)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    cache.load([replace(case, image=tmp_path / "elsewhere" / case.image.name) for case in cases], RECIPE)
    assert len(builds) == 6


def test_a_changed_file_is_noticed_even_if_size_and_time_are_forged(cache, cases, builds):
    before = cache.load(cases, RECIPE).batch([0])["image"]
    content = bytearray(cases[1].image.read_bytes())
    state = cases[0].image.stat()
    Pillow.fromarray(np.arange(120, dtype=np.uint8).reshape(12, 10)).save(cases[0].image)
    padded = cases[0].image.read_bytes().ljust(state.st_size, b"\0")
    cases[0].image.write_bytes(padded)
    os.utime(cases[0].image, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = cache.load(cases, RECIPE).batch([0])["image"]
    assert len(builds) == 12 and not np.array_equal(before, after)
    assert bytes(content) == cases[1].image.read_bytes()


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda pack: (pack / "data.bin").write_bytes((pack / "data.bin").read_bytes()[:-100]),
    "empty data": lambda pack: (pack / "data.bin").write_bytes(b""),
    "no data": lambda pack: (pack / "data.bin").unlink(),
    "no index": lambda pack: (pack / "index.json").unlink(),
    "index is no JSON": lambda pack: (pack / "index.json").write_bytes(b"{"),
    "index lies": lambda pack: (pack / "index.json").write_text(
        (pack / "index.json").read_text().replace('"p0"', '"p9"')
    ),
    "index of another schema": lambda pack: (pack / "index.json").write_text(json.dumps({"key": pack.name})),
    "a flipped bit in an image": lambda pack: flip_byte(pack / "data.bin", 300),
    "a flipped bit in the digest": lambda pack: flip_byte(pack / "data.bin", -1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_pack_is_rebuilt_and_never_trusted(cache, cases, builds, caplog, damage):
    good = cache.load(cases, RECIPE).batch(range(6))
    damage(pack_of(cache))
    with caplog.at_level(logging.WARNING):
        samples = cache.load(cases, RECIPE)
        equal(samples.batch(range(6)), good)
    assert len(builds) == 12 and "rebuilt" in caplog.text
    assert samples.info(0).patient == "p0"
    equal(cache.load(cases, RECIPE).batch(range(6)), good)
    assert len(builds) == 12
    assert {path.name for path in cache.folder.iterdir()} <= {"packs", "stamps"}


def test_without_checksums_a_flipped_bit_would_go_unseen(cache, cases, monkeypatch):
    """The fake: the same reader with the check switched off returns damaged pixels."""
    good = cache.load(cases, RECIPE).batch(range(6))
    flip_byte(pack_of(cache) / "data.bin", 300)
    monkeypatch.setattr(Pack, "_check", lambda self, indices: None)
    with pytest.raises(AssertionError):
        equal(cache.load(cases, RECIPE).batch(range(6)), good)


def test_damage_during_a_run_when_the_images_have_changed_is_an_error(cache, cases):
    samples = cache.load(cases, RECIPE)
    flip_byte(pack_of(cache) / "data.bin", 300)
    cases[3].image.write_bytes(cases[2].image.read_bytes())
    with pytest.raises(DataError, match="changed during the run"):
        samples.batch(range(6))


def test_a_bad_image_is_left_out_and_listed(cache, cases):
    cases[2].image.write_bytes(b"no image at all")
    missing = replace(cases[4], key="gone", image=cases[4].image.with_name("gone.png"))
    samples = cache.load([*cases, missing, replace(cases[5], key="unlabelled", label=None)], RECIPE)
    assert [entry.key for entry in samples.skipped] == ["2.png", "gone", "unlabelled"]
    assert all(entry.reason for entry in samples.skipped)
    assert samples.cases == len(samples) == 5 and samples.info(2).key == "3.png"


def test_a_repaired_image_comes_back(cache, cases):
    content = cases[2].image.read_bytes()
    cases[2].image.write_bytes(b"no image at all")
    assert cache.load(cases, RECIPE).cases == 5
    cases[2].image.write_bytes(content)
    assert cache.load(cases, RECIPE).cases == 6


def test_no_cases_make_an_empty_set(cache, cases):
    samples = cache.load([], RECIPE)
    assert len(samples) == samples.cases == 0 and samples.batch([]) == {} and samples.labels().shape == (0,)
    assert cache.load(cases, RECIPE).batch([])["image"].shape == (0, 1, 12, 10)


def test_images_of_several_shapes_are_lists_unless_a_batch_agrees(cache, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small, large = write_images(tmp_path / "small", 2), write_images(tmp_path / "large", 2, (20, 10))
    large = [replace(case, key="l" + case.key) for case in large]
    samples = cache.load([*small, *large], RECIPE)
    mixed = samples.batch([0, 3])
    assert isinstance(mixed["image"], list) and [x.shape for x in mixed["image"]] == [(1, 12, 10), (1, 20, 10)]
    assert mixed["label"].tolist() == [0, 1]
    assert samples.batch([0, 1])["image"].shape == (2, 1, 12, 10)


def test_boxes_and_their_labels_are_always_lists(cache, cases):
    box = (1.0, 1.0, 5.0, 5.0)
    listed = [replace(case, label=(0, 1)[:n], boxes=(box,) * n) for n, case in zip((0, 2, 1), cases, strict=False)]
    samples = cache.load(listed, replace(RECIPE, task="detection"))
    batch = samples.batch([0, 1, 2])
    assert [x.shape for x in batch["box"]] == [(0, 4), (2, 4), (1, 4)]
    assert [x.shape for x in batch["label"]] == [(0,), (2,), (1,)]
    assert isinstance(samples.batch([1])["box"], list) and isinstance(samples.batch([1])["label"], list)
    assert samples.labels().tolist() == [0, 2, 1]


def test_masks_are_stacked_and_counted(cache, cases, tmp_path):
    listed = []
    for number, case in enumerate(cases[:3]):
        mask = np.zeros((12, 10), np.uint8)
        mask[0, :number] = range(1, number + 1)
        Pillow.fromarray(mask).save(tmp_path / f"m{number}.png")
        listed.append(replace(case, label=tmp_path / f"m{number}.png"))
    samples = cache.load(listed, Recipe("segmentation", ("0", "1", "2"), PreprocessConfig()))
    batch = samples.batch([2, 0])
    assert batch["label"].shape == (2, 12, 10) and batch["label"].dtype == np.uint8
    assert batch["label"][0, 0, :3].tolist() == [1, 2, 0]
    assert samples.labels().tolist() == [0, 1, 2]


def test_an_npz_is_read_by_entry(cache, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (9, 8, 8), dtype=np.uint8)
    np.savez_compressed(tmp_path / "set.npz", images=array)
    path = tmp_path / "set.npz"
    cases = [Case(f"{i}", path, i % 2, None, "", "s", "train", "images", i) for i in range(9)]
    batch = cache.load(cases, replace(RECIPE, preprocess=PreprocessConfig(intensity={"kind": "none"}))).batch([7, 2])
    assert np.array_equal(batch["image"][:, 0], array[[7, 2]])


def test_cached_samples_travel_to_other_processes(cache, cases):
    samples = cache.load(cases, RECIPE)
    equal(pickle.loads(pickle.dumps(samples)).batch(range(6)), samples.batch(range(6)))  # noqa: S301


def _load(arguments):
    folder, cases = arguments
    return SampleCache(folder).load(cases, RECIPE).batch(range(6))["image"].sum()


def test_processes_may_build_the_same_pack_at_the_same_time(cache, cases):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.map(_load, [(cache.folder, cases)] * 6, chunksize=1)
    assert len(set(sums)) == 1
    assert {path.name for path in cache.folder.iterdir()} <= {"packs", "stamps"}
    assert len(list((cache.folder / "packs").iterdir())) == 1


def test_a_failing_build_leaves_nothing_behind(cache, cases, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug, not a bad image")

    monkeypatch.setattr(module, "preprocess", fail)
    with pytest.raises(RuntimeError):
        cache.load(cases, RECIPE)
    assert {path.name for path in cache.folder.iterdir()} <= {"packs", "stamps"}


def test_remains_of_killed_processes_are_swept_and_work_in_progress_is_not(cache, cases):
    for name in ("building-old", "removed-old", "building-new"):
        (cache.folder / name).mkdir(parents=True)
    for name in ("building-old", "removed-old"):
        os.utime(cache.folder / name, (1e9, 1e9))
    cache.load(cases, RECIPE)
    assert {path.name for path in cache.folder.iterdir()} <= {"packs", "stamps", "building-new"}
    assert (cache.folder / "building-new").exists()


def test_the_folder_is_the_owners_and_a_bad_one_is_named(cache, cases, tmp_path):
    cache.load(cases, RECIPE)
    assert cache.folder.stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="MEDFL_CACHE"):
        SampleCache(tmp_path / "file").load(cases, RECIPE)


def test_default_folder(monkeypatch):
    monkeypatch.setenv("MEDFL_CACHE", "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.delenv("MEDFL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_folder() == Path("/x/medfl")


def test_fingerprints_are_remembered_only_for_settled_files(tmp_path, monkeypatch):
    import medfl.data.fingerprint as prints

    hashed = []
    digest = prints._file_digest
    monkeypatch.setattr(prints, "_file_digest", lambda path: hashed.append(path.name) or digest(path))
    (tmp_path / "series").mkdir()
    for name in ("one", "series/a", "series/b"):
        (tmp_path / name).write_text(name)
    paths = [tmp_path / "one", tmp_path / "series", tmp_path / "absent"]
    first = fingerprints(paths, tmp_path / "stamps")
    assert first[tmp_path / "absent"] == "missing"
    assert fingerprints(paths, tmp_path / "stamps") == first and len(hashed) == 6
    now = time.time_ns()
    monkeypatch.setattr(prints.time, "time_ns", lambda: now + 10**10)
    assert fingerprints(paths, tmp_path / "stamps") == first and len(hashed) == 9
    assert fingerprints(paths, tmp_path / "stamps") == first and len(hashed) == 9
    (tmp_path / "series" / "b").rename(tmp_path / "series" / "c")
    assert fingerprints(paths, tmp_path / "stamps")[tmp_path / "series"] != first[tmp_path / "series"]
    for file in (tmp_path / "stamps").iterdir():
        file.write_text('{"x": 5}')
    assert fingerprints(paths[:1], tmp_path / "stamps")[paths[0]] == first[paths[0]]


def test_a_pack_under_another_key_is_refused(cache, cases):
    cache.load(cases, RECIPE)
    with pytest.raises(PackError):
        Pack(pack_of(cache), "another")
