"""Where the weights live: resident layers on the GPU, streamed ones on the host and, by turns, in GPU slots."""

from __future__ import annotations

import torch

from planner.decisions import Decisions
from planner.model import ModelSpec
from runtime.arena import Arena
from runtime.layers.base import Layers, Weights, views
from runtime.weights import Home, Source, torch_dtype


class WeightStore:
    """Flat slabs of whole layers, and named views of whatever layer is asked for."""

    def __init__(self, model: ModelSpec, decisions: Decisions, layers: Layers, gpu: Arena, host: Arena) -> None:
        dtype = torch_dtype(model)
        resident = decisions.resident_layers
        streamed = [i for i in range(model.layers) if i not in set(resident)]
        size = model.layer_parameters
        self.layers = layers
        self._outer = gpu.carve("embedding, head and final norm", (model.outer_bytes // model.element_bytes,), dtype)
        self._resident = gpu.carve("resident layers", (len(resident), size), dtype)
        self._slots = gpu.carve("weight slots", (decisions.weight_slots, size), dtype)
        self._host = host.carve("streamed layers", (len(streamed), size), dtype)
        self._row = {layer: i for rows in (resident, streamed) for i, layer in enumerate(rows)}
        shapes = layers.layer_shapes()
        self.outer: Weights = views(self._outer, layers.outer_shapes())
        self._slot_views = [views(slot, shapes) for slot in self._slots]
        self._resident_views = {layer: views(self._resident[self._row[layer]], shapes) for layer in resident}

    def fill(self, source: Source) -> None:
        """Every tensor from `source`, once, into its home."""
        homes = [Home(name, None, tensor) for name, tensor in self.outer.items()]
        shapes = self.layers.layer_shapes()
        for layer, row in self._row.items():
            home = self._resident_views.get(layer) or views(self._host[row], shapes)
            homes += [Home(name, layer, tensor) for name, tensor in home.items()]
        source.fill(homes)

    def views(self, layer: int, slot: int) -> Weights:
        """The weights of `layer`, in weight slot `slot`, or resident when it is -1."""
        return self._resident_views[layer] if slot < 0 else self._slot_views[slot]

    def piece(self, layer: int, slot: int, offset: int, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(target, source) bytes of one piece of a streamed layer."""
        target = self._slots[slot].view(torch.uint8)[offset : offset + nbytes]
        return target, self._host[self._row[layer]].view(torch.uint8)[offset : offset + nbytes]
