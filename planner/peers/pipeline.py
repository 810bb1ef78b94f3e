"""Systems that overlap transfers with compute but keep the cache otherwise than our blocks: clocks over their steps.

Layer by layer, mini-batch by mini-batch: the cache of the next one crosses the link while this one computes, in two
slots, and the next layer's weights follow the first mini-batch's cache, which crosses before this layer begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from planner.clocks import run_clocks
from planner.columns import columns_of
from planner.contention import Contention
from planner.costs import CostModel
from planner.memory import workspace_elements
from planner.operation import STREAM_OF, Operation
from planner.peers.forecast import Memory
from planner.peers.job import Busy, Job, Phases, rounds_to_try

SLOTS = 2
"""For weights and for the cache of a mini-batch: one crosses while the other is read."""
CONTEXTS = 5
"""Decode steps simulated, evenly spaced: between them their time is taken as straight."""


@dataclass(frozen=True)
class Work:
    """Of one layer and one mini-batch: bytes to the GPU, seconds of compute, bytes back."""

    act_bytes: float = 0.0
    kv_bytes: float = 0.0
    rebuild_s: float = 0.0
    forward_s: float = 0.0
    stored_bytes: float = 0.0


Step = Callable[["Run", float], Sequence[Work]]
"""The work of every layer in a decode step over so many cached tokens of each request."""


@dataclass(frozen=True)
class Run:
    """How a job runs: mini-batches of `job.batch / batches` requests, weights streamed or all on the GPU."""

    costs: CostModel
    job: Job
    batches: int
    streamed: bool

    @property
    def requests(self) -> int:
        """Of one mini-batch."""
        return -(-self.job.batch // self.batches)

    @property
    def said(self) -> str:
        """In words."""
        weights = "stream a layer ahead" if self.streamed else "stay on the GPU"
        return f"{self.batches} mini-batch{'es' * (self.batches > 1)} of {self.requests}; weights {weights}"

    def step_s(self, layers: Sequence[Work], act_alone: bool) -> float:
        """A decode step."""
        costs, rows = self.costs, self.requests
        return self._pass(layers, costs.embed(rows).seconds, costs.sample(rows).seconds, act_alone)[0]

    def phases(self, step: Step, act_alone: bool) -> Phases:
        """Prefill and a mean decode step. `act_alone`: activations of a mini-batch wait until the one before is
        rebuilt, so that they overlap no rebuild."""
        costs, rows, last = self.costs, self.requests, self.job.prompt_len + self.job.gen_len - 2
        layer_s = costs.prefill_forward((self.job.prompt_len,) * rows).seconds
        stored = rows * self.job.prompt_len * costs.model.kv_bytes_per_token_layer
        sample_s = costs.sample(rows).seconds
        prompts = [Work(forward_s=layer_s, stored_bytes=stored)] * costs.model.layers
        prefill_s, _ = self._pass(prompts, costs.embed(rows * self.job.prompt_len).seconds, sample_s, act_alone)
        contexts = np.linspace(self.job.prompt_len, max(last, self.job.prompt_len), CONTEXTS)
        found = [self._pass(step(self, n), costs.embed(rows).seconds, sample_s, act_alone) for n in contexts]
        mean = partial(_mean, weights=[1.0, *[2.0] * (CONTEXTS - 2), 1.0])
        busy = [one for _, one in found]
        return Phases(
            prefill_s, mean([s for s, _ in found]),
            Busy(mean([b.link_s for b in busy]), mean([b.compute_s for b in busy]), mean([b.link_bytes for b in busy])),
        )  # fmt: skip

    def _pass(self, layers: Sequence[Work], before_s: float, after_s: float, act_alone: bool) -> tuple[float, Busy]:
        """Of one of many equal passes over all layers: the second of two, by when each ends."""
        issuer = _Issuer(self, act_alone)
        issuer.passes([*layers, *layers], len(layers), before_s, after_s)
        columns = columns_of(issuer.operations)
        _, ends = run_clocks(columns, np.array(issuer.seconds), Contention(self.costs.hardware.link))
        half = len(ends) // 2
        second = list(zip(issuer.operations, issuer.seconds, strict=True))[half:]
        link = [(op.nbytes, s) for op, s in second if op.stream == "h2d"]
        compute = sum(s for op, s in second if op.stream == "compute")
        busy = Busy(sum(s for _, s in link), compute, sum(n for n, _ in link))
        return float(ends.max() - ends[:half].max()), busy

    def memory(self, act_tokens: float, kv_tokens: float, slot_act: float, slot_kv: float) -> Memory:
        """For tokens of each request kept on the host as activations and as K and V, summed over layers, and the
        most of each that one layer's slot holds."""
        costs, model, rows = self.costs, self.costs.model, self.requests
        act, kv = model.act_bytes_per_token_layer, model.kv_bytes_per_token_layer
        outer = model.weight_bytes - model.layers * model.layer_bytes
        on_gpu = outer + model.layer_bytes * (SLOTS if self.streamed else model.layers)
        slots = rows * (SLOTS * (slot_act * act + slot_kv * kv) + slot_act * kv)  # and what is rebuilt
        prompts = rows * self.job.prompt_len
        passing = model.element_bytes * (
            prompts * model.hidden * self.batches + workspace_elements(model, prompts, rows)
        )
        passing += SLOTS * prompts * kv  # K and V on their way to the host
        host = costs.model.layers * model.layer_bytes if self.streamed else 0.0
        host += self.job.batch * (act_tokens * act + kv_tokens * kv)
        return Memory(on_gpu + max(slots, passing), host)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return float(np.average(values, weights=weights))


