"""How streams slow each other while they run together, and the clocks that advance under it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from planner.link import Link
from planner.operation import STREAMS, Operation
from planner.timeline import Span

Speeds = tuple[float, float, float]
"""Of (h2d, compute, d2h), relative to running alone."""


@dataclass(frozen=True)
class Contention:
    """Speed of every stream by which of them are busy, from the rates that the profile gives for both together."""

    link: Link

    def speeds(self, h2d: bool, compute: bool, d2h: bool) -> Speeds:
        """Speeds while exactly the named streams are busy."""
        link = self.link
        beside_compute = min(1.0, link.during_compute.value) if compute else 1.0
        return (
            (link.beside_d2h if d2h else 1.0) * beside_compute,
            1.0 - (link.compute_lost_to_h2d if h2d else 0.0) - (link.compute_lost_to_d2h if d2h else 0.0),
            (link.beside_h2d if h2d else 1.0) * beside_compute,
        )

    @cached_property
    def table(self) -> dict[tuple[bool, bool, bool], Speeds]:
        """All eight cases."""
        either = (False, True)
        cases = product(either, either, either)
        return {(up, compute, down): self.speeds(up, compute, down) for up, compute, down in cases}

    @property
    def none(self) -> bool:
        """True when nothing slows anything."""
        return all(speed == 1.0 for speeds in self.table.values() for speed in speeds)


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
