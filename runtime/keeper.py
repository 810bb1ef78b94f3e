"""Hands over what requests have generated while a wave still runs, so that it can be kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from planner.decisions import Decisions
from planner.operation import Operation
from planner.workload import Workload
from runtime.tokens import Tokens

EVERY_S = 10.0
"""Between two looks at requests that have not ended: what a crash costs."""

Keep = Callable[[Mapping[int, list[int]], bool], None]
"""(tokens generated so far by request, whether these have ended)."""


class Keeper:
    """Of one wave. Told of sample operations once they have ended, in their order."""

    def __init__(self, workload: Workload, decisions: Decisions, tokens: Tokens, keep: Keep, every_s: float) -> None:
        self.decisions, self.tokens, self.keep, self.every_s = decisions, tokens, keep, every_s
        self._gen = {r: workload.requests[r].gen_len for batch in decisions.mini_batches for r in batch.requests}
        self._made: dict[int, int] = {}
        self._last = time.monotonic()

    def sampled(self, op: Operation) -> None:
        """Keeps the requests that end with `op`, and now and then those that go on."""
        if op.step == 0:
            chosen = self.decisions.prefill_passes[op.offset][op.part].requests
        else:
            chosen = self.decisions.mini_batches[op.part].requests
        self._made |= {r: op.step + 1 for r in chosen if self._gen[r] > op.step}
        self._hand_over([r for r in chosen if self._gen[r] == op.step + 1], ended=True)
        if time.monotonic() - self._last >= self.every_s:
            self._hand_over(list(self._made), ended=False)
            self._last = time.monotonic()

    def _hand_over(self, requests: list[int], ended: bool) -> None:
        if requests:
            self.keep({r: self.tokens.made(r, self._made[r]) for r in requests}, ended)
        if ended:
            for request in requests:
                del self._made[request]
