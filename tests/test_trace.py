"""Traces that Perfetto opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.timeline import Span, Timeline
from planner.trace import trace_events, write_trace

LEFT = Timeline(
    [Span(0, "load_kv", "h2d", 1, 2, 0, 0.5, 0.75, 4096), Span(1, "sample", "compute", 1, -1, 0, 0.75, 1.0, 0)], 1
)
RIGHT = Timeline([Span(0, "load_kv", "h2d", 1, 2, 0, 0.5, 1.0, 4096)], 1)


def test_spans_carry_name_lane_time_and_bytes() -> None:
    first, second, third = (e for e in trace_events({"predicted": LEFT, "measured": RIGHT}) if e["ph"] == "X")
    assert (first["name"], first["pid"], first["tid"], first["ts"], first["dur"]) == (
        "load_kv 2",
        1,
        1,
        500_000,
        250_000,
    )
    assert first["args"] == {"step": 1, "layer": 2, "mini_batch": 0, "bytes": 4096}
    assert (second["name"], second["cat"]) == ("sample", "compute")
    assert (third["pid"], third["dur"]) == (2, 500_000)


def test_processes_and_lanes_are_named_in_order() -> None:
    meta = [e for e in trace_events({"predicted": LEFT, "measured": RIGHT}) if e["ph"] == "M"]
    assert [e["args"]["name"] for e in meta if e["name"] == "process_name"] == ["predicted", "measured"]
    lanes = [e["args"]["name"] for e in meta if e["name"] == "thread_name"]
    assert lanes == ["h2d", "compute", "d2h"] * 2
    assert [e["args"]["sort_index"] for e in meta if e["name"] == "thread_sort_index"] == [1, 2, 3] * 2


def test_write_trace(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", {"predicted": LEFT})
    assert json.loads((tmp_path / "trace.json").read_text())["displayTimeUnit"] == "ms"
    with pytest.raises(InputError, match="cannot write"):
        write_trace(tmp_path, {"predicted": LEFT})
