"""Proves before anything runs that a schedule corrupts nothing, deadlocks nowhere and stays within its budgets.

Happens-before is the order within each stream plus the waits. Each operation gets a vector clock, the last operation
of every stream known to have ended before it starts, so every pair of conflicting uses is checked transitively, in
time linear in the schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from planner.errors import ScheduleError
from planner.memory import MemoryLine, planned_bytes
from planner.operation import Buffer, Operation

Clock = list[int]


@dataclass
class _Uses:
    """Who used a buffer last: its writer, and the latest reader on each stream since."""

    writer: Operation | None = None
    readers: dict[int, Operation] = field(default_factory=dict)


def check_hazards(operations: Iterable[Operation]) -> int:
    """Check a schedule; returns the number of operations. ScheduleError names the pair at fault."""
    streams: dict[str, int] = {}
    clocks: list[Clock] = []
    stream_of: list[int] = []
    heads: dict[int, Clock] = {}
    uses: dict[Buffer, _Uses] = {}

    def ended_before(earlier: Operation, clock: Clock) -> bool:
        stream = stream_of[earlier.id]
        return stream < len(clock) and clock[stream] >= earlier.id

    for index, op in enumerate(operations):
        if op.id != index:
            raise ScheduleError(f"operation {index} carries the id {op.id}: ids are positions in issue order")
        forward = next((w for w in op.waits if w >= index or w < 0), None)
        if forward is not None:
            raise ScheduleError(f"{_name(op)} waits for operation {forward}, which is not issued before it: a cycle")
        stream = streams.setdefault(op.stream, len(streams))
        clock = _merge([heads.get(stream, []), *(clocks[w] for w in op.waits)], len(streams))
        for buffer in op.reads:
            use = uses.setdefault(buffer, _Uses())
            if use.writer is not None and not ended_before(use.writer, clock):
                raise ScheduleError(f"{_name(op)} reads {_slot(buffer)} before {_name(use.writer)} has written it")
        for buffer in op.writes:
            use = uses.setdefault(buffer, _Uses())
            for reader in use.readers.values():
                if not ended_before(reader, clock):
                    raise ScheduleError(f"{_name(op)} overwrites {_slot(buffer)} while {_name(reader)} still reads it")
            if use.writer is not None and not ended_before(use.writer, clock):
                raise ScheduleError(f"{_name(op)} overwrites {_slot(buffer)} while {_name(use.writer)} still writes it")
        for buffer in op.reads:
            uses[buffer].readers[stream] = op
        for buffer in op.writes:
            uses[buffer] = _Uses(op)
        after = clock.copy()
        after[stream] = index
        clocks.append(after)
        stream_of.append(stream)
        heads[stream] = after
    return len(clocks)


def check_budget(device: str, lines: list[MemoryLine], capacity_bytes: int) -> None:
    """ScheduleError when the planned allocations exceed the budget of `device`."""
    planned = planned_bytes(lines)
    if planned > capacity_bytes:
        largest = max(lines, key=lambda line: line.nbytes)
        raise ScheduleError(
            f"the plan needs {planned:,} bytes of {device} memory, {planned - capacity_bytes:,} more than the budget "
            f"of {capacity_bytes:,}; its largest line is '{largest.name}' with {largest.nbytes:,}"
        )


def check_slots(operations: Iterable[Operation], slot_bytes: dict[str, int]) -> None:
    """ScheduleError when a transfer is larger than the slot it fills or leaves."""
    for op in operations:
        for name, _ in (*op.writes, *op.reads):
            if name in slot_bytes and op.nbytes > slot_bytes[name]:
                raise ScheduleError(
                    f"{_name(op)} moves {op.nbytes:,} bytes through a {name} slot of {slot_bytes[name]:,}"
                )


def _merge(clocks: Sequence[Clock], streams: int) -> Clock:
    merged = [-1] * streams
    for clock in clocks:
        for i, value in enumerate(clock):
            merged[i] = max(merged[i], value)
    return merged


def _name(op: Operation) -> str:
    where = f"layer {op.layer}, " if op.layer >= 0 else ""
    return f"{op.kind} ({where}part {op.part}, step {op.step}, operation {op.id})"


def _slot(buffer: Buffer) -> str:
    return f"{buffer[0]}[{buffer[1]}]"
