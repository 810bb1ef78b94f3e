"""Where time goes: by hand on toys, and what must hold for any plan."""

from __future__ import annotations

import io
from typing import Any

import pytest
from helpers import WHOLE, decisions_of, ideal_hardware, ragged, random_decisions, small_model, uniform_batches
from hypothesis import given, settings
from rich.console import Console
from slow_clocks import advance

from planner.attribution import Attribution, attribute, fill_seconds
from planner.columns import columns_of
from planner.cost_terms import Part, TermCosts, terms
from planner.costs import CostModel, OpCost
from planner.critical_path import IDLE, Path, critical_path
from planner.decisions import Decisions
from planner.explain_report import explain_report, explain_result
from planner.forms import ACT_HOST, KV_GPU, KV_HOST
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.operation import Operation
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.schedule import Schedule
from planner.simulator import Durations, simulate
from planner.timeline import Timeline
from planner.verdict import term_seconds, verdict

MODEL = small_model(layers=3)
OVERHEADS = {"link.latency_s": 1e-6, "gpu.achieved.op_overhead_s": 2e-6, "gpu.achieved.forward_overhead_s": 5e-6}
PLAIN = ideal_hardware(gemm_flops=5e12).with_values(**OVERHEADS)
CROWDED = PLAIN.with_values(
    **{
        "link.during_compute": 0.8, "link.compute_s_lost_per_byte": 4e-12, "link.h2d_during_d2h_bytes_per_s": 1.5e10,
        "gpu.achieved.engine_slowdown.forward": 1.3, "gpu.achieved.attention_call_s": 3e-6,
    }
)  # fmt: skip
EXACT = pytest.approx


def exposed(found: Attribution, phase: str) -> float:
    one = found.phases[phase]
    return sum(use.exposed_s for use in one.kinds.values()) + one.idle_s


def check_sums(found: Attribution) -> None:
    """Every second is accounted for once, however it is cut."""
    assert sum(phase.phase_s for phase in found.phases.values()) == EXACT(found.total_s, rel=1e-9)
    for name, phase in found.phases.items():
        assert exposed(found, name) == EXACT(phase.phase_s, rel=1e-9)
        assert sum(one.exposed_s for one in phase.streams.values()) + phase.idle_s == EXACT(phase.phase_s, rel=1e-9)
        assert phase.idle_s <= 1e-9 * phase.phase_s
        assert -1e-12 <= phase.contention_exposed_s <= phase.phase_s
        for stream, one in phase.streams.items():
            mine = [use for use in phase.kinds.values() if use.stream == stream]
            assert sum(use.busy_s for use in mine) == EXACT(one.busy_s, rel=1e-9)
        assert sum(term_seconds(phase).values()) == EXACT(phase.streams["compute"].busy_s, rel=1e-6)
        for use in phase.kinds.values():
            if use.terms is not None and use.gemms is not None:
                assert sum(use.terms.values()) + use.contention_s == EXACT(use.busy_s, rel=1e-6)
                products = sum(seconds for bounds in use.gemms.values() for seconds in bounds.values())
                assert products == EXACT(use.terms["gemm_s"], rel=1e-9)


@pytest.mark.parametrize("hardware", [PLAIN, CROWDED], ids=["plain", "crowded"])
@given(decisions=random_decisions(layers=3))
@settings(deadline=None, max_examples=40)
def test_any_plan_is_accounted_for(hardware: HardwareProfile, decisions: Decisions) -> None:
    found, timeline = attribute(hardware, MODEL, decisions), simulate(CostModel(hardware, MODEL), decisions)
    assert found.total_s == EXACT(timeline.total_s, rel=1e-9)
    assert ("decode" in found.phases) == (decisions.decode_steps > 0)
    check_sums(found)
    for phase, one in found.phases.items():
        assert {s: share.busy_s for s, share in one.streams.items()} == EXACT(
            {s: use.busy_s for s, use in timeline.use(phase).items()}
        )
        assert 0 <= one.fill_s <= one.phase_s * (1 + 1e-9)
        assert 0 <= one.drain_s <= one.phase_s * (1 + 1e-9)
    assert verdict(found)


@given(decisions=random_decisions(layers=3))
@settings(deadline=None, max_examples=30)
def test_a_faster_resource_gains_no_more_than_what_is_exposed(decisions: Decisions) -> None:
    """Where streams do not slow each other, the critical path without the link is still a path."""
    found = attribute(PLAIN, MODEL, decisions)
    for resource, streams in (("link", ("h2d", "d2h")), ("compute", ("compute",))):
        mine = sum(phase.streams[stream].exposed_s for phase in found.phases.values() for stream in streams)
        assert found.total_s - mine <= found.without[resource].total_s * (1 + 1e-9)
        assert found.without[resource].total_s <= found.total_s * (1 + 1e-9)


