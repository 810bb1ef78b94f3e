"""Runs a schedule on a device: the same operations that the simulator advances clocks over."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from planner.checker import check_budget, check_hazards
from planner.errors import InputError
from planner.memory import Sizes, aligned, gpu_lines, host_lines, planned_bytes
from planner.operation import Operation
from planner.plan import Plan
from planner.schedule import Schedule
from planner.timeline import Span, Timeline
from runtime.arena import Arena
from runtime.buffers import DecodeBuffers, PrefillBuffers
from runtime.cache import Cache
from runtime.decode import Decode
from runtime.device import Device, Ticket
from runtime.layers.base import layers_for
from runtime.prefill import Prefill
from runtime.store import WeightStore
from runtime.tokens import Tokens
from runtime.weights import Source, torch_dtype

SWITCH_S = 1e-4
"""How long this thread may keep Python from the threads of the streams; Python's own 5 ms is a dozen kernels."""
LOOKAHEAD = 1024
"""Operations issued before the oldest must have ended: enough to keep every stream fed, little enough to stop."""

Progress = Callable[[int, int], None]
"""(decode steps issued, decode steps in all)."""


@dataclass(frozen=True)
class Result:
    """What a run produced and how it went."""

    tokens: list[list[int]]
    timeline: Timeline
    peak_bytes: dict[str, int]


class Engine:
    """A plan with its memory allocated and its weights loaded. Prompts may be run any number of times."""

    def __init__(self, plan: Plan, device: Device, source: Source) -> None:
        model, decisions = plan.model, plan.decisions
        self.plan, self.device, self.model, self.decisions = plan, device, model, decisions
        gpu_budget, host_budget = gpu_lines(model, decisions), host_lines(model, decisions)
        check_budget("GPU", gpu_budget, plan.hardware.gpu.budget_bytes)
        check_budget("host", host_budget, plan.hardware.host.budget_bytes)
        check_hazards(Schedule(model, decisions))
        # Exactly the planned bytes: whatever was not planned fails here, not after an hour.
        self.gpu = Arena("GPU", device.slab("gpu", planned_bytes(gpu_budget)))
        self.host = Arena("host", device.slab("host", sum(aligned(line.nbytes) for line in host_budget)))
        dtype, layers, sizes = torch_dtype(model), layers_for(model), Sizes.of(model, decisions)
        self.weights = WeightStore(model, decisions, layers, self.gpu, self.host)
        self.tokens = Tokens(plan.workload, decisions, self.gpu, device.torch_device)
        cache = Cache(model, decisions, dtype, self.gpu, self.host)
        overlay = self.gpu.mark()
        prefill = PrefillBuffers(model, decisions, sizes, dtype, self.gpu)
        self.gpu.rewind(overlay)
        decode = DecodeBuffers(model, decisions, sizes, dtype, self.gpu)
        shared = (model, decisions, layers, device, self.weights, cache)
        self.prefill = Prefill(*shared, prefill, self.tokens)
        self.decode = Decode(*shared, decode, self.tokens)
        self.weights.fill(source)
        device.ready()

    def run(self, prompts: Sequence[Sequence[int]], progress: Progress | None = None) -> Result:
        """Greedy generation for every request. `prompts` are token ids, of the lengths the plan was made for."""
        self._check_prompts(prompts)
        self.tokens.set_prompts(prompts)
        switch = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            issued = self._issue(progress)
            self.device.synchronize()
        finally:
            sys.setswitchinterval(switch)
        spans = [
            Span(op.id, op.kind, op.stream, op.step, op.layer, op.part, *self.device.span_s(ticket), op.nbytes)
            for op, ticket in issued
        ]
        generated = self.tokens.generated()
        peaks = {"gpu": self.gpu.peak_bytes, "host": self.host.peak_bytes}
        return Result(generated, Timeline(spans, sum(len(g) for g in generated)), peaks)

    def _issue(self, progress: Progress | None) -> list[tuple[Operation, Ticket]]:
        """Every operation of the schedule to its stream, never far ahead of what has ended."""
        issued: list[tuple[Operation, Ticket]] = []
        pending: deque[Ticket] = deque()
        self.device.start_clock()
        for op in Schedule(self.model, self.decisions):
            waits = [issued[w][1] for w in op.waits]
            ticket = self.device.launch(op.stream, self._work(op), waits, op.nbytes)
            issued.append((op, ticket))
            pending.append(ticket)
            if len(pending) > LOOKAHEAD:
                pending.popleft().wait()
            if progress and op.kind == "sample":
                progress(op.step, self.decisions.decode_steps)
        return issued

    def _work(self, op: Operation) -> Callable[[], None]:
        if op.kind == "load_weights":
            target, source = self.weights.piece(op.layer, op.slot, op.offset, op.nbytes)
            return partial(self.device.copy, target, source)
        if op.kind == "begin_decode":
            return _nothing
        if op.step == 0:
            handlers: dict[str, Callable[[Operation], None]] = {
                "embed": self.prefill.embed, "prefill": self.prefill.forward,
                "store": self.prefill.store, "sample": self.prefill.sample,
            }  # fmt: skip
            return partial(handlers[op.kind], op)
        decode = self.decode
        work = {
            "load_act": decode.load, "load_kv": decode.load, "rebuild": decode.rebuild, "forward": decode.forward,
            "store": decode.store, "embed": decode.embed, "sample": decode.sample,
        }[op.kind]  # fmt: skip
        return partial(work, op, decode.view(op))

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        requests = self.plan.workload.requests
        if len(prompts) != len(requests):
            what = f"{len(prompts)} prompts for a plan of {len(requests)} requests"
            raise InputError(what, cure="Plan for this input: --workload")
        for request, prompt in zip(requests, prompts, strict=True):
            if len(prompt) != request.prompt_len:
                what = f"{len(prompt)} tokens, planned for {request.prompt_len}"
                raise InputError(what, where=f"prompt '{request.id}'", cure="Plan for this input: --workload")
            beyond = next((t for t in prompt if not 0 <= t < self.model.vocab), None)
            if beyond is not None:
                what = f"token {beyond} is outside the vocabulary of {self.model.vocab}"
                raise InputError(what, where=f"prompt '{request.id}'")


def random_prompts(plan: Plan, seed: int) -> list[list[int]]:
    """Token ids drawn evenly from the vocabulary, for runs whose text does not matter."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, plan.model.vocab, (request.prompt_len,), generator=generator).tolist()
        for request in plan.workload.requests
    ]


def _nothing() -> None:
    return None
