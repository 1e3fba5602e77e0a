"""How often somebody may try: a token bucket for each source, in bounded memory."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


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
