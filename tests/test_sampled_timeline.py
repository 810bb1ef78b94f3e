"""Timelines of which only some decode steps were walked."""

from __future__ import annotations

import pytest
from helpers import batch_of, decisions_of, ideal_hardware, small_model, uniform_batches

from planner import wave_timeline
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.estimate import estimated_s
from planner.forms import ACT_HOST, KV_HOST
from planner.operation import STREAMS
from planner.placement import MiniBatch
from planner.sampled_timeline import joined_many, middles, sampled_steps, simulate_sampled
from planner.simulator import simulate
from planner.wave_timeline import joined, simulate_waves

COSTS = CostModel(ideal_hardware(gemm_flops=2e12, h2d_bytes_per_s=3e9), small_model(layers=5))


def ending_one_by_one(longest: int) -> Decisions:
    """Two mini-batches of requests that end at different times."""
    groups = [
        [uniform_batches([1], 60 + 7 * i, longest - 5 * i - m, form)[0].groups[0] for i in range(6)]
        for m, form in enumerate((KV_HOST, ACT_HOST))
    ]
    numbered = iter(range(12))
    return decisions_of([
        MiniBatch(tuple(type(g)((next(numbered),), g.prompt_len, g.gen_len, g.blocks) for g in some)) for some in groups
    ])  # fmt: skip


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (300, 24)])
@pytest.mark.parametrize("requests", [1, 3])
def test_first_second_and_last_steps_are_walked(count: int, most: int, requests: int) -> None:
    lengths = [(20 + 9 * i, max(count + 1 - 7 * i, 1)) for i in range(requests)]
    decisions = decisions_of([batch_of(lengths)])
    steps = sampled_steps(decisions, most)
    assert decisions.decode_steps == count
    assert steps == sorted(set(steps))
    assert {1, min(2, count), count} <= set(steps)
    assert len(steps) <= most


def test_steps_are_walked_where_requests_end() -> None:
    """In the last four of 200 steps a quarter ends each, which evenly spaced ones would stretch over nine."""
    decisions = decisions_of([batch_of([(400 + 7 * i % 97, 201 - i % 4) for i in range(60)])])
    assert {197, 200} <= set(sampled_steps(decisions, 24))
    assert estimated_s(COSTS, decisions) == pytest.approx(simulate(COSTS, decisions).total_s, rel=2e-4)


def test_the_middle_of_every_stretch_stands_for_it() -> None:
    assert middles(9, 3) == [(1, 3), (4, 3), (7, 3)]
    assert middles(6, 3) == [(0, 2), (3, 2), (4, 2)]
    for count in range(12, 90):
        found = middles(count, 12)
        assert sum(of for _, of in found) == count
        mean = sum(place * of for place, of in found) / count
        assert mean == pytest.approx((count - 1) / 2, abs=0.5), count


def test_walking_every_step_is_simulating() -> None:
    decisions = ending_one_by_one(40)
    assert simulate_sampled(COSTS, decisions, 39).step_ends_s == simulate(COSTS, decisions).step_ends_s


def test_a_sample_adds_up_to_nearly_the_whole() -> None:
    decisions = ending_one_by_one(90)
    whole, sampled = simulate(COSTS, decisions), simulate_sampled(COSTS, decisions, 24)
    assert len(sampled.spans) < 0.5 * len(whole.spans)
    assert sampled.decode_steps == whole.decode_steps
    assert sampled.prefill_s == whole.prefill_s
    assert sampled.total_s == pytest.approx(whole.total_s, rel=0.01)
    assert estimated_s(COSTS, decisions) == sampled.total_s
    for phase in ("prefill", "decode", "all"):
        for stream in STREAMS:
            mine, its = sampled.use(phase)[stream], whole.use(phase)[stream]
            assert mine.busy_s == pytest.approx(its.busy_s, rel=0.03), (phase, stream)
            assert mine.nbytes == pytest.approx(its.nbytes, rel=0.03), (phase, stream)
    assert sampled.by_kind("decode").keys() == whole.by_kind("decode").keys()


def test_waves_one_after_the_other_come_to_the_same_in_both_ways() -> None:
    waves = [simulate(COSTS, ending_one_by_one(longest)) for longest in (40, 45)]
    together = joined(waves)
    many = joined_many(waves, together.generated_tokens)
    assert many.total_s == pytest.approx(together.total_s)
    assert many.step_ends_s == pytest.approx(together.step_ends_s)
    assert many.prefill_s == pytest.approx(together.prefill_s)
    assert many.decode_steps == together.decode_steps
    assert many.generated_tokens == together.generated_tokens
    for stream in STREAMS:
        assert many.use("decode")[stream].busy_s == pytest.approx(together.use("decode")[stream].busy_s)


def test_waves_are_simulated_whole_unless_they_have_very_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = [ending_one_by_one(60 + i) for i in range(5)]
    whole = joined([simulate(COSTS, wave) for wave in waves])
    assert simulate_waves(COSTS, waves).total_s == whole.total_s
    monkeypatch.setattr(wave_timeline, "MOST_OPERATIONS", 1000)
    assert simulate_waves(COSTS, waves[:4]).total_s == joined([simulate(COSTS, w) for w in waves[:4]]).total_s
    assert simulate_waves(COSTS, waves).total_s == pytest.approx(whole.total_s, rel=0.02)
    assert simulate_waves(COSTS, waves).total_s != whole.total_s


def test_of_very_many_waves_some_stand_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = [ending_one_by_one(40 + i) for i in range(16)]
    whole = joined([simulate(COSTS, wave) for wave in waves])
    monkeypatch.setattr(wave_timeline, "MOST_OPERATIONS", 1000)
    monkeypatch.setattr(wave_timeline, "SAMPLED_OF_MANY", 8)
    walked: list[object] = []
    monkeypatch.setattr(wave_timeline, "simulate_sampled", lambda *a: walked.append(a) or simulate_sampled(*a))
    simulate_waves(COSTS, waves)
    assert len(walked) == 16, "waves of few requests differ"
    walked.clear()
    monkeypatch.setattr(wave_timeline, "WALKED_REQUESTS", 96)
    found = simulate_waves(COSTS, waves)
    assert len(walked) == 8
    assert found.generated_tokens == whole.generated_tokens
    assert found.total_s == pytest.approx(whole.total_s, rel=0.03)
    assert found.decode_steps == pytest.approx(whole.decode_steps, rel=0.03)


def test_joined_waves_are_the_spans_of_each_one_after_the_other() -> None:
    waves = [simulate(COSTS, ending_one_by_one(longest)) for longest in (40, 45)]
    spans, first = joined(waves).rows, len(waves[0].rows)
    later_s = float(waves[0].rows.end_s.max())
    assert spans[:first] == list(waves[0].rows)
    assert [span.id for span in spans] == list(range(len(spans)))
    for mine, its in zip(spans[first:], waves[1].rows, strict=True):
        assert mine[1:6] == its[1:6] and mine.start_s == its.start_s + later_s and mine.end_s == its.end_s + later_s
    parts = [spans.part(0, first), spans.part(first, len(spans))]
    for part, wave in zip(parts, waves, strict=True):
        assert (part.columns.waits == wave.rows.columns.waits).all()
        assert (part.columns.needs == wave.rows.columns.needs).all()
