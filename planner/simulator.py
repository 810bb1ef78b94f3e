"""Advances one clock per stream over a schedule: the predicted timeline."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from planner.clocks import run_clocks
from planner.columns import STREAM_CODE, Columns, Floats, schedule_columns
from planner.contention import Contention
from planner.costs import CostModel, OpCost
from planner.decisions import Decisions
from planner.forms import ACT_GPU, ACT_HOST
from planner.operation import Operation
from planner.placement import FORM_INDEX
from planner.schedule import Schedule
from planner.timeline import Spans, Timeline

_ACT = [FORM_INDEX[form.name] for form in (ACT_HOST, ACT_GPU)]


class Durations:
    """Seconds of each operation of one plan, run alone. Layers are alike: compute is priced per step and mini-batch."""

    def __init__(self, costs: CostModel, decisions: Decisions) -> None:
        self.costs, self.decisions = costs, decisions
        self._prompt_lens = {
            r: group.prompt_len for batch in decisions.mini_batches for group in batch.groups for r in group.requests
        }
        self._compute: dict[tuple[str, int, int, int], float] = {}
        self._link: dict[tuple[str, int], float] = {}

    def of(self, op: Operation) -> float:
        """Predicted duration of `op`, in seconds."""
        if op.stream == "compute":
            key = (op.kind, op.step, op.part, op.offset)
            found = self._compute.get(key)
            if found is None:
                found = self._compute[key] = self.cost(op).seconds
            return found
        link_key = (op.stream, op.nbytes)
        found = self._link.get(link_key)
        if found is None:
            price = self.costs.h2d if op.stream == "h2d" else self.costs.d2h
            found = self._link[link_key] = price(op.nbytes)
        return found

    def all(self, columns: Columns) -> Floats:
        """[operations] `of` each operation, asked once for those that are alike."""
        seconds = np.empty(len(columns))
        alike = columns.alike
        seconds[alike.rows] = self._each(columns.operations(alike.first))[alike.group]
        for stream in ("h2d", "d2h"):
            rows = columns.queues[STREAM_CODE[stream]]
            _, first, group = np.unique(columns.nbytes[rows], return_index=True, return_inverse=True)
            seconds[rows] = self._each(columns.operations(rows[first]))[group]
        return seconds

    def _each(self, operations: Iterable[Operation]) -> Floats:
        return np.array([self.of(op) for op in operations])

    def cost(self, op: Operation) -> OpCost:
        """Seconds and work of a compute operation."""
        if op.kind == "begin_decode":
            return OpCost()
        return self._prefill(op) if op.step == 0 else self._decode(op)

    def _prefill(self, op: Operation) -> OpCost:
        chunk = self.decisions.prefill_passes[op.offset][op.part]
        if op.kind == "embed":
            return self.costs.embed(chunk.tokens)
        if op.kind == "sample":
            return self.costs.sample(len(chunk.requests))
        return self.costs.prefill_forward(tuple(self._prompt_lens[r] for r in chunk.requests))

    def _decode(self, op: Operation) -> OpCost:
        shapes, t = self.decisions.mini_batches[op.part].shapes, op.step - 1
        rows = int(shapes.rows[t])
        if op.kind == "embed":
            return self.costs.embed(rows)
        if op.kind == "sample":
            return self.costs.sample(rows)
        if op.kind == "rebuild":
            return self.costs.rebuild(int(shapes.blocks[t, _ACT].sum()))
        return self.costs.decode_segments(rows, self.decisions.mini_batches[op.part].attended(t, self.costs.ragged))


def simulate(costs: CostModel, decisions: Decisions) -> Timeline:
    """The predicted timeline of the whole job."""
    columns = schedule_columns(Schedule(costs.model, decisions))
    return timeline_of(columns, Durations(costs, decisions).all(columns), costs, decisions)


def timeline_of(columns: Columns, seconds: Floats, costs: CostModel, decisions: Decisions) -> Timeline:
    """The timeline of operations that take `seconds` alone, slowed by each other as the link's profile says."""
    spans = Spans(columns, *run_clocks(columns, seconds, Contention(costs.hardware.link)))
    return Timeline(spans, decisions.generated_tokens)
