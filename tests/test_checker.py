"""The checker: it rejects every schedule that could corrupt data, and accepts what is only redundant."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from helpers import decisions_of, small_model

from planner.checker import check_budget, check_hazards, check_slots
from planner.decisions import Decisions
from planner.errors import ScheduleError
from planner.forms import ACT_HOST, KV_HOST, blocks_for
from planner.memory import MemoryLine
from planner.operation import Buffer, Operation
from planner.placement import MiniBatch, RequestGroup
from planner.schedule import Schedule

A: Buffer = ("a", 0)


def op(
    index: int, stream: str, waits: Iterable[int] = (), reads: Iterable[Buffer] = (), writes: Iterable[Buffer] = (),
    nbytes: int = 0,
) -> Operation:  # fmt: skip
    return Operation(index, "forward", stream, 1, 0, 0, tuple(waits), tuple(reads), tuple(writes), nbytes)


def mixed(cache_slots: int, weight_slots: int) -> Decisions:
    """Two mini-batches of one request with a block of ACT, then K and V, three layers, two decode steps."""
    blocks = (ACT_HOST,) + (KV_HOST,) * (blocks_for(20 + 3 - 1) - 1)
    batches = [MiniBatch((RequestGroup((i,), 20, 3, blocks),)) for i in range(2)]
    return decisions_of(batches, cache_slots=cache_slots, weight_slots=weight_slots, store_slots=1)


def reached(ops: list[Operation]) -> list[set[int]]:
    """For each operation, everything that ends before it starts: an independent, slow happens-before."""
    before: list[set[int]] = []
    last: dict[str, int] = {}
    for one in ops:
        found: set[int] = set()
        for earlier in (*one.waits, *([last[one.stream]] if one.stream in last else [])):
            found |= {earlier} | before[earlier]
        before.append(found)
        last[one.stream] = one.id
    return before


@pytest.mark.parametrize(("cache_slots", "weight_slots"), [(1, 1), (2, 2), (3, 2)])
def test_every_dropped_wait_is_caught_or_redundant(cache_slots: int, weight_slots: int) -> None:
    ops = list(Schedule(small_model(), mixed(cache_slots, weight_slots)))
    assert check_hazards(ops) == len(ops)
    caught = redundant = 0
    for one in ops:
        for dropped in dict.fromkeys(one.waits):
            fewer = tuple(w for w in one.waits if w != dropped)
            changed = [*ops[: one.id], one._replace(waits=fewer), *ops[one.id + 1 :]]
            if dropped in reached(changed)[one.id]:
                redundant += 1
                assert check_hazards(changed) == len(ops)
            else:
                caught += 1
                with pytest.raises(ScheduleError):
                    check_hazards(changed)
    assert caught > 60
    assert caught > redundant / 2


def test_a_slot_overwritten_while_it_is_read() -> None:
    write, read = op(0, "h2d", writes=[A]), op(1, "compute", [0], reads=[A])
    assert check_hazards([write, read, op(2, "h2d", [1], writes=[A])]) == 3
    with pytest.raises(ScheduleError, match=r"operation 2\) overwrites a\[0\] while .*operation 1\) still reads it"):
        check_hazards([write, read, op(2, "h2d", writes=[A])])


def test_a_slot_read_before_it_is_written() -> None:
    with pytest.raises(ScheduleError, match=r"operation 1\) reads a\[0\] before .*operation 0\) has written it"):
        check_hazards([op(0, "h2d", writes=[A]), op(1, "compute", reads=[A])])


def test_two_writers() -> None:
    with pytest.raises(ScheduleError, match="still writes it"):
        check_hazards([op(0, "h2d", writes=[A]), op(1, "d2h", writes=[A])])
    assert check_hazards([op(0, "h2d", writes=[A]), op(1, "h2d", writes=[A])]) == 2


def test_readers_on_two_streams_both_count() -> None:
    ops = [
        op(0, "h2d", writes=[A]), op(1, "compute", [0], reads=[A]), op(2, "d2h", [0], reads=[A]),
    ]  # fmt: skip
    assert check_hazards([*ops, op(3, "h2d", [1, 2], writes=[A])]) == 4
    for waits in ([1], [2]):
        with pytest.raises(ScheduleError, match="still reads it"):
            check_hazards([*ops, op(3, "h2d", waits, writes=[A])])


def test_order_carries_over_streams() -> None:
    """d2h waits for compute, h2d waits for d2h: compute has ended too."""
    ops = [
        op(0, "compute", reads=[A]),
        op(1, "d2h", [0]),
        op(2, "h2d", [1], writes=[A]),
    ]
    assert check_hazards(ops) == 3


@pytest.mark.parametrize("wait", [1, 2, 7, -1])
def test_a_wait_for_what_is_not_issued_yet(wait: int) -> None:
    with pytest.raises(ScheduleError, match="a cycle"):
        check_hazards([op(0, "h2d"), op(1, "compute", [wait]), op(2, "h2d")])


@pytest.mark.parametrize("ids", [(1, 0), (0, 0), (0, 2), (5,)])
def test_ids_out_of_order(ids: tuple[int, ...]) -> None:
    with pytest.raises(ScheduleError, match="ids are positions in issue order"):
        check_hazards([op(i, "compute") for i in ids])


def test_an_empty_schedule_is_fine() -> None:
    assert check_hazards([]) == 0


def test_a_budget_exceeded_names_the_largest_line() -> None:
    lines = [MemoryLine("small", 256), MemoryLine("big", 1024, "decode"), MemoryLine("other phase", 512, "prefill")]
    check_budget("GPU", lines, 1280)
    with pytest.raises(ScheduleError, match=r"1,280 bytes of GPU memory, 1 more than .* 1,279; .*'big' with 1,024"):
        check_budget("GPU", lines, 1279)


def test_a_budget_counts_alignment() -> None:
    lines = [MemoryLine(str(i), 1) for i in range(4)]
    check_budget("GPU", lines, 4 * 256)
    with pytest.raises(ScheduleError):
        check_budget("GPU", lines, 4 * 256 - 1)


def test_a_transfer_larger_than_its_slot() -> None:
    fine = [op(0, "h2d", writes=[A], nbytes=10), op(1, "d2h", reads=[A], nbytes=10)]
    check_slots(fine, {"a": 10})
    for one in fine:
        with pytest.raises(ScheduleError, match="moves 10 bytes through a a slot of 9"):
            check_slots([one], {"a": 9})
    check_slots(fine, {"b": 1})
