"""How a run goes on, while it does: tokens so far, of those planned, and how fast they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 10.0
"""The rate is that of the last so many seconds, or of the last two looks where steps take longer."""

Progress = Callable[[int, int, str], None]
"""(tokens generated, tokens planned, the rate in words). The rest of both is what is left to do."""


class Live:
    """Of a whole run, wave after wave."""

    def __init__(self, planned: int, progress: Progress | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.planned, self.progress, self.clock = planned, progress, clock
        self.made = 0
        self._seen: deque[tuple[float, int]] = deque([(clock(), 0)])

    def chosen(self, tokens: int) -> None:
        """So many more."""
        self.made += tokens
        now = self.clock()
        self._seen.append((now, self.made))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        self._show()

    def not_needed(self, tokens: int) -> None:
        """So many were planned and will not come: requests ended early."""
        self.planned -= tokens
        self._show()

    @property
    def tokens_per_s(self) -> float:
        (begin, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def _show(self) -> None:
        if self.progress:
            self.progress(self.made, self.planned, f"{self.tokens_per_s:.3g} tokens/s")
