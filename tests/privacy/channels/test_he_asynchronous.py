"""Encrypted updates without rounds give the plain result, and only to sites, of enough sites, with room."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from medfl.errors import RunError
from medfl.privacy.channels.he.asynchronous import AsynchronousSite, EncryptedModel, Epoch, new_key
from medfl.privacy.identity import Ed25519Identity

NAMES = ("a", "b", "c", "d")
SIZE = 4100


def parties(**settings: Any) -> tuple[EncryptedModel, dict[str, AsynchronousSite]]:
    identities = {name: Ed25519Identity.generate(name) for name in NAMES}
    roster = {name: identity.public for name, identity in identities.items()}
    epoch = Epoch(**{"run": "run", "size": SIZE, "bound": 1000, **settings})
    secret = new_key(epoch.scheme)
    sites = {name: AsynchronousSite(identity, roster, epoch, secret) for name, identity in identities.items()}
    return EncryptedModel(epoch, roster), sites


def update(seed: int, size: int = SIZE) -> Any:
    return np.random.default_rng(seed).integers(-1000, 1000, size, dtype=np.int32, endpoint=True)


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_encrypted_result_is_the_plain_one(scheme: str) -> None:
    model, sites = parties(scheme=scheme)
    plain = np.zeros(SIZE, np.int64)
    order = np.random.default_rng(5).choice(NAMES, 30)
    for number, name in enumerate(order):
        plain += update(number)
        model.add(name, sites[name].seal(update(number)))
    for site in sites.values():
        assert np.array_equal(site.open(model.fetch()), plain)


def test_one_sites_update_cannot_be_told_from_two_fetches() -> None:
    model, sites = parties()
    with pytest.raises(RunError, match="0 sites are in the sum, 3 are needed"):
        model.fetch()
    for number, name in enumerate(NAMES):
        model.add(name, sites[name].seal(update(number)))
    before = sites["a"].open(model.fetch())
    model.add("b", sites["b"].seal(update(7)))
    model.add("b", sites["b"].seal(update(8)))
    assert np.array_equal(sites["a"].open(model.fetch()), before)
    for name in ("c", "d"):
        model.add(name, sites[name].seal(update(9)))
    assert np.array_equal(sites["a"].open(model.fetch()), before + update(7) + update(8) + 2 * update(9))


def test_full_sum_takes_no_more() -> None:
    model, sites = parties(size=10, bound=3_000_000)
    assert model.room == 2
    for name in ("a", "b"):
        model.add(name, sites[name].seal(np.full(10, 3_000_000, np.int32)))
    with pytest.raises(RunError, match=r"c, run 'run' .*had filled the sum.*new epoch"):
        model.add("c", sites["c"].seal(np.full(10, 3_000_000, np.int32)))


def test_replayed_changed_and_foreign_updates_are_refused() -> None:
    model, sites = parties()
    payload = sites["a"].seal(update(0))
    with pytest.raises(RunError, match=r"b, run 'run' .*did not sign"):
        model.add("b", payload)
    broken = bytearray(payload.buffers[0])
    broken[9000] ^= 1
    with pytest.raises(RunError, match=r"a, run 'run' .*did not sign"):
        model.add("a", replace(payload, buffers=(bytes(broken), *payload.buffers[1:])))
    model.add("a", payload)
    with pytest.raises(RunError, match=r"a, run 'run' .*sent update 1, 2 is the next"):
        model.add("a", payload)
    _, others = parties()
    with pytest.raises(RunError, match="another shape, or with another key"):
        model.add("b", others["b"].seal(update(0)))
    with pytest.raises(RunError, match="values of at most 1000"):
        sites["a"].seal(np.full(SIZE, 1001, np.int32))
    for name in ("b", "c"):
        model.add(name, sites[name].seal(update(1)))
    assert np.array_equal(sites["d"].open(model.fetch()), update(0).astype(np.int64) + 2 * update(1))


def test_site_opens_no_sum_of_few() -> None:
    model, sites = parties()
    for number, name in enumerate(NAMES):
        model.add(name, sites[name].seal(update(number)))
    payload = model.fetch()
    last = dict(payload.meta["last"])
    few = {name: last[name] for name in ("a", "b")}
    with pytest.raises(RunError, match="sum of 2 sites, 3 are needed"):
        sites["a"].open(replace(payload, meta={**payload.meta, "last": few}))
    forged = {**few, "c": last["a"]}
    with pytest.raises(RunError, match=r"c, run 'run' .*did not sign"):
        sites["a"].open(replace(payload, meta={**payload.meta, "last": forged}))
    with pytest.raises(RunError, match=r"coordinator, run 'run' .*is not a whole SEAL object"):
        sites["a"].open(replace(payload, buffers=(payload.buffers[0][:-1],)))
    with pytest.raises(RunError, match="needs 3 sites"):
        parties(minimum=2)
