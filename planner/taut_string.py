"""The straightest path between two staircases."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf


def taut_string(begin: float, end: float, low: Sequence[float], high: Sequence[float]) -> list[float]:
    """[points] the shortest path from `begin` to `end`, its first and last point, that stays within `low` and `high`
    at those between: from each corner as straight as it goes, to where `low` and `high` leave no straight line."""
    found, last = [begin], len(low) - 1
    low, high = [*low[:last], end], [*high[:last], end]
    while (corner := len(found) - 1) < last:
        steepest, flattest = inf, -inf
        reached = by_high = by_low = last, end
        for at in range(corner + 1, last + 1):
            least, most = ((bound[at] - found[corner]) / (at - corner) for bound in (low, high))
            if least > steepest or most < flattest:
                reached = by_high if least > steepest else by_low
                break
            if least >= flattest:
                flattest, by_low = least, (at, low[at])
            if most <= steepest:
                steepest, by_high = most, (at, high[at])
        to, value = reached
        slope = (value - found[corner]) / (to - corner)
        found += [found[corner] + slope * (at - corner) for at in range(corner + 1, to)] + [value]
    return found
