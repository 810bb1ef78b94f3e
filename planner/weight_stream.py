"""Which piece of which layer's weights crosses the link when.

While decoding, weights cross at an even rate: after every mini-batch of every layer goes about the same number of
bytes, however much of that layer is resident, so that the link is as busy beside one layer as beside another and one
load serves every mini-batch. In prefill nothing else comes over the link, so they cross whole. Each part of a layer has
slots of its own, so a part that streams of few layers may come long before it is needed. Nothing comes later than the
layer that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from planner.decisions import Decisions
from planner.memory import ALIGNMENT
from planner.model import ModelSpec
from planner.operation import Buffer, Marks
from planner.placement import Ints
from planner.taut_string import taut_string
from planner.weight_units import WeightUnits

_MANY = 8
"""More mini-batches than these are even enough if each layer sends what has become free with it: layers are then alike,
and so sooner simulated."""
_GRAINS = 4
"""A piece is no smaller than this part of what a mini-batch would get of a whole layer: transfers have latency."""


class Piece(NamedTuple):
    """Bytes [offset, offset + nbytes) of one part of a layer into a slot for that part."""

    part: int
    slot: int
    offset: int
    nbytes: int


_Place = tuple[int, int]
"""The number of a unit and bytes of it, up to which is sent."""
_Sent = list[tuple[Piece, int]]
"""Pieces and the layers that they are of."""


class _Plan(NamedTuple):
    """What is sent in one layer."""

    sent: list[_Sent]
    """By part of the layer's work."""
    passed: int
    """Units begun."""
    cut: int
    """Bytes of the last of them that have been sent in the end."""
    kind: int
    """Equal where the same pieces are sent, of whatever layers, and as much has been sent in the end."""


