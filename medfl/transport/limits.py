"""How often somebody may try, and how many may do something at once."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class RateLimit:
    """Lets `burst` attempts through at once and `rate` a second after that, for each source. Thread-safe.

    At most `sources` buckets are kept: when there are more, the one that was used longest ago is forgotten, and a
    bucket shared by all sources, `sources` times as large, keeps forgetting from being a way round the limit.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic, sources: int = 1024
    ) -> None:
        if rate <= 0 or burst < 1 or sources < 1:
            raise ValueError("rate must be above 0, burst and sources at least 1")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._sources = sources
        self._lock = threading.Lock()
        # what is left, and when that was so
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._shared = (float(burst * sources), clock())

    def allow(self, source: str = "") -> bool:
        """Take one attempt from the source's bucket; False when it is empty."""
        with self._lock:
            now = self._clock()
            own = self._filled(self._buckets.get(source, (float(self._burst), now)), now, 1)
            shared = self._filled(self._shared, now, self._sources)
            allowed = own >= 1 and shared >= 1
            self._buckets[source] = (own - allowed, now)
            self._shared = (shared - allowed, now)
            self._buckets.move_to_end(source)
            if len(self._buckets) > self._sources:
                self._buckets.popitem(last=False)
            return allowed

    def _filled(self, bucket: tuple[float, float], now: float, times: int) -> float:
        left, then = bucket
        return min(float(self._burst * times), left + (now - then) * self._rate * times)


class Turns:
    """A few at once, the others in the sequence in which they asked. Whoever takes longer than `patience` seconds goes
    on, and does not keep the others from their turn. Thread-safe."""

    def __init__(self, at_once: int, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._patience = patience
        self._clock = clock
        self._begun: dict[Hashable, float] = {}
        self._waiting: dict[Hashable, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def ask(self, who: Hashable, go: Callable[[], None]) -> None:
        """go is called when it is its turn, by whatever thread finds that it is."""
        with self._lock:
            self._waiting[who] = go
        self.look()

    def end(self, who: Hashable) -> None:
        """It has had its turn, or does not want it any more. Calls nobody: `look` does."""
        with self._lock:
            self._begun.pop(who, None)
            self._waiting.pop(who, None)

    def look(self) -> None:
        """Whether it is somebody's turn; asked now and then while some wait."""
        if not self._waiting:
            return
        with self._lock:
            now = self._clock()
            self._begun = {who: begun for who, begun in self._begun.items() if now - begun < self._patience}
            called = list(self._waiting.items())[: max(0, self._at_once - len(self._begun))]
            for who, _ in called:
                del self._waiting[who]
                self._begun[who] = now
        for _, go in called:
            go()
