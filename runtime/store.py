"""Where the weights live: the first parts of every layer on the GPU, the rest on the host and, by turns, in slots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod

import torch

from planner.decisions import Decisions, kept_bytes
from planner.memory import streamed_bytes
from planner.model import ModelSpec
from planner.operation import Operation
from runtime.arena import Arena
from runtime.layers.base import Layers, Shapes, Weights, views
from runtime.weights import Home, Source, torch_dtype

Parts = dict[int, torch.Tensor]
"""Parts of a layer by their numbers, each flat."""


class WeightStore:
    """Flat slabs of what is resident and of what streams, and named views of whatever layer is asked for."""

    def __init__(self, model: ModelSpec, decisions: Decisions, layers: Layers, gpu: Arena, host: Arena) -> None:
        dtype, e = torch_dtype(model), model.element_bytes
        ends = [nbytes // e for nbytes in model.prefix_bytes]
        sizes = [b - a for a, b in pairwise(ends)]
        kept = [decisions.parts_of(layer) for layer in range(model.layers)]
        streams, any_of = [range(parts, len(sizes)) for parts in kept], range(min(kept), len(sizes))
        self.layers = layers
        outer = gpu.carve("embedding, head and final norm", (model.outer_bytes // e,), dtype)
        resident = gpu.carve("resident weights", (kept_bytes(model, decisions.resident_parts) // e,), dtype)
        slots = gpu.carve("weight slots", (decisions.weight_slots * sum(sizes[part] for part in any_of),), dtype)
        host_flat = host.carve("streamed weights", (sum(streamed_bytes(model, decisions)) // e,), dtype)
        self.outer: Weights = views(outer, layers.outer_shapes())
        self._resident = _laid(resident, sizes, [range(parts) for parts in kept])
        self._streamed = _laid(host_flat, sizes, streams)
        self._slots = _laid(slots, sizes, [any_of] * decisions.weight_slots)
        self._shapes = _by_part(layers.layer_shapes(), ends)
        self._views: dict[tuple[int, tuple[int, ...]], Weights] = {}

    def fill(self, source: Source) -> None:
        """Every tensor from `source`, once, into its home."""
        homes = [Home(name, None, tensor) for name, tensor in self.outer.items()]
        for layer, (kept, rest) in enumerate(zip(self._resident, self._streamed, strict=True)):
            homes += [Home(name, layer, tensor) for name, tensor in self._named(kept | rest).items()]
        source.fill(homes)

    def views(self, layer: int, slots: Sequence[int]) -> Weights:
        """The weights of `layer`, of which the last parts are in these slots."""
        key = layer, tuple(slots)
        if key not in self._views:
            first = len(self._shapes) - len(slots)
            streamed = {first + i: self._slots[slot][first + i] for i, slot in enumerate(slots)}
            self._views[key] = self._named(self._resident[layer] | streamed)
        return self._views[key]

    def piece(self, op: Operation) -> tuple[torch.Tensor, torch.Tensor]:
        """(target, source) bytes of one piece of a part that streams."""
        both = self._slots[op.slot][op.part], self._streamed[op.layer][op.part]
        target, source = (flat.view(torch.uint8)[op.offset : op.offset + op.nbytes] for flat in both)
        return target, source

    def _named(self, parts: Parts) -> Weights:
        return {
            name: tensor for part, flat in parts.items() for name, tensor in views(flat, self._shapes[part]).items()
        }


def _laid(flat: torch.Tensor, sizes: Sequence[int], parts: Sequence[range]) -> list[Parts]:
    """Parts of each layer or slot, all laid one after the other in `flat`."""
    order = [sizes[part] for some in parts for part in some]
    cuts = iter(torch.split(flat, order) if order else ())
    return [{part: next(cuts) for part in some} for some in parts]


def _by_part(shapes: Shapes, ends: Sequence[int]) -> list[Shapes]:
    """The tensors of each part of a layer, in slab order. They end where parts end."""
    at = dict(zip(shapes, accumulate(map(prod, shapes.values())), strict=True))
    return [{name: shape for name, shape in shapes.items() if a < at[name] <= b} for a, b in pairwise(ends)]
