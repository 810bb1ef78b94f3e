"""Where the predicted time of a plan goes: what every stream and operation takes, and how much of it is exposed.

Exposed is what lies on the critical path: all other time hides behind it. Busy seconds, bytes and counts belong to
the phase of an operation's step, as in every report; exposed seconds are cut where prefill ends on the clock, so
that with the idle ones they sum to the length of the phase.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from planner.cost_terms import TERMS, TermCosts, terms
from planner.critical_path import Stretch, critical_path, cut
from planner.decisions import Decisions
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.operation import KINDS, STREAMS, Operation
from planner.schedule import Schedule
from planner.simulator import Durations, timeline_of
from planner.timeline import Span, Timeline

PHASES = ("prefill", "decode")
RESOURCES = {"link": ("h2d", "d2h"), "compute": ("compute",)}
"""What could be made faster, and the streams that it serves."""
_LAYER_KINDS = ("prefill", "rebuild", "forward")


@dataclass
class KindUse:
    """One kind of operation in one phase. Seconds, and fractions of the whole that the name says."""

    stream: str
    count: int = 0
    busy_s: float = 0.0
    each_s: float = 0.0
    stream_fraction: float = 0.0
    """Of its stream's busy time."""
    exposed_s: float = 0.0
    exposed_fraction: float = 0.0
    """Of the phase."""
    contention_s: float = 0.0
    """Of busy_s, what other streams cost it."""
    terms: dict[str, float] | None = None
    """Compute only: `gemm_s`, `attention_s`, `elementwise_s`, `overhead_s`; with contention they sum to busy_s."""
    gemms: dict[str, dict[str, float]] | None = None
    """Compute only: of each product, seconds bound by arithmetic (`arithmetic_s`) and by traffic (`memory_s`)."""


@dataclass(frozen=True)
class StreamShare:
    """One stream in one phase. Bytes cross the link; those of compute are read and written in GPU memory."""

    busy_s: float
    busy_fraction: float
    exposed_s: float
    exposed_fraction: float
    contention_s: float
    bytes: float
    bytes_per_s: float
    """While busy."""
    profile_bytes_per_s: float
    """What the profile says this stream reaches alone."""
    flop: float
    flop_per_s: float
    profile_flop_per_s: float
    """Of compute: the best GEMM rate of the profile; 0 for the link."""


@dataclass(frozen=True)
class Phase:
    """Prefill or decode."""

    phase_s: float
    steps: int
    streams: dict[str, StreamShare]
    kinds: dict[str, KindUse]
    idle_s: float
    """On the critical path, where nothing runs: 0 unless operations start later than they may."""
    contention_exposed_s: float
    """Of the exposed seconds, those lost because streams slow each other."""
    fill_s: float
    """Compute waits for its first layer, once in prefill and in every decode step; summed."""
    drain_s: float
    """At the end, with no transfer to the GPU left."""


@dataclass(frozen=True)
class WhatIf:
    """The same plan with one resource infinitely fast: what a faster one could gain at most, and what binds then."""

    total_s: float
    prefill_s: float
    decode_s: float
    then: dict[str, str]
    """By phase: the kind of operation with most exposed seconds."""


@dataclass(frozen=True)
class Attribution:
    """Where the time of one plan goes."""

    total_s: float
    phases: dict[str, Phase]
    """`prefill`, and `decode` where there is a decode step."""
    late_stores_s: float
    """Stores that end after the last token: no part of the total."""
    without: dict[str, WhatIf]
    """By resource."""

    def to_plain(self) -> dict[str, Any]:
        """Plain data, SI units in the keys."""
        return asdict(self)


