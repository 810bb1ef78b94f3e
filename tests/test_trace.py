"""Traces that Perfetto opens: lanes, arguments, arrows, counters, and timelines aligned step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import HOST_FORMS, ideal_hardware, small_model

from planner.columns import schedule_columns
from planner.costs import CostModel
from planner.errors import HybridserveError, InputError
from planner.forms import FORMS
from planner.plan import Plan
from planner.planning import make_plan
from planner.schedule import Schedule
from planner.search import Options
from planner.simulator import simulate
from planner.timeline import Timeline
from planner.trace import trace_events, write_trace
from planner.wave_timeline import simulate_waves
from planner.workload import Workload

STEPS, H2D, COMPUTE, D2H = range(4)
FAST, SLOW = 1, 2
Event = dict[str, Any]


def plan_of(waves: int = 1, act_share: float | None = 0.5) -> Plan:
    """A job that streams everything, small enough to look at."""
    options = Options(act_share=act_share, mini_batches=2, waves=waves, max_resident_layers=0)
    hardware = ideal_hardware(gemm_flops=1e12, h2d_bytes_per_s=1e9)
    return make_plan(hardware, small_model(), Workload.uniform(4, 40, 5), HOST_FORMS, options)


PLAN = plan_of()
PREDICTED = simulate(CostModel(PLAN.hardware, PLAN.model), PLAN.decisions)


def uneven(timeline: Timeline) -> Timeline:
    """The same operations, as plain spans, when the machine was slower in odd steps and faster in even ones."""
    ends = [0.0, *timeline.step_ends_s]

    def later(at_s: float) -> float:
        moved = 0.0
        for i, (a, b) in enumerate(pairwise(ends)):
            moved += max(min(at_s, b) - a, 0.0) * (1.3 if i % 2 else 0.9)
        return moved + max(at_s - ends[-1], 0.0)

    spans = [s._replace(start_s=later(s.start_s), end_s=later(s.end_s)) for s in timeline.spans]
    return Timeline(spans, timeline.generated_tokens)


BOTH = trace_events(PLAN, {"predicted": PREDICTED, "measured": uneven(PREDICTED)})


def of(events: list[Event], which: Callable[[Event], bool]) -> list[Event]:
    return [event for event in events if which(event)]


def slices(events: list[Event], pid: int, lane: int) -> list[Event]:
    return of(events, lambda e: e["ph"] == "X" and e["pid"] == pid and e["tid"] == lane)


def ends(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def test_processes_and_lanes_are_named_in_order() -> None:
    meta = of(BOTH, lambda e: e["ph"] == "M")
    names = [e["args"]["name"] for e in meta if e["name"] == "process_name"]
    assert names == ["predicted", "measured"]
    assert [e["args"]["labels"] for e in meta if e["name"] == "process_labels"] == ["aligned step by step"] * 2
    lanes = [(e["tid"], e["args"]["name"]) for e in meta if e["name"] == "thread_name"]
    assert lanes == list(enumerate(["steps", "h2d", "compute", "d2h"])) * 2
    assert [e["args"]["sort_index"] for e in meta if e["name"] == "thread_sort_index"] == [0, 1, 2, 3] * 2
    alone = trace_events(PLAN, {"predicted": PREDICTED})
    assert not of(alone, lambda e: e["name"] == "process_labels")


def test_every_operation_is_a_slice_with_its_layer_and_mini_batch() -> None:
    shown = [e for lane in (H2D, COMPUTE, D2H) for e in slices(BOTH, FAST, lane)]
    assert len(shown) == len(PREDICTED.spans)
    by_kind = {e["name"].split()[0]: e["args"] for e in shown if e["args"]["step"] != 1 or e["name"] != "begin_decode"}
    assert {"load_weights", "load_act", "load_kv", "prefill", "rebuild", "forward", "store"} <= set(by_kind)
    for kind in ("load_act", "load_kv", "rebuild", "forward", "store"):
        assert {"step", "layer", "mini_batch"} <= set(by_kind[kind]), kind
    assert "mini_batch" not in by_kind["load_weights"]  # they serve all
    assert {"pass", "chunk", "mini_batch"} <= set(by_kind["prefill"])
    assert all(e["args"]["bytes"] for e in shown if e["tid"] in (H2D, D2H))
    first = slices(BOTH, FAST, H2D)[0]
    assert first["name"] == "load_weights 0" and first["args"]["bytes"] == PLAN.model.prefix_bytes[1]


def test_the_mini_batch_of_a_prefill_chunk_is_that_of_its_requests() -> None:
    """The schedule counts chunks within a pass, which is another number."""
    passes = PLAN.decisions.prefill_passes
    shown = of(slices(BOTH, FAST, COMPUTE), lambda e: e["name"].startswith("prefill"))
    assert {e["args"]["mini_batch"] for e in shown} == {c.mini_batch for chunks in passes for c in chunks} == {0, 1}
    for e in shown:
        assert passes[e["args"]["pass"]][e["args"]["chunk"]].mini_batch == e["args"]["mini_batch"]


@pytest.mark.parametrize("pid", [FAST, SLOW])
def test_slices_of_a_lane_never_overlap(pid: int) -> None:
    """Perfetto drops a slice that reaches into the next one, be it by a nanosecond."""
    for lane in (STEPS, H2D, COMPUTE, D2H):
        found = slices(BOTH, pid, lane)
        assert len(found) > 3
        for one, after in pairwise(found):
            assert round(1e3 * ends(one)) <= round(1e3 * after["ts"])


def test_each_step_begins_at_the_same_time_in_both_and_lasts_as_long_as_it_took() -> None:
    left, right = slices(BOTH, FAST, STEPS), slices(BOTH, SLOW, STEPS)
    assert [e["name"] for e in left] == ["prefill", "step 1", "step 2", "step 3", "step 4"]
    assert [e["ts"] for e in left] == [e["ts"] for e in right]
    for i, (one, other) in enumerate(zip(left[:-1], right[:-1], strict=True)):
        assert other["dur"] / one["dur"] == pytest.approx(1.3 if i % 2 else 0.9, rel=1e-3)
        following = left[i + 1]["ts"]
        assert following == pytest.approx(max(ends(one), ends(other)), abs=0.002)
    for pid in (FAST, SLOW):  # and operations moved with their steps
        for e in of(slices(BOTH, pid, COMPUTE), lambda e: e["name"] == "sample" and e["args"]["mini_batch"] == 1):
            step = (left if pid == FAST else right)[e["args"]["step"]]
            assert e["args"]["step"] == 4 or ends(e) == pytest.approx(ends(step), abs=0.002)


def test_a_timeline_alone_is_not_moved() -> None:
    alone = trace_events(PLAN, {"predicted": PREDICTED})
    shown = sorted((e["ts"], e["dur"]) for lane in (H2D, COMPUTE, D2H) for e in slices(alone, FAST, lane))
    wanted = sorted((1e6 * s.start_s, 1e6 * (s.end_s - s.start_s)) for s in PREDICTED.spans)
    assert len(shown) == len(wanted)
    for (ts, dur), (start_us, took_us) in zip(shown, wanted, strict=True):
        assert ts == pytest.approx(start_us, abs=0.001) and dur == pytest.approx(took_us, abs=0.002)


def test_arrows_lead_from_transfers_to_what_waits_for_them() -> None:
    columns = schedule_columns(Schedule(PLAN.model, PLAN.decisions))
    ends_of: dict[str, dict[int, tuple[Event, Event]]] = {"s": {}, "f": {}}
    newest: Event = {}
    for event in BOTH:  # an arrow belongs to the slice before it
        newest = event if event["ph"] == "X" else newest
        if event["ph"] in ends_of:
            assert event["id"] not in ends_of[event["ph"]]
            assert (event["pid"], event["tid"]) == (newest["pid"], newest["tid"])
            ends_of[event["ph"]][event["id"]] = event, newest
    assert ends_of["s"].keys() == ends_of["f"].keys()
    arrows = [(ends_of["s"][i], ends_of["f"][i]) for i in ends_of["s"]]
    for (out, source), (into, target) in arrows:
        assert source["ts"] <= out["ts"] < ends(source) and source["tid"] != COMPUTE
        assert into["ts"] == target["ts"] >= ends(source) - 0.001 and into["bp"] == "e"
    kinds = {(source["name"].split()[0], target["name"].split()[0]) for (_, source), (_, target) in arrows}
    assert {
        ("load_act", "rebuild"),
        ("load_kv", "forward"),
        ("load_weights", "prefill"),
        ("store", "load_act"),
    } <= kinds
    loads = int(columns.is_kind("load_act", "load_kv").sum())
    mine = [source for (_, source), (_, target) in arrows if source["pid"] == FAST and target["tid"] == COMPUTE]
    assert len([e for e in mine if e["name"].startswith(("load_act", "load_kv"))]) == loads


def test_counters_of_memory_and_of_the_achieved_bandwidth() -> None:
    counters = of(BOTH, lambda e: e["ph"] == "C" and e["pid"] == FAST)
    assert {e["name"] for e in counters} == {"GPU memory, GB", "host memory, GB", "h2d GB/s", "d2h GB/s"}
    rates = of(counters, lambda e: e["name"] == "h2d GB/s")
    assert {round(e["args"]["achieved"], 3) for e in rates} <= {0.0, 1.0}
    assert all(a["args"] != b["args"] for a, b in pairwise(rates))
    gpu, host = (of(counters, lambda e, place=place: e["name"] == f"{place} memory, GB") for place in ("GPU", "host"))
    assert max(e["args"]["allocated"] for e in gpu) == pytest.approx(PLAN.memory["gpu"].planned_bytes / 1e9, rel=1e-6)
    assert host[0]["args"]["allocated"] == pytest.approx(PLAN.memory["host"].planned_bytes / 1e9, rel=1e-6)
    cached = [g["args"]["cached tokens"] + h["args"]["cached tokens"] for g, h in zip(gpu, host, strict=True)]
    assert cached[0] == 0 and cached[1:] == sorted(cached[1:])
    kinds = PLAN.decisions.mini_batches[0].shapes.form_tokens[0] @ [form.token_bytes(PLAN.model) for form in FORMS]
    other = PLAN.decisions.mini_batches[1].shapes.form_tokens[0] @ [form.token_bytes(PLAN.model) for form in FORMS]
    assert 1e9 * cached[1] == pytest.approx(PLAN.model.layers * (kinds + other))


def test_waves_follow_each_other_in_one_trace() -> None:
    plan = plan_of(waves=2, act_share=None)
    timeline = simulate_waves(CostModel(plan.hardware, plan.model), plan.waves)
    events = trace_events(plan, {"predicted": timeline, "measured": timeline})
    steps = slices(events, SLOW, STEPS)
    assert [e["name"] for e in steps[4:6]] == ["wave 1, step 4", "wave 2, prefill"] and len(steps) == 10
    operations = [e for lane in (H2D, COMPUTE, D2H) for e in slices(events, SLOW, lane)]
    assert len(operations) == len(timeline.spans)
    assert max(map(ends, operations)) == pytest.approx(1e6 * timeline.rows.end_s.max(), abs=0.01)


def test_a_timeline_of_another_plan_is_refused() -> None:
    with pytest.raises(HybridserveError, match="the measured timeline has 3 operations"):
        trace_events(PLAN, {"measured": Timeline(PREDICTED.spans[:3], 1)})


def test_write_trace(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", PLAN, {"predicted": PREDICTED})
    assert json.loads((tmp_path / "trace.json").read_text())["displayTimeUnit"] == "ms"
    with pytest.raises(InputError, match="cannot write"):
        write_trace(tmp_path, PLAN, {"predicted": PREDICTED})
