"""The chain of operations that a timeline's length is made of: each began when the one before it ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.columns import Columns, Floats, Ints
from planner.timeline import Timeline

IDLE = -1


@dataclass(frozen=True)
class Path:
    """Stretches of time in order, without overlap. Shapes: [stretches]."""

    op: Ints
    """The operation that each is the time of, by its place in the timeline; `IDLE` where nothing runs."""
    start_s: Floats
    end_s: Floats

    @property
    def seconds(self) -> Floats:
        return self.end_s - self.start_s

    @property
    def idle_s(self) -> float:
        """In which nothing runs."""
        return float(self.seconds[self.op == IDLE].sum())

    def cut(self, start_s: float, end_s: float) -> Path:
        """What lies between two instants."""
        starts, ends = np.maximum(self.start_s, start_s), np.minimum(self.end_s, end_s)
        left = ends > starts
        return Path(self.op[left], starts[left], ends[left])

    def running(self) -> Path:
        """Without the idle stretches."""
        runs = self.op != IDLE
        return Path(self.op[runs], self.start_s[runs], self.end_s[runs])


def critical_path(timeline: Timeline, columns: Columns) -> Path:
    """From 0 to the last token.

    `columns` are the operations of the timeline, with what they wait for. An operation starts when its stream is free
    and what it waits for has ended: the walk goes back from the last token to whichever of these ended last, and stays
    on the stream where several did. Between that end and the start nothing is waited for, so the stretch is idle.
    """
    before = _predecessors(timeline, columns).tolist()
    chain = []
    at = _last(timeline)
    while at >= 0:
        chain.append(at)
        at = before[at]
    ops = np.array(chain[::-1])
    starts, ends = timeline.rows.start_s[ops], timeline.rows.end_s[ops]
    free_s = np.concatenate(([0.0], ends[:-1]))
    # Before each operation lies what may be idle.
    return Path(
        np.column_stack((np.full(len(ops), IDLE), ops)).ravel(),
        np.column_stack((free_s, starts)).ravel(), np.column_stack((starts, ends)).ravel(),
    ).cut(0.0, ends[-1])  # fmt: skip


def _last(timeline: Timeline) -> int:
    """The operation that ends with the last token: stores may end after it."""
    samples = np.flatnonzero(timeline.rows.columns.is_kind("sample"))
    return int(samples[timeline.rows.end_s[samples].argmax()])


def _predecessors(timeline: Timeline, columns: Columns) -> Ints:
    """[operations] the one that ended last of what each had to wait for, -1 where that is nothing.

    Of several the first one counts, and the one before on the same stream comes before what `waits` names.
    """
    ends, waiting = timeline.rows.end_s, columns.waiting
    found = np.full(len(columns), -1)
    for queue in columns.queues:
        found[queue[1:]] = queue[:-1]
    own = np.where(found >= 0, ends[found], -1.0)
    latest = own.copy()
    np.maximum.at(latest, waiting, ends[columns.waits])
    decides = (ends[columns.waits] == latest[waiting]) & (latest > own)[waiting]
    # Written from the last wait to the first, so that the first of several stays.
    found[waiting[decides][::-1]] = columns.waits[decides][::-1]
    return found
