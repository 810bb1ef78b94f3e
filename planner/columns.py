"""A schedule as columns of numbers: what simulating it and accounting for it needs, without an object per operation.

Most steps are alike, and so are their layers. So the schedule itself is asked for the operations of one section of each
kind, with placeholders for what they wait for of earlier sections; all others are copies with the placeholders filled
in, and a step is recorded as copies of its layers. Nothing is said here about what a schedule does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from planner.operation import KINDS, STREAMS, Buffer, Operation
from planner.schedule import HOST, Schedule, Section

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
KIND_CODE = {kind: code for code, kind in enumerate(KINDS)}
STREAM_CODE = {stream: code for code, stream in enumerate(STREAMS)}
COMPUTE = STREAM_CODE["compute"]
_LOAD_WEIGHTS = KIND_CODE["load_weights"]
_OF_OPERATIONS = ("kind", "stream", "step", "layer", "part", "nbytes", "offset", "wait_counts")
"""Columns with a value for each operation: all but `waits`."""
_NOBODY = -1
"""In place of an operation where nothing needs to be waited for."""


@dataclass(frozen=True)
class Alike:
    """Compute operations by kind, step, part and pass, which are all that their duration depends on."""

    rows: Ints
    """[operations] compute operations."""
    first: Ints
    """[groups] one operation of each group."""
    group: Ints
    """[operations] the group of each of `rows`."""


@dataclass(frozen=True)
class Columns:
    """Operations in issue order. Shapes: [operations], unless said otherwise."""

    kind: Ints
    """Index into KINDS."""
    stream: Ints
    """Index into STREAMS."""
    step: Ints
    layer: Ints
    part: Ints
    nbytes: Ints
    offset: Ints
    waits: Ints
    """[waits] what each operation waits for, one after the other."""
    wait_counts: Ints
    """How many of `waits` belong to each."""

    def __len__(self) -> int:
        return len(self.kind)

    def operation(self, i: int) -> Operation:
        """Operation i, without its waits and buffers."""
        return next(self.operations(np.array([i])))

    def operations(self, rows: Ints) -> Iterator[Operation]:
        """The same of each of `rows`."""
        columns = (self.kind, self.stream, self.step, self.layer, self.part, self.nbytes, self.offset)
        values = zip(rows.tolist(), *(column[rows].tolist() for column in columns), strict=True)
        for i, kind, stream, step, layer, part, nbytes, offset in values:
            yield Operation(i, KINDS[kind], STREAMS[stream], step, layer, part, nbytes=nbytes, offset=offset)

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """Schedules one after the other, none of which waits for another."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _OF_OPERATIONS}
        begins = np.cumsum([0, *(len(part) for part in parts[:-1])])
        return cls(waits=np.concatenate([p.waits + b for p, b in zip(parts, begins.tolist(), strict=True)]), **columns)

    def part_of(self, first: int, last: int) -> Columns:
        """Operations `first` to before `last`, counted from 0, which wait for no earlier ones."""
        begin, end = int(self.wait_counts[:first].sum()), int(self.wait_counts[:last].sum())
        columns = {name: getattr(self, name)[first:last] for name in _OF_OPERATIONS}
        return Columns(waits=self.waits[begin:end] - first, **columns)

    def is_kind(self, *kinds: str) -> npt.NDArray[np.bool_]:
        """Which operations are of one of `kinds`."""
        return np.isin(self.kind, [KIND_CODE[kind] for kind in kinds])

    @cached_property
    def queues(self) -> list[Ints]:
        """Of every stream its operations in order."""
        return [np.flatnonzero(self.stream == code) for code in range(len(STREAMS))]

    @cached_property
    def waiting(self) -> Ints:
        """[waits] the operation that waits."""
        return np.repeat(np.arange(len(self)), self.wait_counts)

    @cached_property
    def needs(self) -> Ints:
        """[streams, operations] how many operations of each stream must have ended before this one may start."""
        position = np.empty(len(self), np.int64)
        for queue in self.queues:
            position[queue] = np.arange(len(queue))
        found = np.zeros((len(STREAMS), len(self)), np.int64)
        np.maximum.at(found, (self.stream[self.waits], self.waiting), position[self.waits] + 1)
        return found

    @cached_property
    def alike(self) -> Alike:
        """Compute operations, grouped."""
        rows = self.queues[COMPUTE]
        steps, parts, passes = (int(column.max(initial=0)) + 1 for column in (self.step, self.part, self.offset[rows]))
        code = ((self.kind * steps + self.step) * parts + self.part)[rows] * passes + self.offset[rows]
        _, first, group = np.unique(code, return_index=True, return_inverse=True)
        return Alike(rows, rows[first], group)


def columns_of(operations: Iterable[Operation]) -> Columns:
    """The columns of any operations, in issue order."""
    ops = list(operations)
    rows = [(KIND_CODE[o.kind], STREAM_CODE[o.stream], o.step, o.layer, o.part, o.nbytes, o.offset) for o in ops]
    kind, stream, step, layer, part, nbytes, offset = np.array(rows, np.int64).reshape(-1, 7).T.copy()
    waits = np.fromiter(chain.from_iterable(op.waits for op in ops), np.int64)
    counts = np.array([len(op.waits) for op in ops], np.int64)
    return Columns(kind, stream, step, layer, part, nbytes, offset, waits, counts)


def schedule_columns(schedule: Schedule) -> Columns:
    """The columns of a whole schedule that nothing has been read from."""
    patterns, copies = _Patterns(schedule), _Copies(len(schedule.decisions.mini_batches))
    for section in schedule.sections():
        copies.add(schedule, section, patterns.of(section))
    return copies.columns(schedule)


