"""The record that the simulator and the engine both produce: what ran on which stream, from when to when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from planner.columns import Columns, Floats, columns_of
from planner.operation import KINDS, STREAMS, Operation


class Span(NamedTuple):
    """One operation as it ran, seconds from the start of the job."""

    id: int
    kind: str
    stream: str
    step: int
    layer: int
    part: int
    start_s: float
    end_s: float
    nbytes: int


class Spans(Sequence[Span]):
    """Spans kept as columns; each is made when it is asked for."""

    def __init__(self, columns: Columns, start_s: Floats, end_s: Floats) -> None:
        self.columns, self.start_s, self.end_s = columns, start_s, end_s

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Spans:
        """The same spans as columns. Ids count from the first."""
        if isinstance(spans, Spans):
            return spans
        ops = (Operation(i, s.kind, s.stream, s.step, s.layer, s.part, nbytes=s.nbytes) for i, s in enumerate(spans))
        return cls(columns_of(ops), np.array([s.start_s for s in spans]), np.array([s.end_s for s in spans]))

    def part(self, first: int, last: int) -> Spans:
        """Spans `first` to before `last`, with ids from 0."""
        return Spans(self.columns.part_of(first, last), self.start_s[first:last], self.end_s[first:last])

    @cached_property
    def seconds(self) -> Floats:
        """How long each took."""
        return self.end_s - self.start_s

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, at: int) -> Span: ...
    @overload
    def __getitem__(self, at: slice) -> list[Span]: ...
    def __getitem__(self, at: int | slice) -> Span | list[Span]:
        rows = range(len(self))[at]
        return self._span(rows) if isinstance(rows, int) else list(self._spans(rows))

    def __iter__(self) -> Iterator[Span]:
        return self._spans(range(len(self)))

    def _span(self, row: int) -> Span:
        return next(self._spans(range(row, row + 1)))

    def _spans(self, rows: range) -> Iterator[Span]:
        c, at = self.columns, np.array(rows, np.int64)
        numbers = (c.kind, c.stream, c.step, c.layer, c.part, self.start_s, self.end_s, c.nbytes)
        for row, (kind, stream, *more) in zip(
            rows, zip(*(one[at].tolist() for one in numbers), strict=True), strict=True
        ):
            yield Span(row, KINDS[kind], STREAMS[stream], *more)


@dataclass(frozen=True)
class StreamUse:
    """How one stream spent a stretch of time."""

    busy_s: float
    nbytes: int
    span_s: float

    @property
    def busy_fraction(self) -> float:
        return self.busy_s / self.span_s if self.span_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Achieved while busy."""
        return self.nbytes / self.busy_s if self.busy_s else 0.0


@dataclass(frozen=True)
class Timeline:
    """Spans in issue order, with the generated tokens that they made."""

    spans: Sequence[Span] = field(repr=False)
    generated_tokens: int

    @cached_property
    def rows(self) -> Spans:
        """The spans as columns."""
        return Spans.of(self.spans)

    @cached_property
    def step_ends_s(self) -> list[float]:
        """When the last token of each step was chosen; entry 0 is the end of prefill."""
        samples = self.rows.columns.is_kind("sample")
        steps, at = np.unique(self.rows.columns.step[samples], return_inverse=True)
        ends = np.zeros(len(steps))
        np.maximum.at(ends, at, self.rows.end_s[samples])
        return [float(end) for end in ends]

    @property
    def prefill_s(self) -> float:
        return self.step_ends_s[0]

    @property
    def total_s(self) -> float:
        return self.step_ends_s[-1]

    @property
    def decode_s(self) -> float:
        return self.total_s - self.prefill_s

    @property
    def decode_steps(self) -> int:
        return len(self.step_ends_s) - 1

    @property
    def decode_step_s(self) -> float:
        """Mean decode step; 0 when the job ends with prefill."""
        return self.decode_s / self.decode_steps if self.decode_steps else 0.0

    @property
    def throughput_tokens_per_s(self) -> float:
        """Generated tokens over prefill plus decode time, as the paper counts."""
        return self.generated_tokens / self.total_s

    def in_phase(self, phase: str) -> npt.NDArray[np.bool_]:
        """[spans] which belong to `prefill`, `decode` or `all`, by their step."""
        step = self.rows.columns.step
        chosen: dict[str, npt.NDArray[np.bool_]] = {"prefill": step == 0, "decode": step > 0, "all": step >= 0}
        return chosen[phase]

    def use(self, phase: str = "all") -> dict[str, StreamUse]:
        """Busy time and bytes of each stream in `prefill`, `decode` or `all`."""
        span_s = {"prefill": self.prefill_s, "decode": self.decode_s, "all": self.total_s}[phase]
        columns, chosen = self.rows.columns, self.in_phase(phase)
        found = {}
        for stream, queue in zip(STREAMS, columns.queues, strict=True):
            mine = queue[chosen[queue]]
            found[stream] = StreamUse(float(self.rows.seconds[mine].sum()), int(columns.nbytes[mine].sum()), span_s)
        return found

    def by_kind(self, phase: str = "all") -> dict[str, float]:
        """Seconds spent in each kind of operation."""
        chosen = self.in_phase(phase)
        kind = self.rows.columns.kind[chosen]
        seconds = np.bincount(kind, self.rows.seconds[chosen], len(KINDS))
        return {KINDS[code]: float(seconds[code]) for code in np.unique(kind)}

    @property
    def binding(self) -> str:
        """The stream that decode is limited by: `link` or `compute`."""
        use = self.use("decode" if self.decode_steps else "prefill")
        link = max(use["h2d"].busy_s, use["d2h"].busy_s)
        return "link" if link > use["compute"].busy_s else "compute"
