"""Reads what requests generate while a wave still runs: who has ended by himself, and what is to be kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from planner.decisions import Decisions
from planner.workload import Workload
from runtime.ending import Ends
from runtime.tokens import Tokens

EVERY_S = 10.0
"""Between two looks at requests that have not ended: what a crash costs."""

Keep = Callable[[Mapping[int, list[int]], bool], None]
"""(tokens generated so far by request, whether these have ended)."""


class Keeper:
    """Of one wave. Told of sample operations once they have ended, in their order."""

    def __init__(
        self, workload: Workload, decisions: Decisions, tokens: Tokens, keep: Keep | None, every_s: float,
        ends: Ends | None,
    ) -> None:  # fmt: skip
        self.tokens, self.keep, self.every_s, self.ends = tokens, keep, every_s, ends
        self._lengths = {r: workload.requests[r].gen_len for batch in decisions.mini_batches for r in batch.requests}
        self._made: dict[int, list[int]] = {r: [] for r in self._lengths}
        """Of the requests that go on."""
        self.ended: dict[int, int] = {}
        """Requests that ended before their planned length, and how many tokens they generated."""
        self._last = time.monotonic()

    @property
    def over(self) -> bool:
        """Every request has all its tokens."""
        return not self._made

    def sampled(self, requests: Sequence[int], index: int) -> int:
        """`requests` have their `index`-th token: keeps those that end with it, and now and then those that go on.

        Returns how many planned tokens are not needed any more.
        """
        going = [r for r in requests if r in self._made]
        for request, token in zip(going, self.tokens.chosen(going, index) if going else (), strict=True):
            self._made[request].append(token)
        self._end([r for r in going if self._is_over(r)])
        if self.keep and self._made and time.monotonic() - self._last >= self.every_s:
            self.keep({r: made for r, made in self._made.items() if made}, False)
            self._last = time.monotonic()
        return sum(self._lengths[r] - self.ended[r] for r in going if r in self.ended)

    def _is_over(self, request: int) -> bool:
        made = self._made[request]
        if len(made) == self._lengths[request]:
            return True
        early = self.ends is not None and self.ends(request, made)
        if early:
            self.ended[request] = len(made)
        return early

    def _end(self, requests: Sequence[int]) -> None:
        done = {request: self._made.pop(request) for request in requests}
        if done and self.keep:
            self.keep(done, True)
