"""`Pace`: makes a stage as slow as the device it emulates."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Sleeps `slowdown - 1` times as long as the stage computed; with a slowdown of 1 it does nothing."""

    def __init__(self, slowdown: float) -> None:
        self.extra = slowdown - 1
        self.debt_s = 0.0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """CPU time is counted, not wall time, so that what other processes take is not multiplied."""
        began_s = time.thread_time()
        yield
        self.debt_s += self.extra * (time.thread_time() - began_s)
        if self.debt_s > 0:
            slept_s = time.perf_counter()
            time.sleep(self.debt_s)
            self.debt_s -= time.perf_counter() - slept_s
