"""The record that the simulator and the engine both produce: what ran on which stream, from when to when."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from planner.operation import STREAMS


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

    spans: list[Span] = field(repr=False)
    generated_tokens: int

    @cached_property
    def step_ends_s(self) -> list[float]:
        """When the last token of each step was chosen; entry 0 is the end of prefill."""
        ends: dict[int, float] = defaultdict(float)
        for span in self.spans:
            if span.kind == "sample":
                ends[span.step] = max(ends[span.step], span.end_s)
        return [ends[step] for step in sorted(ends)]

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

    def use(self, phase: str = "all") -> dict[str, StreamUse]:
        """Busy time and bytes of each stream in `prefill`, `decode` or `all`."""
        span_s = {"prefill": self.prefill_s, "decode": self.decode_s, "all": self.total_s}[phase]
        busy: dict[str, float] = defaultdict(float)
        moved: dict[str, int] = defaultdict(int)
        for span in self.spans:
            if phase == "all" or (span.step == 0) == (phase == "prefill"):
                busy[span.stream] += span.end_s - span.start_s
                moved[span.stream] += span.nbytes
        return {stream: StreamUse(busy[stream], moved[stream], span_s) for stream in STREAMS}

    def by_kind(self, phase: str = "all") -> dict[str, float]:
        """Seconds spent in each kind of operation."""
        total: dict[str, float] = defaultdict(float)
        for span in self.spans:
            if phase == "all" or (span.step == 0) == (phase == "prefill"):
                total[span.kind] += span.end_s - span.start_s
        return dict(total)

    @property
    def binding(self) -> str:
        """The stream that decode is limited by: `link` or `compute`."""
        use = self.use("decode" if self.decode_steps else "prefill")
        link = max(use["h2d"].busy_s, use["d2h"].busy_s)
        return "link" if link > use["compute"].busy_s else "compute"
