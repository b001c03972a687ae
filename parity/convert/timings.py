"""Where the time of a conversion goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Seconds by what they were spent on, in the order in which it was first done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Add the seconds of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[on] = self.seconds.get(on, 0.0) + time.perf_counter() - began
