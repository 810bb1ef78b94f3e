"""One operation of a schedule, and the rings of buffers that operations share."""

from __future__ import annotations

from typing import NamedTuple

STREAMS = ("h2d", "compute", "d2h")
KINDS = (
    "load_weights", "load_act", "load_kv",
    "embed", "prefill", "rebuild", "forward", "sample", "begin_decode",
    "store",
)  # fmt: skip
"""In the order in which reports list them: transfers to the GPU, compute, transfers to the host."""

Buffer = tuple[str, int]
"""A buffer by name and slot, e.g. ("weights", 1)."""
OVERLAY: Buffer = ("overlay", 0)
"""The bytes that hold prefill's buffers first and decode's after `begin_decode`."""


class Operation(NamedTuple):
    """Operations on one stream run in issue order; `waits` orders them across streams.

    `reads` and `writes` name the buffers touched, so that the checker can prove that nothing is overwritten
    while a reader is pending.
    """

    id: int
    kind: str
    stream: str
    step: int
    """0 in prefill, then the decode step."""
    layer: int
    """-1 where no layer is meant."""
    part: int
    """The mini-batch, or in prefill the chunk within its pass."""
    waits: tuple[int, ...] = ()
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    nbytes: int = 0
    """What crosses the link."""
    slot: int = 0
    """The slot that a load fills, or that a compute operation fills for the store that follows it."""
    offset: int = 0
    """load_weights: where in the layer this piece begins. Prefill operations: the pass."""
    weights: int = -1
    """Compute operations: the weight slot that holds this layer; -1 when the layer is resident."""


class Ring:
    """Slots used in turn. Remembers the last reader of each, which a new use must wait for."""

    def __init__(self, name: str, slots: int) -> None:
        self.name, self.slots, self.uses = name, max(slots, 1), 0
        self._reader: dict[int, int] = {}

    def take(self) -> tuple[int, tuple[int, ...]]:
        """The next slot, and what must end before it may be overwritten."""
        slot = self.uses % self.slots
        self.uses += 1
        return slot, self.freed_by(slot)

    def freed_by(self, slot: int) -> tuple[int, ...]:
        return (self._reader[slot],) if slot in self._reader else ()

    def read_by(self, slot: int, operation: int) -> None:
        self._reader[slot] = operation
