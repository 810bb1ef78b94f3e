"""The simulator: a timeline worked out by hand, and what must hold for any schedule."""

from __future__ import annotations

from collections import defaultdict

import pytest
from helpers import WHOLE, decisions_of, ideal_hardware, random_decisions, small_model, uniform_batches
from hypothesis import given, settings
from slow_clocks import fast

from planner.contention import Contention
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.forms import ACT_HOST, KV_GPU, KV_HOST
from planner.operation import STREAMS, Operation
from planner.schedule import Schedule
from planner.simulator import simulate
from planner.timeline import Span, Timeline

MODEL = small_model(layers=3)
COSTS = CostModel(
    ideal_hardware(gemm_flops=5e12).with_values(
        **{"link.latency_s": 1e-6, "gpu.achieved.op_overhead_s": 2e-6, "gpu.achieved.forward_overhead_s": 5e-6}
    ),
    MODEL,
)


class Given:
    """Durations as the test gives them."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def of(self, op: Operation) -> float:
        return self.seconds[op.id]


def test_overlap_by_hand() -> None:
    """Two loads, two computes, a store: the second load overlaps the first compute.

    h2d      |0 load 2|2 load 5|
    compute       |2 run 6|6 run 7|       the second waits for load (5) and for the stream (6)
    d2h                    |6 store 10|   waits for the first run
    """
    ops = [
        Operation(0, "load_kv", "h2d", 1, 0, 0, nbytes=10),
        Operation(1, "forward", "compute", 1, 0, 0, waits=(0,)),
        Operation(2, "load_kv", "h2d", 1, 0, 1, nbytes=15),
        Operation(3, "store", "d2h", 1, 0, 0, waits=(1,), nbytes=4),
        Operation(4, "forward", "compute", 1, 0, 1, waits=(2,)),
        Operation(5, "sample", "compute", 1, -1, 0, waits=(3,)),
    ]
    spans = fast(ops, Given([2.0, 4.0, 3.0, 4.0, 1.0, 0.5]).of, Contention(COSTS.hardware.link))
    assert [(s.start_s, s.end_s) for s in spans] == [(0, 2), (2, 6), (2, 5), (6, 10), (6, 7), (10, 10.5)]
    assert [s.nbytes for s in spans] == [10, 0, 15, 4, 0, 0]


def test_a_whole_job_by_hand() -> None:
    """One request of 16 tokens and two generated, K and V on the host: every operation in sequence or overlapped.

    The link is slow, so that each layer waits for its weights: prefill ends with the third layer and the sample.
    """
    hardware = ideal_hardware(h2d_bytes_per_s=1e9)
    costs = CostModel(hardware, MODEL)
    decisions = decisions_of(uniform_batches([1], 16, 2, KV_HOST))
    timeline = simulate(costs, decisions)
    load = MODEL.layer_bytes / 1e9
    prefill, embed, sample = costs.prefill_forward((16,)).seconds, costs.embed(16).seconds, costs.sample(1).seconds
    assert prefill < load
    assert embed < load
    # Layers 0 .. 2 arrive at 1, 2, 3 loads: two slots, and layer 2 reuses the slot that layer 0 has left by then.
    assert timeline.prefill_s == pytest.approx(3 * load + prefill + sample)
    # Decode: the cache of layer 0 follows the first piece of layer 0's weights, which prefill already asked for.
    # Per layer the link carries the weights of the next layer and one block of K and V.
    kv = 16 * MODEL.kv_bytes_per_token_layer / 1e9
    forward = costs.decode_forward(1, 16).seconds
    # Link from the end of prefill's loads: W0 KV0 W1 KV1 W2 KV2; W0 was sent right after layer 2 began.
    end_of_w0 = 4 * load
    after_prefill = max(end_of_w0, timeline.prefill_s)  # the cache waits for the switch of the overlay
    last_kv = after_prefill + kv + load + kv + load + kv
    assert timeline.total_s == pytest.approx(last_kv + forward + sample, rel=1e-6)
    assert timeline.generated_tokens == 2
    assert timeline.decode_steps == 1


def test_resident_is_the_sum_of_its_compute() -> None:
    decisions = decisions_of(uniform_batches([2], 20, 4, KV_GPU), resident_parts=(WHOLE,) * 3, weight_slots=0)
    timeline = simulate(COSTS, decisions)
    expected = COSTS.embed(40).seconds + 3 * COSTS.prefill_forward((20, 20)).seconds + COSTS.sample(2).seconds
    for cached in (40, 42, 44):
        expected += COSTS.embed(2).seconds + 3 * COSTS.decode_forward(2, cached).seconds + COSTS.sample(2).seconds
    assert timeline.total_s == pytest.approx(expected)
    assert timeline.use()["compute"].busy_fraction == pytest.approx(1.0)


@given(random_decisions(layers=3))
@settings(deadline=None, max_examples=60)
def test_any_timeline_is_possible(decisions: Decisions) -> None:
    ops = list(Schedule(MODEL, decisions))
    timeline = simulate(COSTS, decisions)
    spans = timeline.spans
    assert [s.id for s in spans] == [op.id for op in ops]
    ends: dict[str, float] = defaultdict(float)
    for op, span in zip(ops, spans, strict=True):
        free = max([ends[op.stream], *(spans[w].end_s for w in op.waits)])
        assert span.start_s == free  # as early as it may, and no earlier
        assert span.end_s >= span.start_s
        ends[op.stream] = span.end_s
    for stream, use in timeline.use().items():
        assert use.busy_s == pytest.approx(sum(s.end_s - s.start_s for s in spans if s.stream == stream))
        assert use.busy_s <= max(ends.values()) * (1 + 1e-9)
        assert use.nbytes == sum(op.nbytes for op in ops if op.stream == stream)
    # What is loaded or computed is there for a token; the last stores may end after the last token.
    for stream in ("h2d", "compute"):
        assert timeline.use()[stream].busy_s <= timeline.total_s * (1 + 1e-9)


@given(random_decisions(layers=3))
@settings(deadline=None, max_examples=30)
def test_steps_and_sums(decisions: Decisions) -> None:
    timeline = simulate(COSTS, decisions)
    assert len(timeline.step_ends_s) == decisions.decode_steps + 1
    assert sorted(timeline.step_ends_s) == timeline.step_ends_s
    assert timeline.total_s == pytest.approx(timeline.prefill_s + timeline.decode_s)
    assert timeline.decode_step_s * max(decisions.decode_steps, 1) == pytest.approx(timeline.decode_s)
    groups = [g for batch in decisions.mini_batches for g in batch.groups]
    assert timeline.generated_tokens == sum(len(g.requests) * g.gen_len for g in groups)
    assert timeline.throughput_tokens_per_s == pytest.approx(timeline.generated_tokens / timeline.total_s)
    for phase in ("prefill", "decode"):
        assert sum(timeline.by_kind(phase).values()) == pytest.approx(
            sum(use.busy_s for use in timeline.use(phase).values())
        )
    for stream in STREAMS:
        both = timeline.use("prefill")[stream].busy_s + timeline.use("decode")[stream].busy_s
        assert both == pytest.approx(timeline.use()[stream].busy_s)


def test_what_binds() -> None:
    slow_link = CostModel(ideal_hardware(h2d_bytes_per_s=1e8), MODEL)
    fast_link = CostModel(ideal_hardware(h2d_bytes_per_s=1e13, gemm_flops=1e11), MODEL)
    decisions = decisions_of(uniform_batches([2, 2], 40, 6, ACT_HOST))
    assert simulate(slow_link, decisions).binding == "link"
    assert simulate(fast_link, decisions).binding == "compute"


def test_more_slots_never_delay() -> None:
    """A slot more only removes waits."""
    for form in (KV_HOST, ACT_HOST):
        batches = uniform_batches([2, 2, 2], 40, 6, form)
        times = [simulate(COSTS, decisions_of(batches, store_slots=n)).total_s for n in (1, 2, 4)]
        assert times == sorted(times, reverse=True)
        one, two = (simulate(COSTS, decisions_of(batches, weight_slots=n)).total_s for n in (1, 2))
        assert two < one


def test_an_empty_phase_divides_by_nothing() -> None:
    timeline = Timeline([Span(0, "sample", "compute", 0, -1, 0, 0.0, 2.0, 0)], 1)
    assert (timeline.decode_s, timeline.decode_steps, timeline.decode_step_s) == (0.0, 0, 0.0)
    assert timeline.use("decode")["h2d"].busy_fraction == 0.0
    assert timeline.use("decode")["h2d"].bytes_per_s == 0.0
