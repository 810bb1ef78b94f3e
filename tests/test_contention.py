"""Streams that slow each other: by hand, without loss of work, and as if alone where nothing slows anything."""

from __future__ import annotations

import itertools

import pytest
from helpers import ideal_hardware, random_decisions, small_model
from hypothesis import given, settings
from slow_clocks import advance, fast

from planner.contention import Contention
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.hardware import HardwareProfile, load_hardware
from planner.link import MAX_COMPUTE_LOST
from planner.operation import STREAMS, Operation
from planner.schedule import Schedule

MODEL = small_model()


def slowed(**link: float) -> HardwareProfile:
    return ideal_hardware().with_values(**{f"link.{key}": value for key, value in link.items()})


def op(i: int, stream: str, *waits: int) -> Operation:
    return Operation(i, "forward" if stream == "compute" else "load_kv", stream, 1, 0, 0, waits=waits)


def run(hardware: HardwareProfile, ops: list[Operation], seconds: list[float]) -> list[tuple[float, float]]:
    spans = fast(ops, lambda one: seconds[one.id], Contention(hardware.link))
    return [(span.start_s, span.end_s) for span in spans]


def test_two_streams_by_hand() -> None:
    """The link at half speed beside compute: 2 s of compute cover 1 s of the transfer, the rest runs alone."""
    hardware = slowed(during_compute=0.5)
    found = run(hardware, [op(0, "h2d"), op(1, "compute")], [3.0, 2.0])
    assert found == [(0.0, pytest.approx(4.0)), (0.0, pytest.approx(2.0))]


def test_compute_loses_what_every_byte_costs_it() -> None:
    """25 GB/s at 1e-11 s a byte: a quarter of compute's speed while the link is busy."""
    hardware = slowed(compute_s_lost_per_byte=1e-11)
    found = run(hardware, [op(0, "h2d"), op(1, "compute")], [2.0, 3.0])
    # 2 s at 0.75 do 1.5 s of work; the other 1.5 s run alone.
    assert found == [(0.0, pytest.approx(2.0)), (0.0, pytest.approx(3.5))]


def test_directions_share_the_link() -> None:
    hardware = slowed(h2d_during_d2h_bytes_per_s=12.5e9, d2h_during_h2d_bytes_per_s=20e9)
    found = run(hardware, [op(0, "h2d"), op(1, "d2h")], [1.0, 1.0])
    # d2h at 0.8 ends after 1.25 s, when h2d at 0.5 has done 0.625 of its second.
    assert found == [(0.0, pytest.approx(1.625)), (0.0, pytest.approx(1.25))]


def test_nothing_stops_compute() -> None:
    speeds = Contention(slowed(compute_s_lost_per_byte=1.0).link).speeds(True, True, True)
    assert speeds[1] == pytest.approx(1 - 2 * MAX_COMPUTE_LOST) and speeds[1] > 0


@given(random_decisions(layers=3))
@settings(deadline=None, max_examples=25)
def test_where_nothing_slows_anything_both_clocks_agree(decisions: Decisions) -> None:
    costs = CostModel(load_hardware("rtx4090-pcie4"), MODEL)
    ops = list(Schedule(MODEL, decisions))

    def seconds(one: Operation) -> float:
        return costs.h2d(one.nbytes) if one.nbytes else 1e-5 * (1 + one.id % 7)

    alone = ideal_hardware()
    assert {speed for speeds in Contention(alone.link).table.values() for speed in speeds} == {1.0}
    left = advance(ops, seconds)
    right = fast(ops, seconds, Contention(alone.link))
    for one, other in zip(left, right, strict=True):
        assert (one.start_s, one.end_s) == pytest.approx((other.start_s, other.end_s), abs=1e-12)


@given(random_decisions(layers=3))
@settings(deadline=None, max_examples=25)
def test_contention_loses_time_and_never_work(decisions: Decisions) -> None:
    """Each span covers its operation at the speeds that the busy streams leave it, between any two events."""
    hardware = slowed(during_compute=0.7, compute_s_lost_per_byte=1e-11, h2d_during_d2h_bytes_per_s=15e9)
    table = Contention(hardware.link).table
    ops = list(Schedule(MODEL, decisions))

    def seconds(one: Operation) -> float:
        return 1e-5 * (1 + one.id % 7)

    spans = fast(ops, seconds, Contention(hardware.link))
    cuts = sorted({at for span in spans for at in (span.start_s, span.end_s)})
    done = [0.0] * len(spans)
    for start, end in itertools.pairwise(cuts):
        running = [next((s for s in spans if s.stream == name and s.start_s <= start and s.end_s >= end), None)
                   for name in STREAMS]  # fmt: skip
        speeds = table[running[0] is not None, running[1] is not None, running[2] is not None]
        for span, speed in zip(running, speeds, strict=True):
            if span is not None:
                done[span.id] += (end - start) * speed
    for one, work in zip(ops, done, strict=True):
        assert work == pytest.approx(seconds(one), rel=1e-6)
    ideal = advance(ops, seconds)
    assert max(s.end_s for s in spans) >= max(s.end_s for s in ideal) * (1 - 1e-9)