def attribute(hardware: HardwareProfile, model: ModelSpec, decisions: Decisions) -> Attribution:
    """Simulate `decisions` once more and account for every second."""
    costs = TermCosts(hardware, model)
    durations = Durations(costs, decisions)
    operations = list(Schedule(model, decisions))
    timeline = timeline_of(operations, durations.of, costs, decisions)
    path = critical_path(timeline, operations)
    phases = {}
    for phase in _phases(timeline):
        window = _window(timeline, phase)
        chosen = [(op, span) for op, span in zip(operations, timeline.spans, strict=True) if phase == _phase(op)]
        phases[phase] = _Accounts(durations, timeline, phase, chosen, cut(path, *window)).phase(*window)

    def what_if(idle: Sequence[str]) -> WhatIf:
        faster = timeline_of(operations, lambda op: 0.0 if op.stream in idle else durations.of(op), costs, decisions)
        return _what_if(faster, critical_path(faster, operations))

    return Attribution(
        timeline.total_s, phases, max(0.0, max(span.end_s for span in timeline.spans) - timeline.total_s),
        {resource: what_if(streams) for resource, streams in RESOURCES.items()},
    )  # fmt: skip


def _phases(timeline: Timeline) -> Sequence[str]:
    return PHASES if timeline.decode_steps else PHASES[:1]


def _window(timeline: Timeline, phase: str) -> tuple[float, float]:
    return (0.0, timeline.prefill_s) if phase == "prefill" else (timeline.prefill_s, timeline.total_s)


def _phase(op: Operation) -> str:
    return "decode" if op.step else "prefill"


def _what_if(timeline: Timeline, path: Sequence[Stretch]) -> WhatIf:
    then = {}
    for phase in _phases(timeline):
        exposed = exposed_by_kind(cut(path, *_window(timeline, phase)))
        if exposed:
            then[phase] = max(exposed, key=lambda kind: exposed[kind])
    return WhatIf(timeline.total_s, timeline.prefill_s, timeline.decode_s, then)


def exposed_by_kind(path: Iterable[Stretch]) -> dict[str, float]:
    """Seconds of a critical path by kind of operation; idle ones do not count."""
    found: dict[str, float] = defaultdict(float)
    for stretch in path:
        if stretch.span is not None:
            found[stretch.span.kind] += stretch.seconds
    return dict(found)


