"""How often somebody may try."""

import threading
from dataclasses import dataclass

import pytest

from medfl.transport.limits import RateLimit, Turns


@dataclass
class Watch:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_goes_through_and_then_the_rate():
    watch = Watch()
    limit = RateLimit(0.5, 3, watch)
    assert [limit.allow("a") for _ in range(5)] == [True, True, True, False, False]
    watch.now += 1.9
    assert not limit.allow("a")
    watch.now += 0.2
    assert [limit.allow("a") for _ in range(2)] == [True, False]
    watch.now += 1000
    assert [limit.allow("a") for _ in range(4)] == [True, True, True, False]


def test_sources_do_not_disturb_each_other():
    limit = RateLimit(1, 1, Watch())
    assert limit.allow("a") and not limit.allow("a") and limit.allow("b")


def test_many_sources_neither_fill_the_memory_nor_go_round_the_limit():
    limit = RateLimit(1, 2, Watch(), sources=10)
    passed = sum(limit.allow(str(number)) for number in range(10_000))
    assert passed == 20 and len(limit._buckets) <= 10


def test_threads_share_a_bucket():
    limit, passed = RateLimit(1, 50, Watch()), []
    threads = [threading.Thread(target=lambda: passed.extend(limit.allow() for _ in range(100))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == 50


@pytest.mark.parametrize("rate, burst, sources", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_limits_that_make_no_sense(rate: float, burst: int, sources: int):
    with pytest.raises(ValueError):
        RateLimit(rate, burst, sources=sources)


def ask(turns: Turns, *names: str) -> list[str]:
    """Those whose turn it was, in sequence; those who ask are called later, too."""
    called: list[str] = []
    for name in names:
        turns.ask(name, lambda name=name: called.append(name))  # type: ignore[misc]
    return called


def test_a_few_have_their_turn_and_the_others_follow_in_sequence():
    turns = Turns(2, 5.0, Watch())
    called = ask(turns, "a", "b", "c", "d", "e")
    assert called == ["a", "b"]
    turns.end("d")
    turns.end("a")
    assert called == ["a", "b"]
    turns.look()
    assert called == ["a", "b", "c"]
    turns.end("b")
    turns.end("c")
    turns.look()
    assert called == ["a", "b", "c", "e"]


def test_whoever_takes_long_keeps_nobody_waiting():
    watch = Watch()
    turns = Turns(1, 5.0, watch)
    called = ask(turns, "slow", "b", "c")
    watch.now += 4.9
    turns.look()
    assert called == ["slow"]
    watch.now += 0.2
    turns.look()
    assert called == ["slow", "b"]
    turns.end("slow")
    turns.look()
    assert called == ["slow", "b"]