def first_that_fits(costs: CostModel, job: Job, memory: Callable[[Run], Memory]) -> tuple[int, Run] | None:
    """(rounds, run): as few rounds as possible, in them the weights on the GPU if they fit, then as few mini-batches
    as possible."""
    for rounds in rounds_to_try(job):
        part = job.in_rounds(rounds)
        for streamed in (False, True):
            runs = (Run(costs, part, batches, streamed) for batches in rounds_to_try(part))
            found = next((run for run in runs if memory(run).fits(costs.hardware)), None)
            if found:
                return rounds, found
    return None


@dataclass
class _Issuer:
    """Operations and the seconds that each takes alone."""

    run: Run
    act_alone: bool
    operations: list[Operation] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _readers: list[int] = field(default_factory=list)
    """Forward operations, one after the other."""
    _rebuilt: list[int] = field(default_factory=list)
    _weights: dict[int, int] = field(default_factory=dict)
    """The transfer of each layer's weights."""

    def passes(self, layers: Sequence[Work], each: int, before_s: float, after_s: float) -> None:
        """Passes of `each` layers, one after the other."""
        for layer, work in enumerate(layers):
            for part in range(self.run.batches):
                if layer % each == 0:
                    self._issue("embed", layer, part, before_s)
                self._part(layer, part, work)
                if layer % each == each - 1:
                    self._issue("sample", layer, part, after_s)

    def _next_weights(self, layer: int) -> None:
        """Of the layer after this one, into the slot that the layer before this one has left."""
        nbytes, batches = self.run.costs.model.layer_bytes, self.run.batches
        free = self._readers[(layer + 2 - SLOTS) * batches - 1 :][:1] if layer + 2 > SLOTS else []
        self._weights[layer + 1] = self._issue("load_weights", layer, 0, self.run.costs.h2d(nbytes), free, nbytes)

    def _part(self, layer: int, part: int, work: Work) -> None:
        h2d, d2h = self.run.costs.h2d, self.run.costs.d2h
        needs = [self._weights[layer]] if layer in self._weights else []
        free = self._readers[-SLOTS:][:1] if len(self._readers) >= SLOTS else []
        loaded: list[int] = []
        if work.act_bytes:
            waits = free + (self._rebuilt[-1:] if self.act_alone else [])
            loaded = [self._issue("load_act", layer, part, h2d(work.act_bytes), waits, work.act_bytes)]
        if work.kv_bytes:
            needs.append(self._issue("load_kv", layer, part, h2d(work.kv_bytes), free, work.kv_bytes))
        if self.run.streamed and part == 0:
            self._next_weights(layer)
        if work.rebuild_s:
            self._rebuilt.append(self._issue("rebuild", layer, part, work.rebuild_s, loaded))
        forward = self._issue("forward", layer, part, work.forward_s, needs)
        self._readers.append(forward)
        if work.stored_bytes:
            self._issue("store", layer, part, d2h(work.stored_bytes), [forward], work.stored_bytes)

    def _issue(
        self, kind: str, layer: int, part: int, seconds: float, waits: Sequence[int] = (), nbytes: float = 0.0
    ) -> int:
        number = len(self.operations)
        stream = STREAM_OF[kind]
        self.operations.append(Operation(number, kind, stream, 0, layer, part, tuple(waits), nbytes=round(nbytes)))
        self.seconds.append(seconds)
        return number
