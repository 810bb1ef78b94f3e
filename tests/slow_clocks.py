"""Clocks that go from one operation object to the next: slow, plain, and what the fast ones are held against."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from planner.clocks import run_clocks
from planner.columns import columns_of
from planner.contention import Contention
from planner.operation import STREAMS, Operation
from planner.timeline import Span, Spans


def fast(operations: Iterable[Operation], duration: Callable[[Operation], float], contention: Contention) -> list[Span]:
    """The clocks of the simulator, over operation objects."""
    ops = list(operations)
    columns = columns_of(ops)
    return list(Spans(columns, *run_clocks(columns, np.array([duration(op) for op in ops]), contention)))


def advance(operations: Iterable[Operation], duration: Callable[[Operation], float]) -> list[Span]:
    """Earliest starts, where streams do not slow each other.

    Each operation begins when its stream is free and what it waits for has ended.
    """
    clock = dict.fromkeys(STREAMS, 0.0)
    ends: list[float] = []
    spans: list[Span] = []
    for op in operations:
        start = clock[op.stream]
        for wait in op.waits:
            start = max(start, ends[wait])
        end = start + duration(op)
        clock[op.stream] = end
        ends.append(end)
        spans.append(Span(op.id, op.kind, op.stream, op.step, op.layer, op.part, start, end, op.nbytes))
    return spans


class Clocks:
    """Advances three streams from event to event; between two events every stream keeps its speed."""

    def __init__(self, operations: Iterable[Operation], duration: Callable[[Operation], float], table: Contention):
        self._source: Iterator[Operation] = iter(operations)
        self._duration, self._table = duration, table.table
        self._queues: dict[str, deque[Operation]] = {stream: deque() for stream in STREAMS}
        self._running: list[Operation | None] = [None, None, None]
        self._left = [0.0, 0.0, 0.0]
        self._began = [0.0, 0.0, 0.0]
        self._ended: set[int] = set()
        self._spans: list[Span | None] = []
        self._now = 0.0

    def run(self) -> list[Span]:
        """Spans of all operations, in issue order."""
        while True:
            self._start_what_can()
            busy = [i for i, op in enumerate(self._running) if op is not None]
            if not busy:
                break
            speeds = self._table[
                self._running[0] is not None, self._running[1] is not None, self._running[2] is not None
            ]
            first = min(busy, key=lambda i: self._left[i] / speeds[i])
            passed = self._left[first] / speeds[first]
            self._now += passed
            for i in busy:  # not below nothing: rounding would let time run backwards
                self._left[i] = max(self._left[i] - passed * speeds[i], 0.0)
            self._finish(first)
        return [span for span in self._spans if span is not None]

    def _start_what_can(self) -> None:
        """One operation of each stream, if nothing it waits for is still to end; those of no length end at once."""
        again = True
        while again:
            again = False
            for i, stream in enumerate(STREAMS):
                if self._running[i] is not None:
                    continue
                op = self._head(stream)
                if op is None or not self._ended.issuperset(op.waits):
                    continue
                self._queues[stream].popleft()
                self._running[i], self._left[i], self._began[i] = op, self._duration(op), self._now
                if not self._left[i]:
                    self._finish(i)
                    again = True

    def _finish(self, i: int) -> None:
        op = self._running[i]
        assert op is not None
        self._running[i], self._left[i] = None, 0.0
        self._ended.add(op.id)
        self._spans[op.id] = Span(
            op.id, op.kind, op.stream, op.step, op.layer, op.part, self._began[i], self._now, op.nbytes
        )

    def _head(self, stream: str) -> Operation | None:
        """The next operation of `stream`, read from the schedule as far as needed."""
        queue = self._queues[stream]
        while not queue:
            op = next(self._source, None)
            if op is None:
                return None
            self._spans.append(None)
            self._queues[op.stream].append(op)
        return queue[0]
