"""Runs a schedule on a device: the same operations that the simulator advances clocks over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planner.checker import check_budget, check_hazards
from planner.errors import InputError
from planner.memory import aligned, fullest_gpu_lines, fullest_host_lines, host_lines, planned_bytes
from planner.plan import Plan
from planner.schedule import Schedule
from planner.timeline import Span, Timeline
from planner.wave_timeline import WavesTimeline
from runtime.arena import Arena
from runtime.device import Device
from runtime.ending import Ends
from runtime.issuing import Issued, Issuer
from runtime.keeper import EVERY_S, Keep, Keeper
from runtime.layers.base import layers_for
from runtime.live import Live, Progress
from runtime.sampling import Sampling
from runtime.store import WeightStore
from runtime.wave import Wave
from runtime.weights import Source

SWITCH_S = 1e-4
"""How long this thread may keep Python from the threads of the streams; Python's own 5 ms is a dozen kernels."""


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
        ends: Ends | None = None,
    ) -> Result:  # fmt: skip
        """Generation for every request. `prompts` are token ids, of the lengths the plan was made for.

        `ways`: how each request's tokens are chosen; greedily without. `keep` is given what requests have while others
        still run, from this thread. `ends` says who ends before his planned length: he is left out from the step after
        the next one on, and a wave of which all have ended is over.
        """
        self._check_prompts(prompts)
        switch = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        issued: list[Issued] = []
        first: list[int] = []
        generated: dict[int, list[int]] = {}
        live = Live(self.plan.workload.total_generated_tokens, progress)
        try:
            for wave in self.waves:
                wave.begin(prompts, ways)
                if not first:
                    self.device.start_clock()
                first.append(len(issued))
                reads = (wave.decisions, wave.tokens, keep, keep_every_s, ends)
                keeper = Keeper(self.plan.workload, *reads) if keep or ends else None
                issued += Issuer(self.device, wave, Schedule(self.model, wave.decisions), keeper, live).run()
                self.device.synchronize()
                ended = keeper.ended if keeper else {}
                made = {r: tokens[: ended.get(r)] for r, tokens in wave.tokens.generated().items()}
                if keep:
                    keep(made, True)
                generated |= made
        finally:
            sys.setswitchinterval(switch)
        spans = [
            Span(i, op.kind, op.stream, op.step, op.layer, op.part, *self.device.span_s(ticket), nbytes)
            for i, (op, ticket, nbytes, _) in enumerate(issued)
        ]
        tokens = [generated[r] for r in range(len(prompts))]
        peaks = {"gpu": self.gpu.peak_bytes, "host": self.host.peak_bytes}
        count = sum(map(len, tokens))
        timeline = Timeline(spans, count) if len(first) == 1 else WavesTimeline(spans, count, tuple(first))
        return Result(tokens, timeline, peaks)

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
