"""What streams of a model's weights: which part of which layer, in the order in which it is sent."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from planner.decisions import Decisions
from planner.memory import ALIGNMENT
from planner.model import ModelSpec

_AHEAD = 4
"""Layers that a part may come before its own at most, so that few are sent before the first layer."""


class Unit(NamedTuple):
    """One part of one layer that streams, or a piece of it. Layers are counted from the first of a sweep: those beyond
    are a later's."""

    free_from: int
    """Layers that must have ended before it is sent, of those of this sweep."""
    layer: int
    part: int
    use: int
    """Which use of the slots for this part it is in a sweep."""
    offset: int
    """Where in the part it begins."""
    nbytes: int


class WeightUnits:
    """The units of a plan, of which every sweep sends the same in the same order, without end.

    A part may be sent once the layer that used its slot before has ended; where that is several layers before its own,
    a piece of it may after each of them. Units are sorted by that, which happens again and again: unit `n` of sweep `s`
    has the number `s * len(units) + n`, where those with numbers below zero are sent before the first layer.
    """

    def __init__(self, model: ModelSpec, decisions: Decisions) -> None:
        self.layers, self.slots = model.layers, decisions.weight_slots
        sizes = [b - a for a, b in pairwise(model.prefix_bytes)]
        kept = [decisions.parts_of(layer) for layer in range(model.layers)]
        self.users = [[layer for layer, parts in enumerate(kept) if parts <= part] for part in range(len(sizes))]
        """[parts] the layers of which each part streams."""
        self.units = sorted(
            unit for part, users in enumerate(self.users) for use, layer in enumerate(users)
            for unit in self._units(layer, part, use, sizes[part])
        )  # fmt: skip
        self.ends = [0, *accumulate(unit.nbytes for unit in self.units)]
        """[units + 1] bytes of a sweep before each, and of all."""
        free = [unit.free_from for unit in self.units]
        self._rooms = [self.ends[bisect_right(free, ended)] for ended in range(model.layers)]
        self._dues = [self._due(layer) if self.units else 0 for layer in range(model.layers)]
        self._uses = [
            [(part, bisect_right(users, layer) - 1) for part, users in enumerate(self.users) if layer in users]
            for layer in range(model.layers)
        ]
        """[layers] of each part that streams which use of its slots it is."""
        self.last_part = [self._last_part(layer) for layer in range(model.layers)]
        """[layers] the part that is sent last of each; -1 where none is."""
        self.earliest = min((-(unit.layer // model.layers) for unit in self.units), default=0)
        """The sweep in whose place the first units of a job are sent: the one before its first, mostly."""

    def _units(self, layer: int, part: int, use: int, nbytes: int) -> Iterator[Unit]:
        sweeps, before = divmod(use - self.slots, len(self.users[part]))
        free_from = max(self.users[part][before] + sweeps * self.layers + 1, layer - _AHEAD)
        cuts = max(layer - free_from, 1)
        ends = [nbytes * cut // cuts // ALIGNMENT * ALIGNMENT for cut in range(cuts)] + [nbytes]
        for cut, (begin, end) in enumerate(pairwise(ends)):
            later = -((free_from + cut - 1) // self.layers) * self.layers
            if end > begin:
                yield Unit(free_from + cut + later, layer + later, part, use, begin, end - begin)

    def _due(self, layer: int) -> int:
        """Bytes up to the last unit of `layer` and all before it."""
        last = (
            (layer - unit.layer) // self.layers * self.ends[-1] + self.ends[n + 1] for n, unit in enumerate(self.units)
        )
        return max(last)

    def _last_part(self, layer: int) -> int:
        mine = [(unit.free_from - unit.layer, unit.part) for unit in self.units if unit.layer % self.layers == layer]
        return max(mine, default=(0, -1))[1]

    def due(self, layer: int) -> int:
        """Bytes that must have been sent before `layer`, counted from the first of any sweep, is computed."""
        sweeps, layer = divmod(layer, self.layers)
        return sweeps * self.ends[-1] + self._dues[layer]

    def room(self, ended: int) -> int:
        """Bytes for which there are slots once so many layers have ended."""
        sweeps, layers = divmod(ended, self.layers)
        return sweeps * self.ends[-1] + self._rooms[layers]

    def at(self, nbytes: int) -> tuple[int, int]:
        """The number of the unit that begins at or before so many bytes, and how many of it those are."""
        sweeps, rest = divmod(nbytes, self.ends[-1])
        n = bisect_right(self.ends, rest) - 1
        return sweeps * len(self.units) + n, rest - self.ends[n]

    def unit(self, number: int) -> tuple[Unit, int]:
        """The unit of a number, and the sweep that needs it."""
        sweeps, n = divmod(number, len(self.units))
        return self.units[n], sweeps + self.units[n].layer // self.layers

    def slot(self, sweep: int, part: int, use: int) -> int:
        """The slot for a part in one use of a sweep."""
        return (sweep * len(self.users[part]) + use) % self.slots

    def slots_of(self, sweep: int, layer: int) -> tuple[int, ...]:
        """[parts that stream] the slots that hold a layer's, by part; empty where none does."""
        return tuple(self.slot(sweep, part, use) for part, use in self._uses[layer])

    def phase(self, sweep: int) -> tuple[int, ...]:
        """What slots depend on from sweep to sweep."""
        return tuple(sweep * len(users) % max(self.slots, 1) for users in self.users)
