"""Timelines of a plan as a Chrome trace, which Perfetto opens: one process per timeline, one lane per stream.

Several timelines are aligned step by step: each step begins in all of them when the slowest has come to it, so that
what is drawn above each other is the same work. Where that moves an operation, its arguments keep when it really began.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from planner.columns import COMPUTE, Columns, Floats, Ints, schedule_columns
from planner.decisions import Decisions
from planner.errors import HybridserveError
from planner.files import write_whole
from planner.operation import KINDS, STREAMS
from planner.plan import Plan
from planner.schedule import Schedule
from planner.timeline import Timeline
from planner.trace_memory import memory_in_use
from planner.wave_timeline import WavesTimeline

STEPS = "steps"
"""The lane above those of the streams."""
Event = dict[str, Any]


def write_trace(path: Path, plan: Plan, timelines: Mapping[str, Timeline]) -> None:
    """Write a trace file of timelines of `plan`; InputError when the path is not writable."""
    document = {"traceEvents": trace_events(plan, timelines), "displayTimeUnit": "ms"}
    write_whole(path, json.dumps(document, separators=(",", ":")))


def trace_events(plan: Plan, timelines: Mapping[str, Timeline]) -> list[Event]:
    """Events of every timeline, each its own process, in the order given (e.g. predicted, measured).

    HybridserveError where a timeline is not one of `plan`.
    """
    job = Job.of(plan)
    for name, one in timelines.items():
        if len(one.spans) != len(job.step):
            raise HybridserveError(f"the {name} timeline has {len(one.spans)} operations, the plan {len(job.step)}")
    begins = {name: step_begins_s(one) for name, one in timelines.items()}
    shown = aligned(list(begins.values()))
    events: list[Event] = []
    for pid, (name, timeline) in enumerate(timelines.items(), start=1):
        process = _Process(pid, job, timeline, begins[name], shown)
        events += process.named(name, "aligned step by step" if len(timelines) > 1 else "")
        events += [*process.steps(), *process.operations(), *process.counters()]
    return events


@dataclass(frozen=True)
class Job:
    """What the operations of a plan are, whichever timeline they are in. Shapes: [operations], in issue order."""

    waves: Sequence[Decisions]
    columns: Sequence[Columns]
    """Of each wave."""
    step: Ints
    """Counted through all waves: each wave begins with its prefill."""
    memory: Sequence[Mapping[str, Mapping[str, int]]]
    """[steps] by counter and series, bytes in use."""

    @classmethod
    def of(cls, plan: Plan) -> Job:
        known: dict[object, Columns] = {}
        for wave in plan.waves:
            if wave.shape not in known:
                known[wave.shape] = schedule_columns(Schedule(plan.model, wave))
        columns = [known[wave.shape] for wave in plan.waves]
        before = np.cumsum([0, *(wave.decode_steps + 1 for wave in plan.waves)])[:-1]
        step = np.concatenate([one.step + first for one, first in zip(columns, before.tolist(), strict=True)])
        return cls(plan.waves, columns, step, [one for wave in plan.waves for one in memory_in_use(plan.model, wave)])

    @cached_property
    def step_names(self) -> list[str]:
        """[steps] as a person counts them."""
        several = len(self.waves) > 1
        return [
            (f"wave {w + 1}, " if several else "") + (f"step {step}" if step else "prefill")
            for w, wave in enumerate(self.waves)
            for step in range(wave.decode_steps + 1)
        ]

    @cached_property
    def arrows(self) -> list[tuple[int, int]]:
        """(transfer, operation) for every transfer and the first operation of each stream that waits for it."""
        found: list[tuple[int, int]] = []
        first = 0
        for columns in self.columns:
            seen: set[tuple[int, int]] = set()
            for waiting, source in zip(columns.waiting.tolist(), columns.waits.tolist(), strict=True):
                key = (source, int(columns.stream[waiting]))
                if columns.stream[source] != COMPUTE and key not in seen:
                    seen.add(key)
                    found.append((first + source, first + waiting))
            first += len(columns)
        return found

    @cached_property
    def leaving(self) -> dict[int, list[int]]:
        """Numbers of the arrows that leave each operation."""
        return _numbers(source for source, _ in self.arrows)

    @cached_property
    def reaching(self) -> dict[int, list[int]]:
        """Numbers of the arrows that reach each operation."""
        return _numbers(target for _, target in self.arrows)

    def operations(self) -> Iterator[tuple[str, int, Event]]:
        """Name, lane and arguments of each operation."""
        for wave, columns in zip(self.waves, self.columns, strict=True):
            numbers = (columns.kind, columns.stream, columns.step, columns.layer, columns.part, columns.nbytes,
                       columns.offset)  # fmt: skip
            for code, stream, step, layer, part, nbytes, offset in zip(*(c.tolist() for c in numbers), strict=True):
                kind, args = KINDS[code], {"step": step}
                if layer >= 0:
                    args["layer"] = layer
                if step == 0 and kind in ("embed", "prefill", "sample", "store"):
                    args |= {"pass": offset, "chunk": part}
                    args["mini_batch"] = wave.prefill_passes[offset][part].mini_batch
                elif kind not in ("load_weights", "begin_decode"):
                    args["mini_batch"] = part
                if nbytes:
                    args["bytes"] = nbytes
                yield f"{kind} {layer}" if layer >= 0 else kind, stream, args


def _numbers(operations: Iterable[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for number, operation in enumerate(operations):
        found.setdefault(operation, []).append(number)
    return found


def step_begins_s(timeline: Timeline) -> Floats:
    """[steps + 1] when each step of all waves begins, and when the last operation ends."""
    ends, last_s = timeline.step_ends_s, float(timeline.rows.end_s.max())
    if not isinstance(timeline, WavesTimeline):
        return np.array([0.0, *ends[:-1], last_s])
    found: list[float] = []
    steps = iter(ends)
    for begin_s, spans in zip(timeline.wave_begins_s, timeline.wave_spans, strict=True):
        found.append(begin_s)
        found += [next(steps) for _ in range(int(spans.columns.step.max()))]
        next(steps)
    return np.array([*found, last_s])


def aligned(begins: Sequence[Floats]) -> Floats:
    """[steps + 1] when each step is shown to begin, given when it begins in every timeline: as long as the slowest."""
    longest = np.max([np.diff(one) for one in begins], axis=0)
    return np.concatenate([[0.0], np.cumsum(longest)])


@dataclass(frozen=True)
class _Process:
    """The events of one timeline. Times in the file are microseconds with whole nanoseconds."""

    pid: int
    job: Job
    timeline: Timeline
    begins_s: Floats
    shown_s: Floats

    @cached_property
    def _ns(self) -> tuple[list[int], list[int]]:
        """[operations] starts and ends as shown. Later steps are never moved by less, so order stays as it was."""
        later = (self.shown_s - self.begins_s)[self.job.step]
        rows = self.timeline.rows
        starts, ends = (np.rint(1e9 * (one + later)).astype(np.int64) for one in (rows.start_s, rows.end_s))
        return starts.tolist(), ends.tolist()

    def named(self, name: str, label: str) -> Iterator[Event]:
        """Names and order of the process and its lanes."""
        yield self._meta("process_name", 0, {"name": name})
        if label:
            yield self._meta("process_labels", 0, {"labels": label})
        yield self._meta("process_sort_index", 0, {"sort_index": self.pid})
        for lane, stream in enumerate((STEPS, *STREAMS)):
            yield self._meta("thread_name", lane, {"name": stream})
            yield self._meta("thread_sort_index", lane, {"sort_index": lane})

    def steps(self) -> Iterator[Event]:
        """Prefill and every decode step, as long as they really took."""
        took = np.diff(self.begins_s).tolist()
        for i, (name, begins_s, took_s) in enumerate(
            zip(self.job.step_names, self.shown_s.tolist(), took, strict=False)
        ):
            yield self._slice(name, 0, round(1e9 * begins_s), round(1e9 * (begins_s + took_s)), {"step": i})

    def operations(self) -> Iterator[Event]:
        """Every operation on the lane of its stream, with the arrows that leave and reach it.

        Arrows belong to the slice that began last on their lane, so they follow it in the file.
        """
        rows = zip(self.job.operations(), *self._ns, self.timeline.rows.start_s.tolist(), strict=True)
        for i, ((name, stream, args), start, end, began_s) in enumerate(rows):
            yield self._slice(name, stream + 1, start, end, {**args, "began_s": round(began_s, 9)})
            for arrow in self.job.leaving.get(i, ()):
                yield self._arrow("s", arrow, stream + 1, start + (end - start) // 2)
            for arrow in self.job.reaching.get(i, ()):
                yield self._arrow("f", arrow, stream + 1, start)

    def counters(self) -> Iterator[Event]:
        """Bytes in use from step to step, and what each direction of the link achieves while it is busy."""
        for used, begins_s in zip(self.job.memory, self.shown_s.tolist(), strict=False):
            for name, series in used.items():
                yield self._counter(name, round(1e9 * begins_s), {key: value / 1e9 for key, value in series.items()})
        starts, ends = self._ns
        first = 0
        rates: dict[str, list[tuple[int, float]]] = {"h2d": [], "d2h": []}
        for columns in self.job.columns:
            for stream, found in rates.items():
                for row in columns.queues[STREAMS.index(stream)].tolist():
                    start, end = starts[first + row], ends[first + row]
                    if end > start:
                        found += [(start, float(columns.nbytes[row]) / (end - start)), (end, 0.0)]
            first += len(columns)
        for stream, found in rates.items():
            for at, rate in _changes(found):
                yield self._counter(f"{stream} GB/s", at, {"achieved": round(rate, 6)})

    def _slice(self, name: str, lane: int, start: int, end: int, args: Event) -> Event:
        # Differences of rounded times: no slice reaches a nanosecond into the next.
        shared = {"name": name, "cat": (STEPS, *STREAMS)[lane], "pid": self.pid, "tid": lane}
        return {"ph": "X", **shared, "ts": start / 1e3, "dur": (end - start) / 1e3, "args": args}

    def _arrow(self, phase: str, number: int, lane: int, at: int) -> Event:
        shared = {"name": "waits for", "cat": "wait", "id": self.pid * 10**9 + number, "pid": self.pid, "tid": lane}
        return {"ph": phase, **shared, "ts": at / 1e3, **({"bp": "e"} if phase == "f" else {})}

    def _counter(self, name: str, at: int, args: Event) -> Event:
        return {"ph": "C", "name": name, "pid": self.pid, "ts": at / 1e3, "args": args}

    def _meta(self, kind: str, lane: int, args: Event) -> Event:
        return {"ph": "M", "name": kind, "pid": self.pid, "tid": lane, "args": args}


def _changes(samples: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Only where the value changes, the last one at each time."""
    last: float | None = None
    for i, (at, value) in enumerate(samples):
        if value != last and (i + 1 == len(samples) or samples[i + 1][0] != at):
            yield at, value
            last = value