@given(decisions=random_decisions(layers=3))
@settings(deadline=None, max_examples=30)
def test_the_path_is_a_chain(decisions: Decisions) -> None:
    path = critical_path(simulate(CostModel(CROWDED, MODEL), decisions), columns_of(Schedule(MODEL, decisions)))
    assert path.start_s[0] == 0
    assert path.start_s[1:].tolist() == path.end_s[:-1].tolist()


def stretches(path: Path) -> list[tuple[int, float, float]]:
    return list(zip(path.op.tolist(), path.start_s.tolist(), path.end_s.tolist(), strict=True))


def test_a_path_by_hand() -> None:
    """The example of the simulator's test: load, run, store, and the token that waits for the store.

    h2d      |0 load 2|2 load 5|
    compute       |2 run 6|6 run 7|            |10 sample 10.5|
    d2h                    |6 store 10|
    """
    ops = [
        Operation(0, "load_kv", "h2d", 1, 0, 0, nbytes=10),
        Operation(1, "forward", "compute", 1, 0, 0, waits=(0,)),
        Operation(2, "load_kv", "h2d", 1, 0, 1, nbytes=15),
        Operation(3, "store", "d2h", 1, 0, 0, waits=(1,), nbytes=4),
        Operation(4, "forward", "compute", 1, 0, 1, waits=(2,)),
        Operation(5, "sample", "compute", 1, -1, 0, waits=(3,)),
    ]
    seconds = [2.0, 4.0, 3.0, 4.0, 1.0, 0.5]
    spans = advance(ops, lambda op: seconds[op.id])
    path = critical_path(Timeline(spans, 1), columns_of(ops))
    assert stretches(path) == [(0, 0, 2), (1, 2, 6), (3, 6, 10), (5, 10, 10.5)]
    assert stretches(path.cut(1, 7)) == [(0, 1, 2), (1, 2, 6), (3, 6, 7)]
    late = [span._replace(start_s=span.start_s + 3, end_s=span.end_s + 3) for span in spans]
    path = critical_path(Timeline(late, 1), columns_of(ops))
    assert stretches(path)[0] == (IDLE, 0.0, 3.0)
    assert path.idle_s == 3.0
    assert IDLE not in path.running().op


def test_a_slow_link_is_all_that_is_exposed() -> None:
    """The link carries the same bytes whatever compute does; only the last layer and the token follow it."""
    slow = ideal_hardware(h2d_bytes_per_s=1e7)
    decisions = decisions_of(uniform_batches([1], 16, 5, KV_HOST))
    found, costs = attribute(slow, MODEL, decisions), CostModel(slow, MODEL)
    decode = found.phases["decode"]
    tail = costs.decode_forward(1, 19).seconds + costs.sample(1).seconds
    assert decode.streams["compute"].exposed_s <= 2 * tail
    assert decode.streams["h2d"].exposed_s == EXACT(decode.phase_s - decode.streams["compute"].exposed_s)
    assert decode.streams["h2d"].exposed_fraction > 0.999
    assert decode.drain_s == EXACT(tail)
    assert found.without["compute"].decode_s == EXACT(decode.phase_s, rel=1e-3)
    assert found.without["link"].decode_s < 0.01 * decode.phase_s
    assert any("Decode: the link binds, mostly loading weights" in sentence for sentence in verdict(found))


def test_slow_compute_is_all_that_is_exposed() -> None:
    fast_link = ideal_hardware(h2d_bytes_per_s=1e14, gemm_flops=1e10)
    found = attribute(fast_link, MODEL, decisions_of(uniform_batches([2, 2], 40, 6, ACT_HOST)))
    decode = found.phases["decode"]
    assert decode.streams["compute"].exposed_fraction > 0.99
    assert decode.kinds["rebuild"].exposed_s > decode.kinds["forward"].exposed_s
    assert set(decode.kinds["rebuild"].gemms or {}) == {"rebuild K and V"}
    assert any("Decode: compute binds, mostly rebuilding K and V" in sentence for sentence in verdict(found))


def test_a_resident_plan_is_compute_alone() -> None:
    found = attribute(
        PLAIN, MODEL, decisions_of(uniform_batches([2], 20, 4, KV_GPU), resident_parts=(WHOLE,) * 3, weight_slots=0)
    )
    check_sums(found)
    for phase in found.phases.values():
        assert phase.streams["compute"].exposed_s == EXACT(phase.phase_s)
        assert phase.streams["h2d"].bytes_per_s == phase.streams["h2d"].exposed_s == phase.fill_s == phase.drain_s == 0
    assert found.without["compute"].total_s == 0
    assert any("nothing crosses the link" in sentence for sentence in verdict(found))


def test_one_token_needs_no_decode() -> None:
    found = attribute(PLAIN, MODEL, decisions_of(uniform_batches([2], 20, 1, KV_HOST)))
    assert list(found.phases) == ["prefill"]
    assert found.phases["prefill"].phase_s == found.total_s
    assert found.late_stores_s >= 0
    check_sums(found)


