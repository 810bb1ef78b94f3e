"""The operations of a whole job, in the order in which they are issued.

The simulator advances clocks over them and the engine issues them to streams: both read this same sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from planner.decisions import Decisions, PrefillPass
from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, FORMS, KV_HOST
from planner.model import ModelSpec
from planner.operation import OVERLAY, Buffer, Marks, Operation, Ring
from planner.placement import FORM_INDEX, Ints
from planner.weight_stream import Piece, WeightStream

_ACT_HOST, _KV_HOST, _ACT_GPU = (FORM_INDEX[form.name] for form in (ACT_HOST, KV_HOST, ACT_GPU))
HOST = "host"
"""Host blocks of one mini-batch are a buffer per layer: layer times mini-batches, plus the mini-batch."""
_NEWEST_STORE: Buffer = ("store", -1)
"""Marks the newest store of all."""


class Section(NamedTuple):
    """Operations that follow each other: a decode step, a layer of it or of a prefill pass, or what frames the layers.

    Sections of equal keys are alike: they differ in the ids of their operations, in step and layer, in the layers that
    pieces of weights belong to, in what they wait for of earlier sections and, while decoding, in `decode_bytes`.
    """

    key: Hashable
    step: int
    layer: int
    """The first, -1 where none is meant."""
    operations: Callable[[], Iterator[Operation]]
    parts: Callable[[], Iterator[Section]] | None = None
    """Sections that are the same operations; the rules of `Schedule.sections` hold for them, too."""


class _Part(NamedTuple):
    """What one mini-batch does in every layer of one decode step. Bytes are those of one layer."""

    mini_batch: int
    act_bytes: int
    kv_bytes: int
    rebuilds: bool
    stored_bytes: int

    @property
    def does(self) -> tuple[int, bool, bool, bool, bool]:
        """What it does, whatever the number of bytes."""
        return self.mini_batch, self.act_bytes > 0, self.kv_bytes > 0, self.rebuilds, self.stored_bytes > 0


class Schedule:
    """The operations of `decisions`: iterate to read them in issue order (once for each `Schedule`)."""

    def __init__(self, model: ModelSpec, decisions: Decisions, steps: Sequence[int] | None = None) -> None:
        """`steps`: decode steps to walk, in ascending order, where it is not all of them."""
        self.model, self.decisions = model, decisions
        self.steps = range(1, decisions.decode_steps + 1) if steps is None else steps
        self.marks = Marks()
        """What later operations wait for."""
        self.issued = 0
        """The id of the next operation."""
        self._does: dict[tuple[object, ...], int] = {}
        """A number for all that mini-batches do in a step: it is compared and hashed in every layer."""
        self._weights = WeightStream(model, decisions, self.marks, len(self.steps))
        self._rings = {content: Ring(content, decisions.cache_slots, self.marks) for content in ("act", "kv")}
        self._stores = Ring("store", decisions.store_slots, self.marks)
        self._store_bytes = np.array([0 if form.on_gpu else form.token_bytes(model) for form in FORMS], np.int64)
        self._block_bytes = {f: BLOCK_TOKENS * f.token_bytes(model) for f in (ACT_HOST, KV_HOST)}

    def __iter__(self) -> Iterator[Operation]:
        for section in self.sections():
            yield from section.operations()

    def sections(self) -> Iterator[Section]:
        """The whole job. The operations of a section are read, or set `counters` and `marks` to what they would be
        after that, before the next section is asked for."""
        yield Section("first", 0, -1, self._first_layer)
        for index, chunks in enumerate(self.decisions.prefill_passes):
            yield from self._prefill_pass(index, chunks)
        if self.steps:
            yield Section("begin", 0, -1, self._begin_decode)
        for step in self.steps:
            yield self._decode_step(step)

    @property
    def counters(self) -> tuple[int, ...]:
        """All that changes from section to section, besides the marks."""
        return self.issued, self._stores.uses, *(ring.uses for ring in self._rings.values()), *self._weights.counters

    @counters.setter
    def counters(self, values: tuple[int, ...]) -> None:
        self.issued, self._stores.uses, self._rings["act"].uses, self._rings["kv"].uses, *weights = values
        self._weights.counters = tuple(weights)

    def layers_at(self, sent: Ints) -> Ints:
        """[pieces] the layers to which pieces of weights belong that begin after so many bytes of all pieces."""
        return self._weights.layers_at(sent)

    def _phase(self, parts: int, even: bool) -> tuple[object, ...]:
        """All that a layer's operations depend on besides its parts and the marks."""
        return (*self._slots, *self._weights.phase(parts, even))

    @property
    def _slots(self) -> tuple[int, ...]:
        """The next of every ring."""
        return tuple(ring.uses % ring.slots for ring in (self._stores, *self._rings.values()))

    def _first_layer(self) -> Iterator[Operation]:
        yield from (self._load_piece(*sent, 0) for sent in self._weights.first())

    def _op(self, kind: str, stream: str, step: int, layer: int, part: int, **more: Any) -> Operation:
        operation = Operation(self.issued, kind, stream, step, layer, part, **more)
        self.issued += 1
        return operation

    # ---- prefill ---------------------------------------------------------------------------------

    def _prefill_pass(self, index: int, chunks: PrefillPass) -> Iterator[Section]:
        stored = tuple(sum(self._prompt_bytes[r] for r in chunk.requests) for chunk in chunks)
        yield Section(("embed", index), 0, -1, partial(self._frame, "embed", 0, range(len(chunks)), index))
        for layer in range(self.model.layers):
            operations = partial(self._prefill_layer, index, layer, chunks, stored)
            yield Section(("prefill", index, *self._phase(len(chunks), False)), 0, layer, operations)
        yield Section(("sample", index), 0, -1, partial(self._frame, "sample", 0, range(len(chunks)), index))

    def _frame(self, kind: str, step: int, parts: Iterable[int], offset: int = 0) -> Iterator[Operation]:
        """What comes before or after all layers."""
        for part in parts:
            yield self._op(kind, "compute", step, -1, part, offset=offset, reads=(OVERLAY,))

    def _prefill_layer(self, index: int, layer: int, chunks: PrefillPass, stored: Sequence[int]) -> Iterator[Operation]:
        self._weights.enter()
        for part, nbytes in enumerate(stored):
            prefill = self._compute("prefill", 0, layer, part, nbytes, offset=index)
            yield prefill
            if nbytes:
                yield self._store(prefill, nbytes, chunks[part].mini_batch)
            if part == len(chunks) - 1:
                self._weights.leave(prefill.id)
            yield from self._next_pieces(0, part, len(chunks))

    @cached_property
    def _prompt_bytes(self) -> dict[int, int]:
        """Bytes per layer that the prompt of each request sends to the host."""
        found: dict[int, int] = {}
        for group in (group for batch in self.decisions.mini_batches for group in batch.groups):
            full, rest = divmod(group.prompt_len, BLOCK_TOKENS)
            tokens = BLOCK_TOKENS * group.prefix_counts[full]
            if rest:
                tokens = tokens + rest * (group.prefix_counts[full + 1] - group.prefix_counts[full])
            found.update(dict.fromkeys(group.requests, int(tokens @ self._store_bytes)))
        return found

    def _begin_decode(self) -> Iterator[Operation]:
        """From here on the overlay holds decode's buffers: prefill's last compute and last store come first."""
        waits = self.marks.after(_NEWEST_STORE)
        began = self._op("begin_decode", "compute", 0, -1, 0, waits=waits, writes=(OVERLAY,))
        self.marks.set(OVERLAY, began.id)
        yield began

    # ---- decode ----------------------------------------------------------------------------------

    @cached_property
    def decode_bytes(self) -> dict[str, list[Ints]]:
        """By kind of operation: of every mini-batch [steps], what it moves per layer in each of its decode steps."""
        found: dict[str, list[Ints]] = {"load_act": [], "load_kv": [], "store": []}
        for batch in self.decisions.mini_batches:
            blocks = batch.shapes.blocks
            found["load_act"].append(blocks[:, _ACT_HOST] * self._block_bytes[ACT_HOST])
            found["load_kv"].append(blocks[:, _KV_HOST] * self._block_bytes[KV_HOST])
            found["store"].append(batch.shapes.new_tokens @ self._store_bytes)
        return found

    def _decode_step(self, step: int) -> Section:
        batches = self.decisions.mini_batches
        parts = tuple(self._part(m, step) for m, batch in enumerate(batches) if batch.decode_steps >= step)
        does = self._does.setdefault(tuple(part.does for part in parts), len(self._does))
        sections = partial(self._decode_sections, step, parts, does)
        key = "step", does, self._slots, self._weights.sweep_phase(len(parts))
        return Section(key, step, 0, lambda: (op for section in sections() for op in section.operations()), sections)

    def _decode_sections(self, step: int, parts: Sequence[_Part], does: int) -> Iterator[Section]:
        active = tuple(part.mini_batch for part in parts)
        yield Section(("embed", active), step, -1, partial(self._frame, "embed", step, active))
        for layer in range(self.model.layers):
            kind = "last layer" if layer == self.model.layers - 1 else "layer"
            operations = partial(self._decode_layer, step, layer, parts)
            yield Section((kind, does, *self._phase(len(parts), True)), step, layer, operations)

    def _part(self, m: int, step: int) -> _Part:
        act, kv, stored = (int(of[m][step - 1]) for of in self.decode_bytes.values())
        on_gpu = int(self.decisions.mini_batches[m].shapes.blocks[step - 1, _ACT_GPU])
        return _Part(m, act, kv, rebuilds=bool(act or on_gpu), stored_bytes=stored)

    def _decode_layer(self, step: int, layer: int, parts: Sequence[_Part]) -> Iterator[Operation]:
        """Each mini-batch's tokens are chosen right after its last layer: were they all chosen in the end, the link,
        whose slots are full by then, would wait for it."""
        self._weights.enter()
        for position, part in enumerate(parts):
            yield from self._decode_part(step, layer, part, last=position == len(parts) - 1)
            yield from self._next_pieces(step, position, len(parts))
            if layer == self.model.layers - 1:
                yield from self._frame("sample", step, (part.mini_batch,))

    def _decode_part(self, step: int, layer: int, part: _Part, last: bool) -> Iterator[Operation]:
        m, stored = part.mini_batch, part.stored_bytes
        act = self._load("act", step, layer, m, part.act_bytes)
        kv = self._load("kv", step, layer, m, part.kv_bytes)
        yield from (load for load in (act, kv) if load)
        rebuilt: tuple[Buffer, ...] = (("rebuilt", 0),) if part.rebuilds else ()
        if part.rebuilds:
            yield self._compute("rebuild", step, layer, m, 0, act, writes=rebuilt)
        forward = self._compute("forward", step, layer, m, stored, kv, reads=rebuilt)
        yield forward
        if stored:
            yield self._store(forward, stored, m)
        if last:
            self._weights.leave(forward.id)

    def _load(self, content: str, step: int, layer: int, m: int, nbytes: int) -> Operation | None:
        """This layer's host blocks of one mini-batch, once the newest of them has been stored."""
        if not nbytes:
            return None
        slot, free = self._rings[content].take()
        host = self._host(layer, m)
        return self._op(
            f"load_{content}", "h2d", step, layer, m, nbytes=nbytes, slot=slot,
            waits=free + self.marks.after(OVERLAY) + self.marks.after(host),
            reads=(host, OVERLAY), writes=((content, slot),),
        )  # fmt: skip

    # ---- parts of both ---------------------------------------------------------------------------

    def _compute(
        self, kind: str, step: int, layer: int, part: int, stored: int, load: Operation | None = None,
        reads: tuple[Buffer, ...] = (), writes: tuple[Buffer, ...] = (), offset: int = 0,
    ) -> Operation:  # fmt: skip
        """Compute that needs the layer's weights, perhaps a loaded slot, and a free store slot if it stores."""
        waits, buffers = self._weights.operands()
        slot = 0
        if load:
            content = load.writes[0]
            waits, buffers = (*waits, load.id), (*buffers, content)
            self._rings[content[0]].read_by(content[1], self.issued)
        if stored:
            slot, free = self._stores.take()
            waits, writes = waits + free, (*writes, ("store", slot))
        return self._op(
            kind, "compute", step, layer, part, waits=waits, reads=(*buffers, *reads, OVERLAY), writes=writes,
            slot=slot, offset=offset, weights=self._weights.slots,
        )  # fmt: skip

    def _store(self, source: Operation, nbytes: int, m: int) -> Operation:
        host = self._host(source.layer, m)
        operation = self._op(
            "store", "d2h", source.step, source.layer, source.part, nbytes=nbytes, slot=source.slot,
            offset=source.offset, waits=(source.id,), reads=(("store", source.slot), OVERLAY),
            writes=(host,),
        )  # fmt: skip
        self._stores.read_by(source.slot, operation.id)
        self.marks.set(host, operation.id)
        self.marks.set(_NEWEST_STORE, operation.id)
        return operation

    def _next_pieces(self, step: int, position: int, parts: int) -> Iterator[Operation]:
        yield from (self._load_piece(*sent, step) for sent in self._weights.pieces(position, parts, step > 0))

    def _load_piece(self, piece: Piece, layer: int, step: int) -> Operation:
        operation = self._op(
            "load_weights", "h2d", step, layer, piece.part, waits=self._weights.waits(piece),
            writes=(self._weights.buffer(piece),), nbytes=piece.nbytes, slot=piece.slot, offset=piece.offset,
        )  # fmt: skip
        self._weights.issued(piece, operation.id)
        return operation

    def _host(self, layer: int, m: int) -> Buffer:
        return (HOST, layer * len(self.decisions.mini_batches) + m)
