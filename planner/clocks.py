"""Clocks that advance from event to event while streams slow each other: when every operation starts and ends."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from planner.columns import Columns, Floats
from planner.contention import Contention
from planner.operation import STREAMS

_H2D, _COMPUTE, _D2H = 1, 2, 4
"""Added up they name the busy streams."""
Times = tuple[list[float], list[float], list[float]]
"""Seconds from the start of the job, by stream."""


def run_clocks(columns: Columns, seconds: Floats, contention: Contention) -> tuple[Floats, Floats]:
    """[operations] start and end of every operation, which takes `seconds` while it runs alone.

    An operation starts when its stream is free and what it waits for has ended. Between two events, which are ends of
    operations, every stream keeps its speed.
    """
    queues = columns.queues
    starts, ends = _advance(
        [(*seconds[queue].tolist(), 0.0) for queue in queues], [_needs(columns, own) for own in range(len(queues))],
        contention,
    )  # fmt: skip
    start_s, end_s = np.empty(len(columns)), np.empty(len(columns))
    for queue, start, end in zip(queues, starts, ends, strict=True):
        start_s[queue], end_s[queue] = start, end
    return start_s, end_s


def _needs(columns: Columns, own: int) -> list[list[int]]:
    """Of every other stream, how many operations must have ended before each of stream `own` may start; then what never
    is."""
    queue, never = columns.queues[own], len(columns) + 1
    return [[*needs[queue].tolist(), never] if of != own else [] for of, needs in enumerate(columns.needs)]


def _advance(  # noqa: PLR0912, PLR0915 - written out
    seconds: Sequence[Sequence[float]], needs: Sequence[Sequence[Sequence[int]]], contention: Contention
) -> tuple[Times, Times]:
    """[streams][operations] starts and ends. Streams are written out: this loop is what simulating costs."""
    speeds = [contention.table[bool(b & _H2D), bool(b & _COMPUTE), bool(b & _D2H)] for b in range(2 ** len(STREAMS))]
    h_seconds, c_seconds, d_seconds = seconds
    (_, h_compute, h_d2h), (c_h2d, _, c_d2h), (d_h2d, d_compute, _) = needs
    starts: Times = ([], [], [])
    ends: Times = ([], [], [])
    (h_start, c_start, d_start), (h_end, c_end, d_end) = ([one.append for one in times] for times in (starts, ends))
    h = c = d = 0  # operations of each stream that have ended
    h_left = c_left = d_left = inf  # seconds of the running one, if it were alone; endless where none runs
    now, busy = 0.0, 0
    while True:
        again = True
        while again:  # operations of no length end at once and may let others start
            again = False
            if h_left == inf and h_compute[h] <= c and h_d2h[h] <= d:
                h_start(now)
                if h_seconds[h]:
                    h_left, busy = h_seconds[h], busy + _H2D
                else:
                    h_end(now)
                    h, again = h + 1, True
            if c_left == inf and c_h2d[c] <= h and c_d2h[c] <= d:
                c_start(now)
                if c_seconds[c]:
                    c_left, busy = c_seconds[c], busy + _COMPUTE
                else:
                    c_end(now)
                    c, again = c + 1, True
            if d_left == inf and d_h2d[d] <= h and d_compute[d] <= c:
                d_start(now)
                if d_seconds[d]:
                    d_left, busy = d_seconds[d], busy + _D2H
                else:
                    d_end(now)
                    d, again = d + 1, True
        if not busy:
            return starts, ends
        h_speed, c_speed, d_speed = speeds[busy]
        h_s, c_s, d_s = h_left / h_speed, c_left / c_speed, d_left / d_speed
        # What is left is not below nothing: rounding would let time run backwards. Not by `max`, which takes as long as
        # all the rest.
        if h_s <= c_s and h_s <= d_s:
            now += h_s
            h_end(now)
            h, h_left, busy = h + 1, inf, busy - _H2D
            c_left, d_left = c_left - h_s * c_speed, d_left - h_s * d_speed
            c_left = c_left if c_left > 0.0 else 0.0
            d_left = d_left if d_left > 0.0 else 0.0
        elif c_s <= d_s:
            now += c_s
            c_end(now)
            c, c_left, busy = c + 1, inf, busy - _COMPUTE
            h_left, d_left = h_left - c_s * h_speed, d_left - c_s * d_speed
            h_left = h_left if h_left > 0.0 else 0.0
            d_left = d_left if d_left > 0.0 else 0.0
        else:
            now += d_s
            d_end(now)
            d, d_left, busy = d + 1, inf, busy - _D2H
            h_left, c_left = h_left - d_s * h_speed, c_left - d_s * c_speed
            h_left = h_left if h_left > 0.0 else 0.0
            c_left = c_left if c_left > 0.0 else 0.0
