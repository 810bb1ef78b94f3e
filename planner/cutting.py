"""Who runs with whom in a job in waves.

Requests that end together belong together: a wave runs until its longest request has ended, and every step loads the
weights once for all. So requests are sorted by generation length and cut into consecutive waves of equal memory demand.
But a wave holds less in its first steps than in its last, since every request grows. So those that end first may be
dealt to all waves instead of making waves of their own: their blocks are gone when those of the others come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planner.forms import blocks_for
from planner.workload import Request, by_length


class Cut(NamedTuple):
    """One way to cut a job into waves."""

    waves: int
    dealt: float = 0.0
    """Of all blocks those of the requests that end first, which are dealt to all waves."""


def cut(requests: Sequence[Request], how: Cut) -> list[list[int]]:
    """Request numbers of each wave, by generation length, then prompt length; about equal blocks in the end.

    No wave is empty. Equal requests make waves of at most two sizes.
    """
    order = sorted(range(len(requests)), key=lambda r: by_length(requests[r]))
    sizes = {r: blocks_for(requests[r].positions) for r in order}
    first, room = 0, how.dealt * sum(sizes.values())
    while first < len(order) - how.waves and sizes[order[first]] <= room:
        room -= sizes[order[first]]
        first += 1
    waves, dealt = _consecutive(order[first:], sizes, how.waves), _dealt(order[:first], sizes, how.waves)
    return [soon_gone + longer for soon_gone, longer in zip(dealt, waves, strict=True)]


def _consecutive(order: Sequence[int], sizes: dict[int, int], count: int) -> list[list[int]]:
    total, held, position = sum(sizes[r] for r in order), 0, 0
    waves: list[list[int]] = []
    for wave in range(1, count + 1):
        first, last = position, len(order) - (count - wave)
        while position < last and (position == first or (held + sizes[order[position]]) * count <= wave * total):
            held += sizes[order[position]]
            position += 1
        waves.append(list(order[first:position]))
    waves[-1] += order[position:]
    return waves


def _dealt(order: Sequence[int], sizes: dict[int, int], count: int) -> list[list[int]]:
    """The longest first, each to the wave with least of them."""
    waves: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for r in reversed(order):
        wave = min(range(count), key=load.__getitem__)
        waves[wave].insert(0, r)
        load[wave] += sizes[r]
    return waves
