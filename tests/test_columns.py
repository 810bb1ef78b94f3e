"""The fast simulator against the plain one: the same operations, waits and times, whatever the decisions."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from helpers import WHOLE, decisions_of, ideal_hardware, random_decisions, small_model, uniform_batches
from hypothesis import example, given, settings
from slow_clocks import Clocks, advance

from planner.clocks import run_clocks
from planner.columns import Columns, columns_of, schedule_columns
from planner.contention import Contention
from planner.costs import CostModel
from planner.decisions import Decisions, spread_parts
from planner.forms import ACT_HOST, KV_GPU, KV_HOST
from planner.hardware import HardwareProfile, load_hardware
from planner.operation import Operation
from planner.placement import MiniBatch, RequestGroup
from planner.schedule import Schedule
from planner.simulator import Durations, simulate
from planner.timeline import Span, Spans, Timeline

LAYERS = 7  # divided by no slot count but 1
MODEL = small_model(layers=LAYERS)
OVERHEADS = {"link.latency_s": 1e-6, "gpu.achieved.op_overhead_s": 2e-6, "gpu.achieved.forward_overhead_s": 5e-6}
ALONE = ideal_hardware(gemm_flops=5e12).with_values(**OVERHEADS)
CROWDED = ALONE.with_values(
    **{"link.during_compute": 0.8, "link.compute_s_lost_per_byte": 4e-12, "link.h2d_during_d2h_bytes_per_s": 1.5e10}
)
MACHINES = {"alone": ALONE, "crowded": CROWDED, "rtx4090": load_hardware("rtx4090-pcie4")}
ANY = random_decisions(layers=LAYERS, max_gen=40)


def alternating(requests: int, prompt: int, gen: int) -> MiniBatch:
    """Blocks stay on the GPU every other time, so that stores pause for 16 steps and go on."""
    blocks = (KV_HOST, KV_GPU, ACT_HOST, KV_GPU) * (1 + (prompt + gen) // 64)
    return MiniBatch((RequestGroup(tuple(range(requests)), prompt, gen, blocks[: -(-(prompt + gen - 1) // 16)]),))


SPREAD = decisions_of(uniform_batches([2, 1, 2], 20, 30, KV_HOST), spread_parts(MODEL, 2.6), weight_slots=3)
LONG_AGO = decisions_of([alternating(2, 24, 90)], [WHOLE, 0, 0, 0, 0, 0, WHOLE], weight_slots=1, cache_slots=3)
RESIDENT = decisions_of(uniform_batches([2, 2], 20, 20, ACT_HOST), [WHOLE] * LAYERS, weight_slots=0)
MANY_PASSES = decisions_of(uniform_batches([3, 3], 20, 3, KV_HOST), chunk_tokens=20, pass_tokens=40, weight_slots=3)


def same(found: Columns, expected: Columns) -> None:
    for field in fields(Columns):
        assert np.array_equal(getattr(found, field.name), getattr(expected, field.name)), field.name


@given(ANY)
@example(SPREAD)
@example(LONG_AGO)
@example(RESIDENT)
@example(MANY_PASSES)
@settings(deadline=None, max_examples=60)
def test_copied_sections_are_the_schedule(decisions: Decisions) -> None:
    """Operation by operation and wait by wait, though only the first section of each kind was asked for."""
    same(schedule_columns(Schedule(MODEL, decisions)), columns_of(Schedule(MODEL, decisions)))


def plain(hardware: HardwareProfile, decisions: Decisions) -> list[Span]:
    durations = Durations(CostModel(hardware, MODEL), decisions)
    return Clocks(Schedule(MODEL, decisions), durations.of, Contention(hardware.link)).run()


@pytest.mark.parametrize("machine", MACHINES)
@given(decisions=ANY)
@example(decisions=SPREAD)
@example(decisions=LONG_AGO)
@example(decisions=RESIDENT)
@settings(deadline=None, max_examples=25)
def test_fast_clocks_are_the_plain_ones(machine: str, decisions: Decisions) -> None:
    """To the bit: the same sums in the same order."""
    timeline = simulate(CostModel(MACHINES[machine], MODEL), decisions)
    assert list(timeline.spans) == plain(MACHINES[machine], decisions)


@given(decisions=ANY)
@settings(deadline=None, max_examples=25)
def test_where_nothing_slows_anything_every_start_is_the_earliest(decisions: Decisions) -> None:
    durations = Durations(CostModel(ALONE, MODEL), decisions)
    expected = advance(Schedule(MODEL, decisions), durations.of)
    rows = simulate(CostModel(ALONE, MODEL), decisions).rows
    assert rows.start_s == pytest.approx([span.start_s for span in expected], rel=1e-12, abs=1e-15)
    assert rows.end_s == pytest.approx([span.end_s for span in expected], rel=1e-12, abs=1e-15)


@given(decisions=ANY)
@settings(deadline=None, max_examples=25)
def test_a_stream_that_takes_no_time(decisions: Decisions) -> None:
    """As `explain` asks for it: operations of no length end at once, and let others start at the same instant."""
    durations = Durations(CostModel(CROWDED, MODEL), decisions)
    for idle in (("h2d", "d2h"), ("compute",), ("h2d", "compute", "d2h")):

        def seconds(op: Operation, idle: tuple[str, ...] = idle) -> float:
            return 0.0 if op.stream in idle else durations.of(op)

        ops = list(Schedule(MODEL, decisions))
        columns = columns_of(ops)
        found = Spans(columns, *run_clocks(columns, np.array([seconds(o) for o in ops]), Contention(CROWDED.link)))
        assert list(found) == Clocks(ops, seconds, Contention(CROWDED.link)).run()


def test_figures_from_columns_are_those_of_the_spans() -> None:
    timeline = simulate(CostModel(CROWDED, MODEL), SPREAD)
    spans = list(timeline.spans)
    again = Timeline(spans, timeline.generated_tokens)
    assert again.step_ends_s == timeline.step_ends_s
    for phase in ("all", "prefill", "decode"):
        mine = [s for s in spans if phase == "all" or (s.step == 0) == (phase == "prefill")]
        for stream, use in timeline.use(phase).items():
            assert use == again.use(phase)[stream]
            assert use.busy_s == pytest.approx(sum(s.end_s - s.start_s for s in mine if s.stream == stream))
            assert use.nbytes == sum(s.nbytes for s in mine if s.stream == stream)
        kinds = {s.kind for s in mine}
        assert set(timeline.by_kind(phase)) == kinds
        for kind in kinds:
            busy_s = sum(s.end_s - s.start_s for s in mine if s.kind == kind)
            assert timeline.by_kind(phase)[kind] == pytest.approx(busy_s)


def test_spans_are_a_sequence() -> None:
    spans = simulate(CostModel(CROWDED, MODEL), MANY_PASSES).spans
    every = list(spans)
    assert spans[3] == every[3] and spans[-1] == every[-1] and spans[2:9:3] == every[2:9:3]
    assert [type(value) for value in spans[0]] == [int, str, str, int, int, int, float, float, int]
    with pytest.raises(IndexError):
        spans[len(spans)]
    assert len(spans[len(spans) :]) == 0


def test_equal_operations_are_priced_once() -> None:
    """Layers are alike: a decode step asks for as many prices as one layer has."""
    durations = Durations(CostModel(CROWDED, MODEL), SPREAD)
    columns = schedule_columns(Schedule(MODEL, SPREAD))
    asked: list[int] = []
    plain_of = durations.of
    durations.of = lambda op: asked.append(op.id) or plain_of(op)  # type: ignore[method-assign, func-returns-value]
    seconds = durations.all(columns)
    assert seconds.tolist() == [plain_of(op) for op in Schedule(MODEL, SPREAD)]
    assert len(asked) < len(columns) / (LAYERS - 1)
