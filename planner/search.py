"""Finds the number of mini-batches, by branch and bound over intervals of it, and the split for it.

Every interval has a bound from the average-bin relaxation. The interval with the lowest bound is halved until it is
one number, which is then solved exactly. The search ends when no interval left can beat the best plan found: its
result is within `TOLERANCE` of the best number of mini-batches, and the bound holds for all of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, inf

from planner.bins import AverageBin, exact_bins
from planner.composition import compose, compose_by_end
from planner.costs import CostModel
from planner.decisions import Decisions, spread_layers
from planner.epochs import Classes, lifetime_of, make_epochs
from planner.forms import FORMS, CacheForm, blocks_for
from planner.ilp import Bin, PrefillSize, Split, SplitProblem, solve
from planner.memory import (
    gpu_lines,
    host_lines,
    pinned_total,
    planned_bytes,
    workspace_elements,
)
from planner.placement import MiniBatch
from planner.prefill_sizing import PrefillSizing
from planner.promotion import promoted
from planner.rounding import place_blocks
from planner.workload import Workload

TOLERANCE = 1e-3
MAX_EXACT_SOLVES = 6
MAX_ROUNDINGS = 8
WORTH_SIMULATING = 0.01
"""What promises no more than this beyond the best simulation so far may yet simulate faster."""
FORM = {form.name: form for form in FORMS}


@dataclass(frozen=True)
class Options:
    """What a caller may fix instead of leaving it to the solver."""

    act_share: float | None = None
    mini_batches: int | None = None
    min_resident_layers: int = 0
    max_resident_layers: int | None = None
    weight_slots: int = 2
    cache_slots: int = 2
    store_slots: int = 2
    end_together: bool = False
    """Form mini-batches of requests that end together, not of all kinds: see `compose_by_end`."""
    waves: int | None = None
    """How many waves the job is cut into; a `Search` plans one of them."""
    simplicity: float = 0.0025
    """Of plans this close to the best, take the one with the fewest mini-batches: fewer operations, same speed."""


@dataclass(frozen=True)
class Found:
    """The best decisions found and the bound that holds for all choices."""

    decisions: Decisions
    objective_s: float
    bound_s: float
    exact_solves: int


@dataclass(frozen=True)
class _Solved:
    """A split in real numbers, for given mini-batches."""

    problem: SplitProblem
    split: Split
    batches: list[list[int]]
    indices: list[list[int]]
    """The mini-batches that each bin stands for."""


class Search:
    """One job to plan: a cost model (hardware and model), a workload, the allowed forms and the options."""

    def __init__(self, costs: CostModel, workload: Workload, forms: tuple[CacheForm, ...], options: Options) -> None:
        self.costs, self.workload, self.forms, self.options = costs, workload, forms, options
        self.requests = workload.requests
        lengths = [(r.prompt_len, r.gen_len) for r in self.requests]
        self.epochs = make_epochs(lengths)
        self.average = AverageBin(costs, Classes.of(lengths), self.epochs)
        width = max((f.width(costs.model) for f in forms if not f.on_gpu), default=0)
        self._store_elements = options.store_slots * width
        self.prefill = PrefillSizing(costs, workload, self._store_elements)
        self.prefill_sizes = self.prefill.choices()
        self._cache: dict[int, _Solved | None] = {}
        self._rounded: dict[int, Decisions | None] = {}

    # ---- the search ------------------------------------------------------------------------------

    def run(self, below_s: float = inf) -> Found | None:
        """None when no number of mini-batches is feasible, or all are proven to take `below_s` or more."""
        fixed = min(self.options.mini_batches or 0, len(self.requests))
        low, high = (fixed, fixed) if fixed else (1, len(self.requests))
        heap: list[tuple[float, int, int]] = []
        self._push(heap, low, high)
        best_s = inf
        proven: list[float] = []
        solves = 0
        while heap:
            bound, lo, hi = heapq.heappop(heap)
            if bound >= min(best_s * (1 - TOLERANCE), below_s) or (best_s < inf and solves >= MAX_EXACT_SOLVES):
                proven.append(bound)
                break
            if lo < hi:
                middle = (lo + hi) // 2
                self._push(heap, lo, middle)
                self._push(heap, middle + 1, hi)
                continue
            proven.append(bound)
            solves += 1
            one = self._solved(lo)
            # Where rounding failed there is no plan, however good it looks in real numbers.
            if one and one.split.objective_s < best_s and self._decided(lo):
                best_s = one.split.objective_s
        for count in self._simplest_first(best_s) if best_s < inf else ():
            decisions, one = self._decided(count), self._solved(count)
            if decisions and one:
                return Found(decisions, one.split.objective_s, min([*proven, best_s]), solves)
        return None

    def _simplest_first(self, best_s: float) -> list[int]:
        """Numbers of mini-batches to take: the fewest of 1, 2, 4, ... that are nearly as good as the best, then it."""
        solved = {count: one.split.objective_s for count, one in self._cache.items() if one}
        best = next(count for count, objective_s in solved.items() if objective_s == best_s)
        fewer = [2**i for i in range(best.bit_length()) if 2**i < best and self.options.mini_batches is None]
        enough_s = best_s * (1 + self.options.simplicity)
        return [n for n in fewer if (one := self._solved(n)) and one.split.objective_s <= enough_s] + [best]

    def near(self, count: int) -> Iterator[Found]:
        """Decisions with about `count` mini-batches, the most promising number first. Nothing bounds them."""
        counts = {min(max(n, 1), len(self.requests)) for n in (count // 2, count, 2 * count)}
        if self.options.mini_batches:
            counts = {min(self.options.mini_batches, len(self.requests))}
        found = [(one.split.objective_s, n) for n in sorted(counts) if (one := self._solved(n))]
        for objective_s, n in sorted(found):
            if decisions := self._decided(n):
                yield Found(decisions, objective_s, 0.0, 1)

    def floor_s(self) -> float | None:
        """What no plan undercuts, whatever its number of mini-batches; None where not even real numbers fit."""
        fixed = min(self.options.mini_batches or 0, len(self.requests))
        split = solve(self.relaxed(fixed or 1, fixed or len(self.requests)), relax=True)
        return split.bound_s if split else None

    def composed(self, batches: list[list[int]], below_s: float) -> Found | None:
        """Decisions with these mini-batches; None where they have none, or none that looks faster than `below_s`."""
        one = self._solve(batches)
        if one is None or one.split.objective_s >= below_s:
            return None
        decisions = self._round(one)
        return Found(decisions, one.split.objective_s, 0.0, 1) if decisions else None

    def _push(self, heap: list[tuple[float, int, int]], lo: int, hi: int) -> None:
        # Wide intervals are halved anyway, so for them an LP does.
        split = solve(self.relaxed(lo, hi), relax=lo < hi)
        if split:
            heapq.heappush(heap, (split.bound_s, lo, hi))

    def relaxed(self, lo: int, hi: int) -> SplitProblem:
        """The relaxation of every composition of `lo` to `hi` mini-batches."""
        # The bound must not charge store slots that a plan without host blocks does not need.
        bins, rows = (self.average.at(lo, hi),), -(-len(self.requests) // hi)
        problem = self._problem(bins, rows, 0, tuple(self.prefill.rungs))
        if len({r.gen_len for r in self.requests}) == 1:  # no mini-batch ends before the others
            problem = replace(problem, pieces_per_layer=self._pieces(lo))
        # The link runs ahead of compute by the slots, so a link-bound decode begins while prefill still computes.
        sample_s = self.costs.sample(len(self.requests)).seconds
        return replace(problem, head_start=self.options.weight_slots, sample_s=sample_s)

    # ---- one number of mini-batches --------------------------------------------------------------

    def plan_with(self, count: int) -> Decisions | None:
        """Decisions with exactly `count` mini-batches, or None where there are none."""
        return self._decided(count)

    def _batches(self, count: int) -> list[list[int]]:
        """The requests of each of `count` mini-batches."""
        # By length, so that the order in which requests came changes nothing but their numbers.
        order = sorted(range(len(self.requests)), key=lambda r: (self.requests[r].prompt_len, self.requests[r].gen_len))
        sizes = [blocks_for(self.requests[r].positions) for r in order]
        if self.options.end_together:
            composed = compose_by_end([self.requests[r].gen_len for r in order], sizes, count)
        else:
            lives = [lifetime_of(self.requests[r].gen_len, self.epochs) for r in order]
            composed = compose(sizes, count, lives)
        return [[order[i] for i in members] for members in composed]

    def _solved(self, count: int) -> _Solved | None:
        if count not in self._cache:
            self._cache[count] = self._solve(self._batches(count))
        return self._cache[count]

    def _solve(self, batches: list[list[int]]) -> _Solved | None:
        bins, indices = exact_bins(self.costs, self.requests, self.epochs, batches)
        rows = max(len(members) for members in batches)
        sizes = tuple(one.size for one in self.prefill_sizes)
        problem = self._problem(bins, rows, self._store_elements, sizes)
        problem = replace(problem, pieces_per_layer=self._pieces(len(batches)), decided=True)
        split = solve(problem)
        return _Solved(problem, split, batches, indices) if split else None

    def _decided(self, count: int) -> Decisions | None:
        if count not in self._rounded:
            one = self._solved(count)
            self._rounded[count] = self._round(one) if one else None
        return self._rounded[count]

    def _round(self, one: _Solved) -> Decisions | None:
        """Rounding to whole blocks and slabs can overshoot a full budget a little: then plan with that much less.

        A margin smaller than a block may be rounded away again, so it grows.
        """
        problem, split = one.problem, one.split
        for attempt in range(MAX_ROUNDINGS):
            decisions = self._decide(split, one)
            gpu, host = (max(nbytes, 0) for nbytes in self.overshoot(decisions))
            if not gpu and not host:
                size, room = self.prefill_sizes[split.prefill], -self.overshoot(decisions)[0]
                if room > 0 and self.options.act_share is None:
                    decisions = promoted(self.costs.model, decisions, room, self.costs.ragged)
                return self.prefill.widest(decisions, size.chunk, size.passed)
            problem = replace(
                problem,
                gpu_margin_bytes=problem.gpu_margin_bytes + gpu * 2**attempt,
                host_margin_bytes=problem.host_margin_bytes + host * 2**attempt,
            )
            tighter = solve(problem)
            if tighter is None:
                return None
            split = tighter
        return None

    def overshoot(self, decisions: Decisions) -> tuple[int, int]:
        """Bytes beyond the budgets of GPU and host; below zero where some are left."""
        model, hardware = self.costs.model, self.costs.hardware
        gpu = planned_bytes(gpu_lines(model, decisions)) - hardware.gpu.budget_bytes
        host = pinned_total(host_lines(model, decisions), hardware.host.pin_rounding)
        return gpu, host - hardware.host.budget_bytes

    def _problem(
        self, bins: tuple[Bin, ...], rows: int, store_elements: int, sizes: tuple[PrefillSize, ...]
    ) -> SplitProblem:
        """With one transfer for a layer's weights."""
        model, options = self.costs.model, self.options
        fixed = len(self.requests) * model.hidden + workspace_elements(model, rows, rows) + store_elements * rows
        return SplitProblem(
            model=model,
            hardware=self.costs.hardware,
            forms=self.forms,
            epochs=self.epochs,
            bins=bins,
            weight_slots=options.weight_slots,
            cache_slots=options.cache_slots,
            fixed_decode_bytes=model.element_bytes * fixed + self.prefill.id_bytes,
            prefill=sizes,
            pieces_per_layer=1,
            act_share=options.act_share,
            min_resident_layers=options.min_resident_layers,
            max_resident_layers=options.max_resident_layers,
        )

    def _pieces(self, batches: int) -> int:
        """Transfers of one layer: one for each mini-batch that the slots let the link run ahead by."""
        return 1 if self.options.weight_slots == 1 else max(1, batches - self.options.cache_slots + 1)

    # ---- integers --------------------------------------------------------------------------------

    def _decide(self, split: Split, one: _Solved) -> Decisions:
        model, options = self.costs.model, self.options
        placed: dict[int, MiniBatch] = {}
        for b, members_of in enumerate(one.indices):
            for position, index in enumerate(members_of):
                targets = {(g, FORM[f], e): n for (bin_, g, f, e), n in split.begun.items() if bin_ == b}
                ends = {(g, f): n for (bin_, g, f), n in split.final.items() if bin_ == b}
                targets |= {(g, FORM[f], len(self.epochs)): n for (g, f), n in ends.items()}
                held = {f: sum(n for (_, name), n in ends.items() if name == f.name) for f in self.forms if f.on_gpu}
                limits = {f: _share(n, position, len(members_of)) for f, n in held.items()}
                placed[index] = place_blocks(
                    one.batches[index], self.requests, self.epochs, targets, limits, not self.costs.ragged
                )
        ordered = tuple(placed[i] for i in range(len(one.batches)))
        streams = split.resident_layers < model.layers
        size = self.prefill_sizes[split.prefill]
        return Decisions(
            mini_batches=ordered,
            prefill_passes=self.prefill.passes(ordered, size.chunk, size.passed),
            resident_layers=spread_layers(split.resident_layers, model.layers),
            weight_slots=options.weight_slots if streams else 0,
            cache_slots=options.cache_slots,
            store_slots=options.store_slots,
        )


def _share(total: float, position: int, count: int) -> int:
    """Whole blocks for one of `count` mini-batches so that together they take no more than `total`."""
    whole = floor(total + 1e-6)
    return whole * (position + 1) // count - whole * position // count
