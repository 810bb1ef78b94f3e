"""The operations of a whole job, in the order in which they are issued.

The simulator advances clocks over them and the engine issues them to streams: both read this same sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.decisions import Decisions, PrefillPass
from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, FORMS, KV_HOST
from planner.model import ModelSpec
from planner.operation import OVERLAY, Buffer, Operation, Ring
from planner.placement import FORM_INDEX
from planner.weight_stream import Piece, WeightStream

_ACT_HOST, _KV_HOST, _ACT_GPU = (FORM_INDEX[form.name] for form in (ACT_HOST, KV_HOST, ACT_GPU))


class Schedule:
    """The operations of `decisions`: iterate to read them in issue order (once for each `Schedule`)."""

    def __init__(self, model: ModelSpec, decisions: Decisions) -> None:
        self.model, self.decisions = model, decisions
        self._weights = WeightStream(model, decisions)
        self._rings = {content: Ring(content, decisions.cache_slots) for content in ("act", "kv")}
        self._stores = Ring("store", decisions.store_slots)
        self._host_writer: dict[tuple[int, int], int] = {}
        self._decode_began: tuple[int, ...] = ()
        self._store_bytes = [0 if form.on_gpu else form.token_bytes(model) for form in FORMS]
        self._block_bytes = {f: BLOCK_TOKENS * f.token_bytes(model) for f in (ACT_HOST, KV_HOST)}
        self._issued = 0

    def __iter__(self) -> Iterator[Operation]:
        first = self._weights.first()
        if first:
            yield self._load_piece(first, 0)
        for index, chunks in enumerate(self.decisions.prefill_passes):
            yield from self._prefill_pass(index, chunks)
        if self.decisions.decode_steps:
            yield self._begin_decode()
        for step in range(1, self.decisions.decode_steps + 1):
            yield from self._decode_step(step)

    def _op(self, kind: str, stream: str, step: int, layer: int, part: int, **more: Any) -> Operation:
        operation = Operation(self._issued, kind, stream, step, layer, part, **more)
        self._issued += 1
        return operation

    # ---- prefill ---------------------------------------------------------------------------------

    def _prefill_pass(self, index: int, chunks: PrefillPass) -> Iterator[Operation]:
        parts = range(len(chunks))
        for part in parts:
            yield self._op("embed", "compute", 0, -1, part, offset=index, reads=(OVERLAY,))
        stored = [self._prompt_store_bytes(chunk.mini_batch, chunk.requests) for chunk in chunks]
        for layer in range(self.model.layers):
            self._weights.enter(layer)
            for part in parts:
                prefill = self._compute("prefill", 0, layer, part, stored[part], offset=index)
                yield prefill
                if stored[part]:
                    yield self._store(prefill, stored[part], chunks[part].mini_batch)
                if part == len(chunks) - 1:
                    self._weights.leave(prefill.id)
                yield from self._next_piece(0, part, len(chunks))
        for part in parts:
            yield self._op("sample", "compute", 0, -1, part, offset=index, reads=(OVERLAY,))

    def _prompt_store_bytes(self, mini_batch: int, requests: tuple[int, ...]) -> int:
        """Bytes per layer that the prompts of these requests send to the host."""
        wanted = set(requests)
        total = 0
        for group in self.decisions.mini_batches[mini_batch].groups:
            members = len(wanted.intersection(group.requests))
            for i, form in enumerate(group.blocks[: group.prompt_blocks]):
                tokens = min(BLOCK_TOKENS, group.prompt_len - i * BLOCK_TOKENS)
                total += members * tokens * self._store_bytes[FORM_INDEX[form.name]]
        return total

    def _begin_decode(self) -> Operation:
        """From here on the overlay holds decode's buffers: prefill's last compute and last store come first."""
        stores = tuple(self._host_writer.values())
        waits = (max(stores),) if stores else ()
        began = self._op("begin_decode", "compute", 0, -1, 0, waits=waits, writes=(OVERLAY,))
        self._decode_began = (began.id,)
        return began

    # ---- decode ----------------------------------------------------------------------------------

    def _decode_step(self, step: int) -> Iterator[Operation]:
        active = [m for m, batch in enumerate(self.decisions.mini_batches) if batch.decode_steps >= step]
        for m in active:
            yield self._op("embed", "compute", step, -1, m, reads=(OVERLAY,))
        for layer in range(self.model.layers):
            self._weights.enter(layer)
            for position, m in enumerate(active):
                yield from self._decode_part(step, layer, m, last=m == active[-1])
                yield from self._next_piece(step, position, len(active))
        for m in active:
            yield self._op("sample", "compute", step, -1, m, reads=(OVERLAY,))

    def _decode_part(self, step: int, layer: int, m: int, last: bool) -> Iterator[Operation]:
        shapes = self.decisions.mini_batches[m].shapes
        blocks = shapes.blocks[step - 1]
        act = self._load("act", step, layer, m, int(blocks[_ACT_HOST]) * self._block_bytes[ACT_HOST])
        kv = self._load("kv", step, layer, m, int(blocks[_KV_HOST]) * self._block_bytes[KV_HOST])
        yield from (load for load in (act, kv) if load)
        rebuilds = bool(blocks[_ACT_HOST] + blocks[_ACT_GPU])
        if rebuilds:
            rebuild = self._compute("rebuild", step, layer, m, 0, act, writes=(("rebuilt", 0),))
            yield rebuild
        stored = int(shapes.new_tokens[step - 1] @ self._store_bytes)
        rebuilt: tuple[Buffer, ...] = (("rebuilt", 0),) if rebuilds else ()
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
        written = self._host_writer.get((layer, m))
        return self._op(
            f"load_{content}", "h2d", step, layer, m, nbytes=nbytes, slot=slot,
            waits=free + self._decode_began + ((written,) if written is not None else ()),
            reads=(self._host(layer, m), OVERLAY), writes=((content, slot),),
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
            self._rings[content[0]].read_by(content[1], self._issued)
        if stored:
            slot, free = self._stores.take()
            waits, writes = waits + free, (*writes, ("store", slot))
        return self._op(
            kind, "compute", step, layer, part, waits=waits, reads=(*buffers, *reads, OVERLAY), writes=writes,
            slot=slot, offset=offset, weights=self._weights.slot,
        )  # fmt: skip

    def _store(self, source: Operation, nbytes: int, m: int) -> Operation:
        operation = self._op(
            "store", "d2h", source.step, source.layer, source.part, nbytes=nbytes, slot=source.slot,
            offset=source.offset, waits=(source.id,), reads=(("store", source.slot), OVERLAY),
            writes=(self._host(source.layer, m),),
        )  # fmt: skip
        self._stores.read_by(source.slot, operation.id)
        self._host_writer[source.layer, m] = operation.id
        return operation

    def _next_piece(self, step: int, position: int, parts: int) -> Iterator[Operation]:
        piece = self._weights.piece(position, parts)
        if piece:
            yield self._load_piece(piece, step)

    def _load_piece(self, piece: Piece, step: int) -> Operation:
        operation = self._op(
            "load_weights", "h2d", step, piece.layer, 0, waits=piece.waits, writes=(("weights", piece.slot),),
            nbytes=piece.nbytes, slot=piece.slot, offset=piece.offset,
        )  # fmt: skip
        self._weights.issued(piece, operation.id)
        return operation

    def _host(self, layer: int, m: int) -> Buffer:
        return ("host", layer * len(self.decisions.mini_batches) + m)
