"""Advances one clock per stream over a schedule: the predicted timeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from planner.contention import Clocks, Contention
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.forms import ACT_GPU, ACT_HOST
from planner.operation import STREAMS, Operation
from planner.placement import FORM_INDEX
from planner.schedule import Schedule
from planner.timeline import Span, Timeline

_ACT = [FORM_INDEX[form.name] for form in (ACT_HOST, ACT_GPU)]


class Durations:
    """Seconds of each operation of one plan, run alone. Layers are alike: compute is priced per step and mini-batch."""

    def __init__(self, costs: CostModel, decisions: Decisions, prompt_lens: dict[int, int]) -> None:
        self.costs, self.decisions, self.prompt_lens = costs, decisions, prompt_lens
        self._compute: dict[tuple[str, int, int, int], float] = {}
        self._link: dict[tuple[str, int], float] = {}

    def of(self, op: Operation) -> float:
        """Predicted duration of `op`, in seconds."""
        if op.stream == "compute":
            key = (op.kind, op.step, op.part, op.offset)
            found = self._compute.get(key)
            if found is None:
                found = self._compute[key] = self._compute_s(op)
            return found
        link_key = (op.stream, op.nbytes)
        found = self._link.get(link_key)
        if found is None:
            price = self.costs.h2d if op.stream == "h2d" else self.costs.d2h
            found = self._link[link_key] = price(op.nbytes)
        return found

    def _compute_s(self, op: Operation) -> float:
        if op.kind == "begin_decode":
            return 0.0
        return self._prefill_s(op) if op.step == 0 else self._decode_s(op)

    def _prefill_s(self, op: Operation) -> float:
        chunk = self.decisions.prefill_passes[op.offset][op.part]
        if op.kind == "embed":
            return self.costs.embed(chunk.tokens).seconds
        if op.kind == "sample":
            return self.costs.sample(len(chunk.requests)).seconds
        return self.costs.prefill_forward(tuple(self.prompt_lens[r] for r in chunk.requests)).seconds

    def _decode_s(self, op: Operation) -> float:
        shapes, t = self.decisions.mini_batches[op.part].shapes, op.step - 1
        rows = int(shapes.rows[t])
        if op.kind == "embed":
            return self.costs.embed(rows).seconds
        if op.kind == "sample":
            return self.costs.sample(rows).seconds
        if op.kind == "rebuild":
            return self.costs.rebuild(int(shapes.blocks[t, _ACT].sum())).seconds
        return self.costs.decode_segments(rows, self.decisions.mini_batches[op.part].segments(t)).seconds


def advance(operations: Iterable[Operation], duration: Callable[[Operation], float]) -> list[Span]:
    """Earliest starts, where streams do not slow each other.

    Each operation begins when its stream is free and what it waits for has ended.
    """
    clock = dict.fromkeys(STREAMS, 0.0)
    ends: list[float] = []
    spans: list[Span] = []
    for op in operations:
        start = clock[op.stream]
        for wait in op.waits:
            start = max(start, ends[wait])
        end = start + duration(op)
        clock[op.stream] = end
        ends.append(end)
        spans.append(Span(op.id, op.kind, op.stream, op.step, op.layer, op.part, start, end, op.nbytes))
    return spans


def simulate(costs: CostModel, decisions: Decisions) -> Timeline:
    """The predicted timeline of the whole job."""
    prompt_lens, tokens = {}, 0
    for mini_batch in decisions.mini_batches:
        for group in mini_batch.groups:
            prompt_lens.update(dict.fromkeys(group.requests, group.prompt_len))
            tokens += len(group.requests) * group.gen_len
    duration = Durations(costs, decisions, prompt_lens).of
    operations, contention = Schedule(costs.model, decisions), Contention(costs.hardware.link)
    spans = advance(operations, duration) if contention.none else Clocks(operations, duration, contention).run()
    return Timeline(spans, tokens)
