"""From a split in real numbers to decisions in whole blocks that keep within both budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor

from planner.costs import CostModel
from planner.decisions import Decisions, spread_parts, streams
from planner.epochs import Epoch
from planner.forms import FORM_BY_NAME, CacheForm
from planner.memory import gpu_lines, host_lines, pinned_total, planned_bytes
from planner.placement import MiniBatch
from planner.prefill_sizing import PrefillSizing, Sized
from planner.promotion import promoted
from planner.rounding import place_blocks
from planner.split_problem import Split, SplitProblem
from planner.split_solver import solve
from planner.workload import Request

MAX_ROUNDINGS = 8


@dataclass(frozen=True)
class Solved:
    """A split in real numbers, for given mini-batches."""

    problem: SplitProblem
    split: Split
    batches: list[list[int]]
    indices: list[list[int]]
    """The mini-batches that each bin stands for."""


def overshoot(costs: CostModel, decisions: Decisions) -> tuple[int, int]:
    """Bytes beyond the budgets of GPU and host; below zero where some are left."""
    model, hardware = costs.model, costs.hardware
    gpu = planned_bytes(gpu_lines(model, decisions)) - hardware.gpu.budget_bytes
    host = pinned_total(host_lines(model, decisions), hardware.host.pin_rounding)
    return gpu, host - hardware.host.budget_bytes


@dataclass
class Decider:
    """One job, whose splits are to be rounded."""

    costs: CostModel
    requests: tuple[Request, ...]
    epochs: list[Epoch]
    forms: tuple[CacheForm, ...]
    prefill: PrefillSizing
    prefill_sizes: list[Sized]
    slots: tuple[int, int, int]
    """For weights, cache and stores."""
    promotes: bool
    """Whether blocks may move to the GPU beyond the split."""
    margins: tuple[float, float] = (0.0, 0.0)
    """Bytes of GPU and host that the last rounding took beside the split."""

    def rounded(self, one: Solved) -> Decisions | None:
        """Rounding to whole blocks and slabs can overshoot a full budget a little: then plan with that much less.

        A margin smaller than a block may be rounded away again, so it grows.
        """
        size = self.prefill_sizes[one.split.prefill]
        decided = replace(
            one.problem, prefill=(size.size,), least_parts=one.split.least_parts,
            min_resident_layers=one.split.resident_layers, max_resident_layers=one.split.resident_layers,
        )  # fmt: skip
        # What is decided is solved sooner; where it leaves no room, all is open again.
        return self._within(one, decided, [size]) or self._within(one, one.problem, self.prefill_sizes)

    def _within(self, one: Solved, problem: SplitProblem, sizes: list[Sized]) -> Decisions | None:
        split, of = one.split, self.prefill_sizes
        for attempt in range(MAX_ROUNDINGS):
            size = of[split.prefill]
            decisions = self._decide(split, one, size)
            gpu, host = overshoot(self.costs, decisions)
            if gpu <= 0 and host <= 0:
                self.margins = problem.gpu_margin_bytes, problem.host_margin_bytes
                if gpu < 0 and self.promotes:
                    decisions = promoted(self.costs.model, decisions, -gpu, self.costs.ragged)
                if not set(decisions.forms) <= set(self.forms):  # what rounding left over went to the host
                    return None
                return self.prefill.widest(decisions, size.chunk, size.passed)
            problem = replace(
                problem,
                gpu_margin_bytes=problem.gpu_margin_bytes + max(gpu, 0) * 2**attempt,
                host_margin_bytes=problem.host_margin_bytes + max(host, 0) * 2**attempt,
            )
            tighter = solve(problem)
            if tighter is None:
                return None
            split, of = tighter, sizes
        return None

    def _decide(self, split: Split, one: Solved, size: Sized) -> Decisions:
        placed: dict[int, MiniBatch] = {}
        for b, members_of in enumerate(one.indices):
            targets = {(g, FORM_BY_NAME[f], e): n for (bin_, g, f, e), n in split.begun.items() if bin_ == b}
            ends = {(g, f): n for (bin_, g, f), n in split.final.items() if bin_ == b}
            targets |= {(g, FORM_BY_NAME[f], len(self.epochs)): n for (g, f), n in ends.items()}
            held = {f: sum(n for (_, name), n in ends.items() if name == f.name) for f in self.forms if f.on_gpu}
            for position, index in enumerate(members_of):
                limits = {f: _share(n, position, len(members_of)) for f, n in held.items()}
                placed[index] = place_blocks(
                    one.batches[index], self.requests, self.epochs, targets, limits, not self.costs.ragged
                )
        ordered = tuple(placed[i] for i in range(len(one.batches)))
        model, (weights, cache, store) = self.costs.model, self.slots
        parts = spread_parts(model, split.resident_layers)
        return Decisions(
            mini_batches=ordered,
            prefill_passes=self.prefill.passes(ordered, size.chunk, size.passed),
            resident_parts=parts,
            weight_slots=weights if streams(model, parts) else 0,
            cache_slots=cache,
            store_slots=store,
        )


def _share(total: float, position: int, count: int) -> int:
    """Whole blocks for one of `count` mini-batches so that together they take no more than `total`."""
    whole = floor(total + 1e-6)
    return whole * (position + 1) // count - whole * position // count