def test_streams_that_slow_each_other_are_seen() -> None:
    decisions = decisions_of(uniform_batches([2, 2], 40, 6, ACT_HOST))
    alone, crowded = attribute(PLAIN, MODEL, decisions), attribute(CROWDED, MODEL, decisions)
    assert all(one.contention_s < 1e-12 for one in alone.phases["decode"].streams.values())
    assert crowded.phases["decode"].streams["h2d"].contention_s > 0
    assert crowded.phases["decode"].contention_exposed_s > 0


def test_prefill_waits_for_its_first_layer() -> None:
    slow = ideal_hardware(h2d_bytes_per_s=1e9)
    costs = CostModel(slow, MODEL)
    decisions = decisions_of(uniform_batches([1], 16, 2, KV_HOST))
    fills = fill_seconds(simulate(costs, decisions))
    assert fills[0] == EXACT(MODEL.layer_bytes / 1e9 - costs.embed(16).seconds)
    assert len(fills) == 2


# ---- terms -----------------------------------------------------------------------------------------


def priced(costs: CostModel) -> list[OpCost]:
    return [
        costs.rebuild(5), costs.decode_segments(3, ((2, (40.0, 16.0)), (1, (40.0,)))), costs.prefill_forward((40, 3)),
        costs.embed(7), costs.sample(3),
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["opt-30b", "llama-3-8b"])
def test_terms_sum_to_what_the_cost_model_says(model: str) -> None:
    hardware = load_hardware("rtx4090-pcie4").with_values(**{"gpu.achieved.engine_slowdown.forward": 1.4})
    spec = load_model(model)
    named, plain = TermCosts(hardware, spec), CostModel(hardware, spec)
    for one, other in zip(priced(named), priced(plain), strict=True):
        assert (one.seconds, one.flops, one.memory_bytes) == (other.seconds, other.flops, other.memory_bytes)
        assert sum(terms(one).values()) == EXACT(one.seconds)
        assert all(seconds > 0 for seconds in terms(one).values())


def test_terms_by_hand() -> None:
    """One layer for two rows with 30 cached tokens each: constant rates, every kernel twice as long in the engine."""
    hardware = ideal_hardware(gemm_flops=1e12, memory_bytes_per_s=1e12).with_values(
        **{"gpu.achieved.engine_slowdown.forward": 2.0, "gpu.achieved.forward_overhead_s": 5e-6}
    )
    found = terms(TermCosts(hardware, MODEL).decode_segments(2, ((2, (30.0,)),)))
    h, f, e = MODEL.hidden, MODEL.ffn, MODEL.element_bytes
    arithmetic, traffic = 2 * 2 * h * f / 1e12, e * (h * f + 2 * (h + f)) / 1e12
    assert arithmetic > traffic
    assert found[Part("gemm", "feed-forward up", "arithmetic")] == EXACT(2 * arithmetic)
    assert found[Part("attention")] == EXACT(2 * 60 * MODEL.kv_bytes_per_token_layer / 1e12)
    assert found[Part("elementwise")] == EXACT(2 * e * 2 * (10 * h + 3 * f + 4 * MODEL.d_kv) / 1e12)
    assert found[Part("overhead")] == EXACT(5e-6)


def test_the_slower_side_bounds_a_product() -> None:
    for rate, bound in ((1e9, "memory"), (1e14, "arithmetic")):
        costs = TermCosts(ideal_hardware(gemm_flops=1e12, memory_bytes_per_s=rate), MODEL)
        parts = [part for part in terms(costs.sample(4)) if part.term == "gemm"]
        assert parts == [Part("gemm", "head", bound)]


def test_durations_are_the_seconds_of_their_cost() -> None:
    decisions = decisions_of(uniform_batches([2, 1], 20, 4, ACT_HOST))
    durations = Durations(CostModel(PLAIN, MODEL), decisions)
    for op in Schedule(MODEL, decisions):
        if op.stream == "compute":
            assert durations.of(op) == durations.cost(op).seconds


# ---- reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gen_len", [1, 6])
@pytest.mark.parametrize("model", ["opt-125m", "opt-13b"])
def test_explained_for_people_and_scripts(model: str, gen_len: int) -> None:
    job = ragged([(64, gen_len), (200, gen_len), (33, max(1, gen_len - 2))])
    plan = make_plan(load_hardware("rtx4090-pcie4"), load_model(model), job, POLICIES["hybrid"])
    found = attribute(plan.hardware, plan.model, plan.decisions)
    check_sums(found)
    console = Console(file=io.StringIO(), width=80, markup=False)
    console.print(explain_report(plan, found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "What binds" in text
    assert "\u2026" not in text
    assert found.total_s == EXACT(plan.prediction.total_s)
    data = explain_result(plan, found)
    assert data["verdict"]
    check_units(data)


UNITS = ("_s", "_per_s", "_fraction")


def check_units(node: Any, path: str = "") -> None:
    """A number's key says its unit."""
    if isinstance(node, dict):
        for key, value in node.items():
            check_units(value, key)
    elif isinstance(node, list):
        for value in node:
            check_units(value)
    elif isinstance(node, float):
        assert path.endswith(UNITS) or path in ("bytes", "flop"), path
