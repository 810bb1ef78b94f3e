"""One wave of a plan on the device: its buffers, carved from the arenas, and the work of its operations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import torch

from planner.decisions import Decisions
from planner.memory import Sizes
from planner.model import ModelSpec
from planner.operation import Operation
from planner.plan import Plan
from runtime.arena import Arena
from runtime.buffers import DecodeBuffers, PrefillBuffers
from runtime.cache import Cache
from runtime.decode import Decode
from runtime.device import Device
from runtime.layers.base import Layers
from runtime.layers.rotary import Rotary
from runtime.prefill import Prefill
from runtime.sampling import Sampling
from runtime.store import WeightStore
from runtime.tokens import Tokens
from runtime.weights import torch_dtype


class Task(NamedTuple):
    """The work of one operation."""

    work: Callable[[], None]
    nbytes: int = 0
    """What it moves over the link."""
    chosen_for: tuple[int, ...] = ()
    """Of a sample operation: whose tokens it chooses."""


class Wave:
    """Everything but the weights, which all waves share.

    Both arenas are left as they were found: the next wave is carved from the same bytes, so only one wave may run at a
    time, and its prompts are set when the one before has ended.
    """

    def __init__(
        self, plan: Plan, decisions: Decisions, layers: Layers, device: Device, weights: WeightStore,
        gpu: Arena, host: Arena,
    ) -> None:  # fmt: skip
        model, dtype, sizes = plan.model, torch_dtype(plan.model), Sizes.of(plan.model, decisions)
        self.decisions, self.device, self.weights = decisions, device, weights
        begin = gpu.mark(), host.mark()
        self.tokens = Tokens(plan.workload, decisions, gpu, device.torch_device)
        self._layers, self._rotary = layers, _rotary(model, decisions, dtype, gpu)
        cache = Cache(model, decisions, dtype, gpu, host)
        overlay = gpu.mark()
        prefill = PrefillBuffers(model, decisions, sizes, dtype, gpu)
        gpu.rewind(overlay)
        decode = DecodeBuffers(model, decisions, sizes, dtype, gpu)
        gpu.rewind(begin[0])
        host.rewind(begin[1])
        shared = (model, decisions, layers, device, weights, cache)
        self._prefill = Prefill(*shared, prefill, self.tokens)
        self._decode = Decode(*shared, decode, self.tokens)

    def begin(self, prompts: Sequence[Sequence[int]], ways: Sequence[Sampling] | None) -> None:
        """Take over the bytes: token ids of the prompts, from those of the whole workload, and the rotary table."""
        self.tokens.set_prompts(prompts, ways)
        if self._rotary:
            self._rotary.fill()
            self._layers.rotary = self._rotary

    def task(self, op: Operation, ended: Collection[int] = ()) -> Task:
        """What `op` does, ready to run on its stream; nothing for the requests in `ended`."""
        if op.kind == "load_weights":
            target, source = self.weights.piece(op)
            return Task(partial(self.device.copy, target, source), op.nbytes)
        if op.kind == "begin_decode":
            return Task(_nothing)
        if op.step == 0:
            prefill = self._prefill
            handlers: dict[str, Callable[[Operation], None]] = {
                "embed": prefill.embed, "prefill": prefill.forward, "store": prefill.store, "sample": prefill.sample,
            }  # fmt: skip
            chosen_for = tuple(prefill.chunk(op).requests) if op.kind == "sample" else ()
            return Task(partial(handlers[op.kind], op), op.nbytes, chosen_for)
        decode = self._decode
        view = decode.view(op, ended)
        if not view.rows:
            return Task(_nothing)
        work = {
            "load_act": decode.load, "load_kv": decode.load, "rebuild": decode.rebuild, "forward": decode.forward,
            "store": decode.store, "embed": decode.embed, "sample": decode.sample,
        }[op.kind]  # fmt: skip
        chosen_for = view.requests if op.kind == "sample" else ()
        return Task(partial(work, op, view), view.moved_bytes.get(op.kind, 0), chosen_for)


def _rotary(model: ModelSpec, decisions: Decisions, dtype: torch.dtype, gpu: Arena) -> Rotary | None:
    if model.rope is None:
        return None
    return Rotary(model, gpu.carve("rotary table", (2, decisions.positions, model.head_dim // 2), dtype))


def _nothing() -> None:
    return None
