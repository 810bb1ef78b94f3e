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

STREAM_OF = {kind: "h2d" if kind.startswith("load") else "d2h" if kind == "store" else "compute" for kind in KINDS}
"""The stream that each kind runs on."""

Buffer = tuple[str, int]
"""A buffer by name and slot, e.g. ("kv", 1)."""
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
    """The mini-batch, or in prefill the chunk within its pass; of load_weights the part of the layer."""
    waits: tuple[int, ...] = ()
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    nbytes: int = 0
    """What crosses the link."""
    slot: int = 0
    """The slot that a load fills, or that a compute operation fills for the store that follows it."""
    offset: int = 0
    """load_weights: where in its part of the layer this piece begins. Prefill operations: the pass."""
    weights: tuple[int, ...] = ()
    """Compute operations: the slots that hold the parts of this layer that stream, the last of them last."""


class Marks:
    """Of each buffer, the operation that its next use waits for: the last reader of a ring's slot, the newest store
    into host blocks, the last piece of a layer's weights."""

    def __init__(self) -> None:
        self.last: dict[Buffer, int] = {}

    def after(self, buffer: Buffer) -> tuple[int, ...]:
        """What must end before `buffer` is used; nothing where nobody has used it."""
        return (self.last[buffer],) if buffer in self.last else ()

    def set(self, buffer: Buffer, operation: int) -> None:
        """The next use of `buffer` waits for `operation`."""
        self.last[buffer] = operation


class Ring:
    """Slots used in turn; a new use waits for the last reader of the old one."""

    def __init__(self, name: str, slots: int, marks: Marks) -> None:
        self.name, self.slots, self.uses = name, max(slots, 1), 0
        self._marks = marks

    def take(self) -> tuple[int, tuple[int, ...]]:
        """The next slot, and what must end before it may be overwritten."""
        slot = self.uses % self.slots
        self.uses += 1
        return slot, self.freed_by(slot)

    def freed_by(self, slot: int) -> tuple[int, ...]:
        return self._marks.after((self.name, slot))

    def read_by(self, slot: int, operation: int) -> None:
        self._marks.set((self.name, slot), operation)
