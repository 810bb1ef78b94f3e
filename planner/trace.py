"""Timelines as a Chrome trace, which Perfetto opens: one process per timeline, one lane per stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.files import write_whole
from planner.operation import STREAMS
from planner.timeline import Timeline

MICROSECONDS = 1e6


def trace_events(timelines: Mapping[str, Timeline]) -> list[dict[str, Any]]:
    """Events of every timeline, each its own process, in the order given (e.g. predicted, measured)."""
    events: list[dict[str, Any]] = []
    for pid, (name, timeline) in enumerate(timelines.items(), start=1):
        events.append(_meta("process_name", pid, 0, name))
        for tid, stream in enumerate(STREAMS, start=1):
            events.append(_meta("thread_name", pid, tid, stream))
            events.append({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}})
        for span in timeline.spans:
            events.append(
                {
                    "ph": "X",
                    "name": f"{span.kind} {span.layer}" if span.layer >= 0 else span.kind,
                    "cat": span.stream,
                    "pid": pid,
                    "tid": STREAMS.index(span.stream) + 1,
                    "ts": round(span.start_s * MICROSECONDS, 3),
                    "dur": round((span.end_s - span.start_s) * MICROSECONDS, 3),
                    "args": {"step": span.step, "layer": span.layer, "mini_batch": span.part, "bytes": span.nbytes},
                }
            )
    return events


def write_trace(path: Path, timelines: Mapping[str, Timeline]) -> None:
    """Write a trace file; InputError when the path is not writable."""
    document = {"traceEvents": trace_events(timelines), "displayTimeUnit": "ms"}
    write_whole(path, json.dumps(document, separators=(",", ":")))


def _meta(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
