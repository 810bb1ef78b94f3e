"""Where the predicted time of a plan goes: what every stream and operation takes, and how much of it is exposed.

Exposed is what lies on the critical path: all other time hides behind it. Busy seconds, bytes and counts belong to
the phase of an operation's step, as in every report; exposed seconds are cut where prefill ends on the clock, so
that with the idle ones they sum to the length of the phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.columns import COMPUTE, STREAM_CODE, Floats, schedule_columns
from planner.cost_terms import TERMS, TermCosts, terms
from planner.critical_path import Path, critical_path
from planner.decisions import Decisions
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.operation import KINDS, STREAM_OF, STREAMS, Operation
from planner.schedule import Schedule
from planner.simulator import Durations, timeline_of
from planner.timeline import Timeline

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
    columns = schedule_columns(Schedule(model, decisions))
    alone_s = durations.all(columns)
    timeline = timeline_of(columns, alone_s, costs, decisions)
    path = critical_path(timeline, columns)
    phases = {}
    for phase in _phases(timeline):
        window = _window(timeline, phase)
        phases[phase] = _Accounts(durations, timeline, phase, alone_s, path.cut(*window)).phase(*window)

    def what_if(idle: Sequence[str]) -> WhatIf:
        faster_s = np.where(np.isin(columns.stream, [STREAM_CODE[stream] for stream in idle]), 0.0, alone_s)
        faster = timeline_of(columns, faster_s, costs, decisions)
        return _what_if(faster, critical_path(faster, columns))

    return Attribution(
        timeline.total_s, phases, max(0.0, float(timeline.rows.end_s.max()) - timeline.total_s),
        {resource: what_if(streams) for resource, streams in RESOURCES.items()},
    )  # fmt: skip


def _phases(timeline: Timeline) -> Sequence[str]:
    return PHASES if timeline.decode_steps else PHASES[:1]


def _window(timeline: Timeline, phase: str) -> tuple[float, float]:
    return (0.0, timeline.prefill_s) if phase == "prefill" else (timeline.prefill_s, timeline.total_s)


def _what_if(timeline: Timeline, path: Path) -> WhatIf:
    then = {}
    for phase in _phases(timeline):
        exposed = exposed_by_kind(timeline, path.cut(*_window(timeline, phase)))
        if exposed:
            then[phase] = max(exposed, key=lambda kind: exposed[kind])
    return WhatIf(timeline.total_s, timeline.prefill_s, timeline.decode_s, then)


def exposed_by_kind(timeline: Timeline, path: Path) -> dict[str, float]:
    """Seconds of a critical path by kind of operation; idle ones do not count."""
    runs = path.running()
    seconds = np.bincount(timeline.rows.columns.kind[runs.op], runs.seconds, len(KINDS))
    return {kind: float(exposed) for kind, exposed in zip(KINDS, seconds, strict=True) if exposed}


class _Accounts:
    """Adds up one phase. `alone_s`: [operations] what each takes while nothing else runs."""

    def __init__(self, durations: Durations, timeline: Timeline, phase: str, alone_s: Floats, path: Path) -> None:
        self.durations, self.timeline, self.phase_name, self.path = durations, timeline, phase, path
        self.use = timeline.use(phase)
        self.kinds: dict[str, KindUse] = {}
        self.flop = self.memory_bytes = 0.0
        chosen = timeline.in_phase(phase)
        self._lost = np.where(chosen, np.maximum(timeline.rows.seconds - alone_s, 0.0), 0.0)
        self._add(chosen)

    def _add(self, chosen: npt.NDArray[np.bool_]) -> None:
        rows, columns = self.timeline.rows, self.timeline.rows.columns
        kind, codes = columns.kind[chosen], len(KINDS)
        counts = np.bincount(kind, minlength=codes).tolist()
        busy_s, lost_s = (np.bincount(kind, one[chosen], codes).tolist() for one in (rows.seconds, self._lost))
        for name, count, busy, lost in zip(KINDS, counts, busy_s, lost_s, strict=True):
            if count:
                use = self._kind(name)
                use.count, use.busy_s, use.contention_s = count, busy, lost
        alike = columns.alike
        sizes = np.bincount(alike.group, minlength=len(alike.first))
        for first, size in zip(alike.first.tolist(), sizes.tolist(), strict=True):
            if chosen[first]:
                self._split(columns.operation(first), size)

    def _split(self, op: Operation, count: int) -> None:
        """The terms of `count` operations that are like `op`."""
        use, cost = self._kind(op.kind), self.durations.cost(op)
        assert use.terms is not None
        assert use.gemms is not None
        self.flop += count * cost.flops
        self.memory_bytes += count * cost.memory_bytes
        for part, seconds in terms(cost).items():
            use.terms[f"{part.term}_s"] += count * seconds
            if part.name:
                use.gemms.setdefault(part.name, {"arithmetic_s": 0.0, "memory_s": 0.0})
                use.gemms[part.name][f"{part.bound}_s"] += count * seconds

    def _kind(self, kind: str) -> KindUse:
        found = self.kinds.get(kind)
        if found is None:
            stream = STREAM_OF[kind]
            found = self.kinds[kind] = KindUse(stream)
            if stream == "compute":
                found.terms, found.gemms = {f"{term}_s": 0.0 for term in TERMS}, {}
        return found

    def phase(self, start_s: float, end_s: float) -> Phase:
        """Everything, once all is added up."""
        phase_s = end_s - start_s
        for name, seconds in exposed_by_kind(self.timeline, self.path).items():
            self._kind(name).exposed_s += seconds
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
            idle_s=self.path.idle_s,
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
        runs, seconds = self.path.running(), self.timeline.rows.seconds
        return float((self._lost[runs.op] * runs.seconds / seconds[runs.op]).sum())


def fill_seconds(timeline: Timeline) -> list[float]:
    """Of every step (0: prefill), how long compute waits until its first layer begins."""
    rows, columns = timeline.rows, timeline.rows.columns
    queue = columns.queues[COMPUTE]
    step = np.where(columns.is_kind("begin_decode"), 1, columns.step)[queue]
    waited_s = rows.start_s[queue] - np.concatenate(([0.0], rows.end_s[queue[:-1]]))
    begun = np.maximum.accumulate(np.where(columns.is_kind(*_LAYER_KINDS)[queue], step, -1))
    early = step > np.concatenate(([-1], begun[:-1]))
    return [float(fill) for fill in np.bincount(step[early], waited_s[early], timeline.decode_steps + 1)]


def _drain(timeline: Timeline, start_s: float, end_s: float) -> float:
    """From the last transfer to the GPU to the end; 0 where there is none at all, or one goes on."""
    rows = timeline.rows
    queue = rows.columns.queues[STREAM_CODE["h2d"]]
    ends = rows.end_s[queue][(rows.start_s[queue] < end_s) & (rows.end_s[queue] > start_s)]
    return max(0.0, end_s - float(ends.max(initial=0.0))) if len(ends) else 0.0