class WeightStream:
    """Walks what streams in the order in which it is sent, ahead of compute."""

    def __init__(self, model: ModelSpec, decisions: Decisions, marks: Marks, steps: int) -> None:
        """`steps`: decode steps, each of which sweeps over the layers like each pass of prefill."""
        self.units = WeightUnits(model, decisions)
        self._layers, self._layer_bytes = model.layers, model.layer_bytes
        self._sweeps = len(decisions.prefill_passes) + steps
        self._marks = marks
        self._names = [f"weights.{part}" for part in range(len(self.units.users))]
        # The link runs ahead of compute by the cache slots: when it comes to a piece, compute is so many parts behind.
        self._lag = decisions.cache_slots - 1
        self._entered, self._target, self._cut = 0, self.units.earliest * len(self.units.units), 0
        self.slots: tuple[int, ...] = ()
        """Where the streamed parts of the current layer are, the first of them first; empty where none streams."""
        self._path = lru_cache(maxsize=None)(self._path_of)
        self._goal = lru_cache(maxsize=None)(self._goal_of)
        self._phase = lru_cache(maxsize=8)(self.units.phase)
        self._plans: dict[tuple[object, ...], _Plan] = {}
        self._kinds: dict[tuple[object, ...], int] = {}

    @property
    def counters(self) -> tuple[int, ...]:
        """All that changes while sweeps go on, besides the marks."""
        return self._entered, self._target, self._cut

    @counters.setter
    def counters(self, values: tuple[int, ...]) -> None:
        self._entered, self._target, self._cut = values

    def phase(self, parts: int, even: bool) -> tuple[object, ...]:
        """All that decides what the next layer does, in so many parts: where it is equal, the same happens."""
        if not self.units.units:
            return ()
        sweep, layer = divmod(self._entered, self._layers)
        return self.units.slots_of(sweep, layer), self._planned(sweep, layer, parts, even).kind

    def sweep_phase(self, parts: int) -> tuple[object, ...]:
        """All that decides what the next sweep does while decoding, with so many parts in every layer."""
        return self._key(self._entered // self._layers, 0, parts, True) if self.units.units else ()

    def first(self) -> Iterator[tuple[Piece, int]]:
        """All that comes before the first layer and with it: (piece, layer)."""
        if self.units.units:
            place = self.units.at(self.units.due(0))
            yield from self._between((self._target, self._cut), place)
            self._target, self._cut = place

    def enter(self) -> None:
        """Compute reaches the next layer."""
        self.slots = self.units.slots_of(*divmod(self._entered, self._layers))
        self._entered += 1

    def operands(self) -> tuple[tuple[int, ...], tuple[Buffer, ...]]:
        """What compute on the current layer waits for, and the buffers that it reads."""
        buffers = self._buffers()
        if not buffers:
            return (), ()
        last = self.units.last_part[(self._entered - 1) % self._layers] - (len(self._names) - len(buffers))
        return self._marks.after(_whole(buffers[last])), buffers

    def pieces(self, position: int, parts: int, even: bool) -> Iterator[tuple[Piece, int]]:
        """What to send after part `position` of `parts` of the current layer, and of which layers: `even`, or whole in
        the end."""
        if self.units.units:
            sweep, layer = divmod(self._entered - 1, self._layers)
            plan = self._planned(sweep, layer, parts, even)
            yield from plan.sent[position]
            if position == parts - 1:
                self._target, self._cut = self._target + plan.passed, plan.cut

    def leave(self, last_operation: int) -> None:
        """Compute on the current layer ends with `last_operation`."""
        for buffer in self._buffers():
            self._marks.set(buffer, last_operation)

    def waits(self, piece: Piece) -> tuple[int, ...]:
        """What must end before its slot may be overwritten."""
        return self._marks.after(self.buffer(piece)) if piece.offset == 0 else ()

    def issued(self, piece: Piece, operation: int) -> None:
        """Note the operation that carries `piece`, which the layer's compute waits for."""
        self._marks.set(_whole(self.buffer(piece)), operation)

    def buffer(self, piece: Piece) -> Buffer:
        """The slot that it fills."""
        return self._names[piece.part], piece.slot

    def layers_at(self, sent: Ints) -> Ints:
        """[pieces] the layers to which pieces belong that begin after so many bytes of all pieces."""
        units, times = self.units.units, self._sweeps - self.units.earliest
        sweep, layer = np.divmod(np.array([unit.layer for unit in units]), self._layers)
        sweeps = (np.arange(self.units.earliest, self._sweeps)[:, None] + sweep).ravel()
        of = np.flatnonzero((sweeps >= 0) & (sweeps < self._sweeps))
        begins = np.cumsum(np.tile([unit.nbytes for unit in units], times)[of])
        layers: Ints = np.tile(layer, times)[of]
        return layers[np.searchsorted(begins, sent, "right")]

    def _buffers(self) -> tuple[Buffer, ...]:
        return tuple(zip(self._names[len(self._names) - len(self.slots) :], self.slots, strict=True))

    # ---- what is sent in one layer ---------------------------------------------------------------

    def _key(self, sweep: int, layer: int, parts: int, even: bool) -> tuple[object, ...]:
        ahead = self._target - sweep * len(self.units.units)
        # Sweeps are alike but for the first ones and the last ones, and for the slots that they begin with.
        few = 3 - self.units.earliest
        since, left = min(sweep, few), min(self._sweeps - sweep, few)
        return even, layer, parts, ahead, self._cut, since, left, self._phase(sweep)

    def _planned(self, sweep: int, layer: int, parts: int, even: bool) -> _Plan:
        key = self._key(sweep, layer, parts, even)
        if (found := self._plans.get(key)) is None:
            found = self._plans[key] = self._plan(sweep, layer, parts, even)
        return found

    def _plan(self, sweep: int, layer: int, parts: int, even: bool) -> _Plan:
        begin: _Place = (self._target, self._cut)
        found: list[_Sent] = []
        for at in range(layer * parts, (layer + 1) * parts):
            end = begin
            if even or at == (layer + 1) * parts - 1:
                number, cut = self._goal(at, parts) if even else self._whole_goal(layer)
                end = max(begin, (sweep * len(self.units.units) + number, cut))
            found.append(self._between(begin, end))
            begin = end
        pieces, passed = tuple(tuple(piece for piece, _ in sent) for sent in found), begin[0] - self._target
        # A number for what is compared and hashed in every layer.
        kind = self._kinds.setdefault((pieces, passed, begin[1]), len(self._kinds))
        return _Plan(found, passed, begin[1], kind)

    def _between(self, begin: _Place, end: _Place) -> _Sent:
        """All from one place to another, but what the sweeps before the job and after it would send."""
        found: _Sent = []
        while begin < end:
            number, cut = begin
            unit, sweep = self.units.unit(number)
            upto = unit.nbytes if number < end[0] else end[1]
            if 0 <= sweep < self._sweeps:
                slot = self.units.slot(sweep, unit.part, unit.use)
                found.append((Piece(unit.part, slot, unit.offset + cut, upto - cut), unit.layer % self._layers))
            begin = (number + 1, 0) if upto == unit.nbytes else (number, upto)
        return found

    def _goal_of(self, at: int, parts: int) -> _Place:
        """How far to send after part `at` of a sweep."""
        grain = self._layer_bytes / (_GRAINS * parts)
        # Of many parts, what has become free since the last layer goes evenly beside this one.
        layer, position = divmod(at, parts)
        begin, share = self.units.room(layer - 1), max(position + 1 - self._lag, 0) / max(parts - self._lag, 1)
        sent = (self.units.room(layer) - begin) * share
        if parts <= _MANY:
            begin, sent = 0, self._path(parts)[at + 1]
        number, cut = self.units.at(max(begin + int(sent // grain * grain), self._due(at, parts)))
        return number, cut // ALIGNMENT * ALIGNMENT

    def _whole_goal(self, layer: int) -> _Place:
        """All for which there are slots before `layer` has ended."""
        return self.units.at(max(self.units.room(layer), self.units.due(layer + 1)))

    def _path_of(self, parts: int) -> list[float]:
        """[parts of a sweep + 1] bytes sent before each part, and in the end: as evenly as due and room allow."""
        gaps = range(-1, self._layers * parts)
        due = [self._due(at, parts) for at in gaps]
        # When the link comes to the piece after a part, compute is behind by the lag.
        room = [max(self.units.room((at - self._lag + 1) // parts), least) for at, least in zip(gaps, due, strict=True)]
        begin = (due[0] + room[0]) / 2
        return taut_string(begin, begin + self.units.ends[-1], due, room)

    def _due(self, at: int, parts: int) -> int:
        """Bytes that must have been sent after part `at` of a sweep, for the part that follows it."""
        return self.units.due((at + 1) // parts)


def _whole(slot: Buffer) -> Buffer:
    """Marks the piece with which the part in a slot is whole."""
    return f"whole {slot[0]}", slot[1]