class _Placeholders(dict[Buffer, int]):
    """Marks while a section is recorded: a number below zero for what was marked before it, always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Buffer] = []

    def __contains__(self, buffer: object) -> bool:
        return True

    def __missing__(self, buffer: Buffer) -> int:
        self.asked.append(buffer)
        self[buffer] = -len(self.asked)
        return self[buffer]

    def get(self, buffer: Buffer, default: object = None) -> int:
        """Nothing is ever missing."""
        return self[buffer]


@dataclass(frozen=True)
class _Pattern:
    """One section with ids counted from its first operation, and layers from the section's."""

    columns: Columns
    """Waits below zero are for what is marked for `asked`: the first is -1."""
    asked: Sequence[Buffer]
    marked: Sequence[tuple[Buffer, int]]
    """What the section marks, in the end."""
    passed: Sequence[int]
    """What it adds to the counters of the schedule."""


class _Patterns:
    """The pattern of every kind of section, recorded when the first of its kind is asked for."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.mini_batches = schedule, len(schedule.decisions.mini_batches)
        self._known: dict[Hashable, _Pattern] = {}

    def of(self, section: Section) -> _Pattern:
        """That of `section`, which comes next."""
        if (found := self._known.get(section.key)) is None:
            found = self._known[section.key] = self._record(section)
        return found

    def _record(self, section: Section) -> _Pattern:
        """Issue a section with placeholders and leave the schedule as it was."""
        schedule = self.schedule
        marks, before = schedule.marks.last, schedule.counters
        placeholders = _Placeholders()
        schedule.marks.last, schedule.issued = placeholders, 0
        columns = self._composed(section.parts()) if section.parts else columns_of(section.operations())
        schedule.issued += before[0]
        passed = [b - a for a, b in zip(before, schedule.counters, strict=True)]
        schedule.marks.last, schedule.counters = marks, before
        first = max(section.layer, 0)
        back = -first * self.mini_batches
        return _Pattern(
            replace(columns, layer=columns.layer - first), [_moved(buffer, back) for buffer in placeholders.asked],
            [(_moved(buffer, back), op) for buffer, op in placeholders.items() if op >= 0], passed,
        )  # fmt: skip

    def _composed(self, parts: Iterable[Section]) -> Columns:
        copies = _Copies(self.mini_batches)
        for part in parts:
            copies.add(self.schedule, part, self.of(part))
        return copies.joined()


def _moved(buffer: Buffer, by: int) -> Buffer:
    """Host blocks have a slot for each layer; other buffers serve all layers."""
    return (HOST, buffer[1] + by) if buffer[0] == HOST else buffer


class _Copies:
    """Patterns in the order of the job, and what makes each copy different."""

    def __init__(self, mini_batches: int) -> None:
        self.mini_batches = mini_batches
        self._patterns: list[_Pattern] = []
        self._differs: list[tuple[int, int, int, int]] = []
        self._marked: list[int] = []

    def add(self, schedule: Schedule, section: Section, pattern: _Pattern) -> None:
        """A copy of `pattern` for `section`, which the schedule goes past."""
        begins, last, layer = schedule.issued, schedule.marks.last, max(section.layer, 0)
        self._patterns.append(pattern)
        self._differs.append((begins, section.step, layer, len(self._marked)))
        asked, marked = pattern.asked, pattern.marked
        if layer:
            forward = layer * self.mini_batches
            asked = [_moved(buffer, forward) for buffer in asked]
            marked = [(_moved(buffer, forward), op) for buffer, op in marked]
        self._marked += [last.get(buffer, _NOBODY) for buffer in asked]
        for buffer, op in marked:
            last[buffer] = begins + op
        schedule.counters = tuple(a + b for a, b in zip(schedule.counters, pattern.passed, strict=True))

    def joined(self) -> Columns:
        """All copies as one, whose waits for earlier sections are what their marks said."""
        parts = [pattern.columns for pattern in self._patterns]
        kind, stream, layer, part, nbytes, offset, waits, counts = (
            np.concatenate([getattr(one, name) for one in parts])
            for name in ("kind", "stream", "layer", "part", "nbytes", "offset", "waits", "wait_counts")
        )
        differs = np.array(self._differs, np.int64)
        _, step, first, _ = np.repeat(differs, [len(one) for one in parts], axis=0).T
        begins, _, _, marked_from = np.repeat(differs, [len(one.waits) for one in parts], axis=0).T
        marked = np.array([*self._marked, _NOBODY], np.int64)
        waits = np.where(waits >= 0, begins + waits, marked[np.where(waits >= 0, -1, marked_from - waits - 1)])
        return Columns(kind, stream, step.copy(), layer + first, part, nbytes, offset, waits, counts)

    def columns(self, schedule: Schedule) -> Columns:
        """Those of a whole job: with the bytes of every decode step, and the layers of all weights."""
        found = self.joined()
        kind, step, nbytes, layer, waits = found.kind, found.step, found.nbytes, found.layer, found.waits
        for name, by_batch in schedule.decode_bytes.items():
            chosen = np.flatnonzero((kind == KIND_CODE[name]) & (step > 0))
            table = np.zeros((len(by_batch), schedule.decisions.decode_steps), np.int64)
            for m, moved in enumerate(by_batch):
                table[m, : len(moved)] = moved
            nbytes[chosen] = table[found.part[chosen], step[chosen] - 1]
        if (loads := np.flatnonzero(kind == _LOAD_WEIGHTS)).size:  # in order, one layer after the other
            layer[loads] = schedule.layers_at(np.cumsum(nbytes[loads]) - nbytes[loads])
        waiting = found.waiting[waits != _NOBODY]
        counts = np.bincount(waiting, minlength=len(kind))
        return replace(found, waits=waits[waits != _NOBODY], wait_counts=counts)
