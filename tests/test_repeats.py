"""Repeats: what a run takes undisturbed, from several that were not."""

from __future__ import annotations

import pytest

from planner.repeats import Repeats, kind_of
from planner.timeline import Span, Timeline


def run(seconds: list[float]) -> Timeline:
    """Two prefill layers in one pass, then two decode steps of one forward each, with given durations."""
    kinds = [("prefill", 0, 0), ("prefill", 0, 1), ("sample", 0, -1), ("forward", 1, 0), ("sample", 1, -1),
             ("forward", 2, 0), ("sample", 2, -1)]  # fmt: skip
    spans, clock = [], 0.0
    for i, ((kind, step, layer), duration) in enumerate(zip(kinds, seconds, strict=True)):
        spans.append(Span(i, kind, "compute", step, layer, 0, clock, clock + duration, 0))
        clock += duration
    return Timeline(spans, 6)


QUIET = [1.0, 2.0, 0.5, 0.3, 0.1, 0.4, 0.1]


def test_one_run_is_itself() -> None:
    timeline = run(QUIET)
    found = Repeats([timeline])
    assert found.prefill_s == pytest.approx(timeline.prefill_s)
    assert found.decode_s == pytest.approx(timeline.decode_s)
    assert found.total_s == pytest.approx(timeline.total_s)
    assert found.decode_step_s == pytest.approx(timeline.decode_step_s)
    assert found.disturbance == pytest.approx(0)


def test_a_spell_in_every_run_leaves_no_trace_if_never_in_the_same_place() -> None:
    """Five runs, each disturbed somewhere else: no run was quiet, and yet the sum of their quiet stretches is."""
    disturbed = []
    for i in range(5):
        seconds = list(QUIET)
        seconds[i] += 7.0
        disturbed.append(run(seconds))
    found = Repeats(disturbed)
    assert found.total_s == pytest.approx(sum(QUIET))
    assert found.disturbance == pytest.approx(7.0 / sum(QUIET))
    assert found.span_s.tolist() == pytest.approx(QUIET)


def test_a_machine_that_is_always_slow_is_not_made_fast() -> None:
    assert Repeats([run([2 * s for s in QUIET])] * 5).total_s == pytest.approx(2 * sum(QUIET))


def test_kinds_are_told_apart_by_phase() -> None:
    found = Repeats([run(QUIET)]).kind_s()
    assert found == pytest.approx(
        {"prefill.prefill": 3.0, "prefill.sample": 0.5, "decode.forward": 0.7, "decode.sample": 0.2}
    )
    assert kind_of(run(QUIET).spans[-1]) == "decode.sample"


def test_a_job_that_ends_with_prefill_has_no_decode_step() -> None:
    timeline = run(QUIET)
    found = Repeats([Timeline(timeline.spans[:3], 2)])
    assert found.decode_step_s == 0 and found.total_s == pytest.approx(3.5)
