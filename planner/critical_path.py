"""The chain of operations that a timeline's length is made of: each began when the one before it ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from planner.operation import Operation
from planner.timeline import Span, Timeline


class Stretch(NamedTuple):
    """A stretch of the total time that one operation accounts for; nothing does where `span` is None."""

    span: Span | None
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def critical_path(timeline: Timeline, operations: Iterable[Operation]) -> list[Stretch]:
    """Stretches in order of time, from 0 to the last token, without overlap.

    `operations` are those of the timeline, in issue order. An operation starts when its stream is free and what it
    waits for has ended: the walk goes back from the last token to whichever of these ended last, and stays on the
    stream where several did. Between that end and the start nothing is waited for, so the stretch is idle.
    """
    spans, before = timeline.spans, _predecessors(operations)
    at: int | None = _last(timeline)
    found: list[Stretch] = []
    while at is not None:
        span = spans[at]
        # The first of `before` is the stream's own: max keeps it where others end with it.
        previous = max(before[at], key=lambda i: spans[i].end_s, default=None)
        free_s = spans[previous].end_s if previous is not None else 0.0
        if span.end_s > span.start_s:
            found.append(Stretch(span, span.start_s, span.end_s))
        if span.start_s > free_s:
            found.append(Stretch(None, free_s, span.start_s))
        at = previous
    return found[::-1]


def _last(timeline: Timeline) -> int:
    """The operation that ends with the last token: stores may end after it."""
    samples = (i for i, span in enumerate(timeline.spans) if span.kind == "sample")
    return max(samples, key=lambda i: timeline.spans[i].end_s)


def _predecessors(operations: Iterable[Operation]) -> list[Sequence[int]]:
    """Of every operation: the one before it on its stream, if any, then what it waits for."""
    newest: dict[str, int] = {}
    found: list[Sequence[int]] = []
    for op in operations:
        found.append((newest[op.stream], *op.waits) if op.stream in newest else op.waits)
        newest[op.stream] = op.id
    return found


def cut(path: Iterable[Stretch], start_s: float, end_s: float) -> list[Stretch]:
    """What of `path` lies between two instants."""
    clipped = (Stretch(s.span, max(s.start_s, start_s), min(s.end_s, end_s)) for s in path)
    return [stretch for stretch in clipped if stretch.end_s > stretch.start_s]