class _Accounts:
    """Adds up one phase."""

    def __init__(
        self, durations: Durations, timeline: Timeline, phase: str, chosen: Sequence[tuple[Operation, Span]],
        path: Sequence[Stretch],
    ) -> None:  # fmt: skip
        self.durations, self.timeline, self.phase_name, self.path = durations, timeline, phase, path
        self.use = timeline.use(phase)
        self.kinds: dict[str, KindUse] = {}
        self.flop = self.memory_bytes = 0.0
        self._lost = {op.id: max(0.0, span.end_s - span.start_s - durations.of(op)) for op, span in chosen}
        self._add(chosen)

    def _add(self, chosen: Sequence[tuple[Operation, Span]]) -> None:
        alike: dict[tuple[str, int, int, int], list[Operation]] = defaultdict(list)
        for op, span in chosen:
            use = self._kind(op.kind, op.stream)
            use.count += 1
            use.busy_s += span.end_s - span.start_s
            use.contention_s += self._lost[op.id]
            if op.stream == "compute":
                alike[op.kind, op.step, op.part, op.offset].append(op)
        for operations in alike.values():
            self._split(operations[0], len(operations))

    def _split(self, op: Operation, count: int) -> None:
        """The terms of `count` operations that are like `op`."""
        use, cost = self._kind(op.kind, op.stream), self.durations.cost(op)
        assert use.terms is not None
        assert use.gemms is not None
        self.flop += count * cost.flops
        self.memory_bytes += count * cost.memory_bytes
        for part, seconds in terms(cost).items():
            use.terms[f"{part.term}_s"] += count * seconds
            if part.name:
                use.gemms.setdefault(part.name, {"arithmetic_s": 0.0, "memory_s": 0.0})
                use.gemms[part.name][f"{part.bound}_s"] += count * seconds

    def _kind(self, kind: str, stream: str) -> KindUse:
        found = self.kinds.get(kind)
        if found is None:
            found = self.kinds[kind] = KindUse(stream)
            if stream == "compute":
                found.terms, found.gemms = {f"{term}_s": 0.0 for term in TERMS}, {}
        return found

    def phase(self, start_s: float, end_s: float) -> Phase:
        """Everything, once all is added up."""
        phase_s = end_s - start_s
        for stretch in self.path:
            if stretch.span is not None:
                self._kind(stretch.span.kind, stretch.span.stream).exposed_s += stretch.seconds
        for kind in self.kinds.values():
            kind.each_s = kind.busy_s / kind.count if kind.count else 0.0
            busy_s = self.use[kind.stream].busy_s
            kind.stream_fraction = kind.busy_s / busy_s if busy_s else 0.0
            kind.exposed_fraction = kind.exposed_s / phase_s if phase_s else 0.0
        fills = fill_seconds(self.timeline)
        decodes = self.phase_name == "decode"
        return Phase(
            phase_s=phase_s, steps=self.timeline.decode_steps if decodes else 1,
            streams={stream: self._stream(stream, phase_s) for stream in STREAMS},
            kinds={kind: self.kinds[kind] for kind in KINDS if kind in self.kinds and kind != "begin_decode"},
            idle_s=sum(stretch.seconds for stretch in self.path if stretch.span is None),
            contention_exposed_s=self._lost_on_path(),
            fill_s=sum(fills[1:]) if decodes else fills[0], drain_s=_drain(self.timeline, start_s, end_s),
        )  # fmt: skip

    def _stream(self, stream: str, phase_s: float) -> StreamShare:
        use, mine = self.use[stream], [kind for kind in self.kinds.values() if kind.stream == stream]
        exposed_s, computes = sum(kind.exposed_s for kind in mine), stream == "compute"
        nbytes, flop = (self.memory_bytes, self.flop) if computes else (float(use.nbytes), 0.0)
        profile_bytes_per_s, profile_flop_per_s = self._profile_rates(stream)
        return StreamShare(
            busy_s=use.busy_s, busy_fraction=min(use.busy_fraction, 1.0),
            exposed_s=exposed_s, exposed_fraction=exposed_s / phase_s if phase_s else 0.0,
            contention_s=sum(kind.contention_s for kind in mine),
            bytes=nbytes, bytes_per_s=nbytes / use.busy_s if use.busy_s else 0.0,
            profile_bytes_per_s=profile_bytes_per_s,
            flop=flop, flop_per_s=flop / use.busy_s if use.busy_s else 0.0,
            profile_flop_per_s=profile_flop_per_s,
        )  # fmt: skip

    def _profile_rates(self, stream: str) -> tuple[float, float]:
        """Bytes and FLOP per second."""
        costs = self.durations.costs
        gpu, link = costs.hardware.gpu, costs.hardware.link
        if stream == "compute":
            return gpu.achieved.memory_bytes_per_s.value, gpu.gemm_rates(costs.model.dtype).best
        return (link.h2d_bytes_per_s if stream == "h2d" else link.d2h_bytes_per_s).value, 0.0

    def _lost_on_path(self) -> float:
        """Contention within the exposed stretches; a stretch cut at the end of prefill has its share of it."""
        spans = ((s.seconds, s.span) for s in self.path if s.span is not None and s.span.id in self._lost)
        return sum(self._lost[span.id] * seconds / (span.end_s - span.start_s) for seconds, span in spans)


def fill_seconds(timeline: Timeline) -> list[float]:
    """Of every step (0: prefill), how long compute waits until its first layer begins."""
    fills = [0.0] * (timeline.decode_steps + 1)
    reached, free_s = -1, 0.0
    for span in timeline.spans:
        if span.stream != "compute":
            continue
        step = 1 if span.kind == "begin_decode" else span.step
        if step > reached:
            fills[step] += span.start_s - free_s
            reached = step if span.kind in _LAYER_KINDS else reached
        free_s = span.end_s
    return fills


def _drain(timeline: Timeline, start_s: float, end_s: float) -> float:
    """From the last transfer to the GPU to the end; 0 where there is none at all, or one goes on."""
    ends = (s.end_s for s in timeline.spans if s.stream == "h2d" and s.start_s < end_s and s.end_s > start_s)
    return max(0.0, end_s - max(ends, default=end_s))
