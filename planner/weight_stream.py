"""Which piece of which layer's weights crosses the link when.

The next streamed layer is cut into pieces that fill the gaps between the mini-batches' cache transfers, so that one
load serves every mini-batch and the link never carries a whole layer at once.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.decisions import Decisions
from planner.memory import ALIGNMENT
from planner.model import ModelSpec
from planner.operation import Buffer, Marks, Ring

_WHOLE = "piece"
"""Marks the last piece in a slot: with it the layer is whole."""


class Piece(NamedTuple):
    """Bytes [offset, offset + nbytes) of `layer` into weight slot `slot`, after `waits`."""

    layer: int
    slot: int
    offset: int
    nbytes: int
    waits: tuple[int, ...]


class WeightStream:
    """Walks the streamed layers in the order in which sweeps visit them, one visit ahead of compute."""

    def __init__(self, model: ModelSpec, decisions: Decisions, marks: Marks, steps: int) -> None:
        """`steps`: decode steps, each of which sweeps over the layers like each pass of prefill."""
        self._layers, self._layer_bytes = model.layers, model.layer_bytes
        self._streamed = [i for i in range(model.layers) if i not in set(decisions.resident_layers)]
        self._sweeps = len(decisions.prefill_passes) + steps
        self._marks, self._ring = marks, Ring("weights", decisions.weight_slots, marks)
        # The link runs ahead of compute by the cache slots, so a slot is free that many mini-batches into a layer.
        self._lag = decisions.cache_slots - 1
        self._target = 0
        self._cut = 0
        self._visit = -1
        self._gap_done = 0
        self._current_slot = -1

    @property
    def counters(self) -> tuple[int, ...]:
        """All that changes while sweeps go on, besides the marks."""
        return self._visit, self._target, self._cut, self._gap_done

    @counters.setter
    def counters(self, values: tuple[int, ...]) -> None:
        self._visit, self._target, self._cut, self._gap_done = values

    def phase(self, layer: int) -> tuple[int, ...]:
        """All that decides what happens from `enter(layer)` to `leave`: where it is equal, the same happens."""
        if not self._streamed:
            return ()
        visit, target, slots = self._visit, self._target, self._ring.slots
        ended = target >= self._sweeps * len(self._streamed)
        return (
            layer in self._streamed, visit < 0, visit % slots, target % slots, target - visit, self._cut,
            self._gap_done, 0 if ended else self._gap(),
        )  # fmt: skip

    @property
    def target_layer(self) -> int:
        """The layer whose pieces are sent next; -1 where every layer is resident."""
        return self._streamed[self._target % len(self._streamed)] if self._streamed else -1

    def first(self) -> Piece | None:
        """The whole first streamed layer, before anything can overlap with it."""
        return self._piece_up_to(self._layer_bytes) if self._streamed else None

    def issued(self, piece: Piece, operation: int) -> None:
        """Note the operation that carries `piece`, which the layer's compute waits for."""
        self._marks.set((_WHOLE, piece.slot), operation)
        if self._cut == self._layer_bytes:
            self._target, self._cut = self._target + 1, 0

    def enter(self, layer: int) -> None:
        """Compute reaches `layer`."""
        if layer in self._streamed:
            self._visit += 1
            self._current_slot = self._visit % self._ring.slots
            self._gap_done = 0
        else:
            self._current_slot = -1
            self._gap_done += 1

    @property
    def slot(self) -> int:
        """Where the current layer's weights are; -1 when it is resident."""
        return self._current_slot

    def operands(self) -> tuple[tuple[int, ...], tuple[Buffer, ...]]:
        """What compute on the current layer waits for, and the buffer it reads."""
        if self._current_slot < 0:
            return (), ()
        return self._marks.after((_WHOLE, self._current_slot)), (("weights", self._current_slot),)

    def piece(self, position: int, parts: int) -> Piece | None:
        """The piece to send after part `position` of `parts` of the current layer, if one is due."""
        if self._visit < 0 or self._target != self._visit + 1 or self._target >= self._sweeps * len(self._streamed):
            return None
        gap = self._gap()
        last = position == parts - 1 and self._gap_done == gap - 1
        if self._ring.slots == 1 and not last:
            return None
        lag = min(self._lag, parts - 1) if self._gap_done == 0 else 0
        share = max(position + 1 - lag, 0) / (parts - lag)
        progress = 1.0 if last else (self._gap_done + share) / gap
        upto = self._layer_bytes if last else int(self._layer_bytes * progress) // ALIGNMENT * ALIGNMENT
        return self._piece_up_to(upto) if upto > self._cut else None

    def leave(self, last_operation: int) -> None:
        """Compute on the current layer ends with `last_operation`."""
        if self._current_slot >= 0:
            self._ring.read_by(self._current_slot, last_operation)

    def _gap(self) -> int:
        """Layers from the previous streamed visit, inclusive, to the target, exclusive."""
        n = len(self._streamed)
        after, before = self._streamed[self._target % n], self._streamed[(self._target - 1) % n]
        return (after - before - 1) % self._layers + 1

    def _piece_up_to(self, upto: int) -> Piece:
        slot = self._target % self._ring.slots
        layer = self._streamed[self._target % len(self._streamed)]
        waits = self._ring.freed_by(slot) if self._cut == 0 else ()
        piece = Piece(layer, slot, self._cut, upto - self._cut, waits)
        self._cut = upto
        return piece
