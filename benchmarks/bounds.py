"""What no schedule can beat: the link's bytes at its rate, or the kernels' work at theirs, whichever takes longer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost_terms import Part, TermCosts, terms
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.operation import Operation
from planner.schedule import Schedule
from planner.simulator import Durations
from planner.timeline import Span


@dataclass(frozen=True)
class Bound:
    """Of the decode phase of one plan, in seconds."""

    h2d_s: float
    d2h_s: float
    compute_s: float
    """Kernels alone, as the profile prices them: no overhead of the engine, nothing lost to copies."""
    operations: int

    @classmethod
    def of(cls, costs: CostModel, decisions: Decisions) -> Bound:
        """Bytes of the schedule's operations over the rates of the link, and the time of its kernels."""
        link, named = costs.hardware.link, TermCosts(costs.hardware, costs.model)
        prices = Durations(named, decisions)
        moved, compute_s, count = {"h2d": 0, "d2h": 0}, 0.0, 0
        known: dict[tuple[str, int, int], float] = {}
        for op in Schedule(costs.model, decisions):
            if not op.step:
                continue
            count += 1
            if op.stream != "compute":
                moved[op.stream] += op.nbytes
                continue
            alike = (op.kind, op.step, op.part)
            if alike not in known:
                known[alike] = _kernels_s(prices, op)
            compute_s += known[alike]
        rates = {"h2d": link.h2d_bytes_per_s.value, "d2h": link.d2h_bytes_per_s.value}
        return cls(moved["h2d"] / rates["h2d"], moved["d2h"] / rates["d2h"], compute_s, count)

    @property
    def link_s(self) -> float:
        """Of the busier direction."""
        return max(self.h2d_s, self.d2h_s)

    @property
    def seconds(self) -> float:
        return max(self.link_s, self.compute_s)

    def kind(self, balanced: float) -> str:
        """`link` or `compute`, by what binds; `balance` where the other takes at least `balanced` of it."""
        if min(self.link_s, self.compute_s) >= balanced * self.seconds:
            return "balance"
        return "link" if self.link_s > self.compute_s else "compute"


def _kernels_s(prices: Durations, op: Operation) -> float:
    cost = prices.cost(op)
    return cost.seconds - terms(cost).get(Part("overhead"), 0.0)


def start_delays(operations: Iterable[Operation], spans: Sequence[Span]) -> list[tuple[str, float]]:
    """(stream, seconds) of every operation of decode: from when it could have begun, its stream being free and what it
    waits for ended, to when it began."""
    free = dict.fromkeys(("h2d", "compute", "d2h"), 0.0)
    found = []
    for op, span in zip(operations, spans, strict=True):
        ready = max([free[op.stream], *(spans[w].end_s for w in op.waits)])
        free[op.stream] = span.end_s
        if op.step:
            found.append((op.stream, max(span.start_s - ready, 0.0)))
    return found


def typical(values: Sequence[float]) -> tuple[float, float]:
    """Median and mean."""
    return float(np.median(values)), float(np.mean(values))
