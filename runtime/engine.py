"""Runs a schedule on a device: the same operations that the simulator advances clocks over."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from planner.checker import check_budget, check_hazards
from planner.errors import InputError
from planner.memory import aligned, fullest_gpu_lines, fullest_host_lines, host_lines, planned_bytes
from planner.operation import Operation
from planner.plan import Plan
from planner.schedule import Schedule
from planner.timeline import Span, Timeline
from planner.wave_timeline import WavesTimeline
from runtime.arena import Arena
from runtime.device import Device, Ticket
from runtime.keeper import EVERY_S, Keep, Keeper
from runtime.layers.base import layers_for
from runtime.sampling import Sampling
from runtime.store import WeightStore
from runtime.wave import Wave
from runtime.weights import Source

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
        model, waves = plan.model, plan.waves
        self.plan, self.device, self.model = plan, device, model
        gpu_budget = fullest_gpu_lines(model, waves)
        check_budget("GPU", gpu_budget, plan.hardware.gpu.budget_bytes)
        check_budget("host", fullest_host_lines(model, waves), plan.hardware.host.budget_bytes)
        for wave in {wave.shape: wave for wave in waves}.values():
            check_hazards(Schedule(model, wave))
        # Exactly the planned bytes: whatever was not planned fails here, not after an hour.
        self.gpu = Arena("GPU", device.slab("gpu", planned_bytes(gpu_budget)))
        host_bytes = max(sum(aligned(line.nbytes) for line in host_lines(model, wave)) for wave in waves)
        self.host = Arena("host", device.slab("host", host_bytes))
        layers = layers_for(model)
        self.weights = WeightStore(model, waves[0], layers, self.gpu, self.host)
        self.waves = [Wave(plan, wave, layers, device, self.weights, self.gpu, self.host) for wave in waves]
        self.weights.fill(source)
        device.ready()

    def run(
        self, prompts: Sequence[Sequence[int]], progress: Progress | None = None,
        ways: Sequence[Sampling] | None = None, keep: Keep | None = None, keep_every_s: float = EVERY_S,
    ) -> Result:  # fmt: skip
        """Generation for every request. `prompts` are token ids, of the lengths the plan was made for.

        `ways`: how each request's tokens are chosen; greedily without. `keep` is given what requests have while others
        still run, from this thread.
        """
        self._check_prompts(prompts)
        switch = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        issued: list[tuple[Operation, Ticket]] = []
        first: list[int] = []
        generated: dict[int, list[int]] = {}
        try:
            for wave in self.waves:
                wave.begin(prompts, ways)
                if not first:
                    self.device.start_clock()
                first.append(len(issued))
                before = sum(w.decisions.decode_steps for w in self.waves[: len(first) - 1])
                keeper = Keeper(self.plan.workload, wave.decisions, wave.tokens, keep, keep_every_s) if keep else None
                issued += self._issue(wave, before, progress, keeper)
                self.device.synchronize()
                made = wave.tokens.generated()
                if keep:
                    keep(made, True)
                generated |= made
        finally:
            sys.setswitchinterval(switch)
        spans = [
            Span(i, op.kind, op.stream, op.step, op.layer, op.part, *self.device.span_s(ticket), op.nbytes)
            for i, (op, ticket) in enumerate(issued)
        ]
        tokens = [generated[r] for r in range(len(prompts))]
        peaks = {"gpu": self.gpu.peak_bytes, "host": self.host.peak_bytes}
        count = sum(map(len, tokens))
        timeline = Timeline(spans, count) if len(first) == 1 else WavesTimeline(spans, count, tuple(first))
        return Result(tokens, timeline, peaks)

    def _issue(
        self, wave: Wave, steps_before: int, progress: Progress | None, keeper: Keeper | None
    ) -> list[tuple[Operation, Ticket]]:
        """Every operation of a wave to its stream, never far ahead of what has ended."""
        issued: list[tuple[Operation, Ticket]] = []
        pending: deque[tuple[Operation, Ticket]] = deque()
        steps = sum(wave.decode_steps for wave in self.plan.waves)
        for op in Schedule(self.model, wave.decisions):
            waits = [issued[w][1] for w in op.waits]
            ticket = self.device.launch(op.stream, wave.work(op), waits, op.nbytes)
            issued.append((op, ticket))
            pending.append((op, ticket))
            if len(pending) > LOOKAHEAD:
                oldest, ended = pending.popleft()
                ended.wait()
                if keeper and oldest.kind == "sample":
                    keeper.sampled(oldest)
            if progress and op.kind == "sample":
                progress(steps_before + op.step, steps)
        return issued

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
