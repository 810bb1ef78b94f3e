"""Finds the number of mini-batches, by branch and bound over intervals of it, and the split for it.

Every interval has a bound from the average-bin relaxation for each number of parts of a layer that may be resident of
all of them. The numbers that promise most are solved exactly; then the interval with the lowest bound is cut until none
left can beat the best plan found, or enough are cut. The bound holds for all of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import inf

from planner.bins import AverageBin, exact_bins
from planner.composition import compose
from planner.costs import CostModel
from planner.deciding import Decider, Solved, overshoot
from planner.decisions import EXACT, Decisions
from planner.epochs import MAX_EPOCHS, Classes, Epoch, lifetime_of, make_epochs
from planner.forms import CacheForm, blocks_for
from planner.memory import workspace_elements
from planner.prefill_sizing import PrefillSizing, Sized
from planner.split_problem import Bin, PrefillSize, Split, SplitProblem
from planner.split_solver import Relaxation, solve
from planner.workload import Workload

TOLERANCE = 1e-3
MAX_NODES = 16
"""Intervals cut, after which the lowest bound left stands: it rises by less than a thousandth beyond."""
MAX_EXACT_SOLVES = 2
"""Numbers of mini-batches, the most promising first: those near it are tried by who simulates them."""
SMALL = 12
"""Numbers of mini-batches that are all tried where others leave no plan."""
MOST_NEAR = 1
"""Numbers of mini-batches near the best one that are planned, too: those that promise most."""
RISING = 0.01
"""Relative: how far beyond the least the promise of ever more mini-batches must be to look no further."""
SIZES_AROUND = 4
"""Sizes of prefill tried on either side of the one that the linear program takes most of."""
MOST_CACHE_SLOTS = 3
"""Tried for a job in a single wave, beside as many as asked for."""
EXACT_GAP = 1e-4
"""Of the split for given mini-batches, which bounds nothing."""


@dataclass(frozen=True)
class Options:
    """What a caller may fix instead of leaving it to the solver."""

    act_share: float | None = None
    mini_batches: int | None = None
    min_resident_layers: float = 0.0
    max_resident_layers: float | None = None
    weight_slots: int = 2
    cache_slots: int = 2
    """At least: a job in a single wave may take more where that is faster."""
    store_slots: int = 2
    waves: int | None = None
    """How many waves the job is cut into; a `Search` plans one of them."""
    vary_slots: bool = True
    """Whether more cache slots may be tried: waves share them, so there they stay as they are."""
    simplicity: float = 0.001
    """Of plans this close to the best, take the one with the fewest mini-batches: fewer operations, same speed."""


@dataclass(frozen=True)
class Found:
    """The best decisions found and the bound that holds for all choices."""

    decisions: Decisions
    objective_s: float
    bound_s: float
    exact_solves: int


_Node = tuple[float, int, int, int]
"""(bound, fewest and most mini-batches, how many parts of every layer are resident at least)."""


class Search:
    """One job to plan: a cost model (hardware and model), a workload, the allowed forms and the options."""

    def __init__(
        self, costs: CostModel, workload: Workload, forms: tuple[CacheForm, ...], options: Options,
        like: Search | None = None, most_epochs: int | None = None,
    ) -> None:  # fmt: skip
        """`like`: a search for the same job, of which everything is taken that is the same: its epochs, too, unless
        `most_epochs` are given."""
        self.costs, self.workload, self.forms, self.options = costs, workload, forms, options
        self.requests = workload.requests
        lengths = [(r.prompt_len, r.gen_len) for r in self.requests]
        self.epochs: list[Epoch]
        self.epochs = like.epochs if like and most_epochs is None else make_epochs(lengths, most_epochs or MAX_EPOCHS)
        self.classes: Classes = like.classes if like else Classes.of(lengths)
        self._like = like
        width = max((f.width(costs.model) for f in forms if not f.on_gpu), default=0)
        self.store_elements = options.store_slots * width
        """Of the store slots, for each token in them."""
        same = like is not None and like.store_elements == self.store_elements
        self.prefill: PrefillSizing
        self.prefill = like.prefill if like and same else PrefillSizing(costs, workload, self.store_elements)
        self.prefill_sizes: list[Sized] = like.prefill_sizes if like and same else self.prefill.choices()
        slots = (options.weight_slots, options.cache_slots, options.store_slots)
        self._decider = Decider(
            costs, self.requests, self.epochs, forms, self.prefill, self.prefill_sizes, slots,
            options.act_share is None,
        )  # fmt: skip
        self._bounds: dict[tuple[int, int, int], float | None] = {}
        self._relaxations: dict[tuple[int, int], Relaxation] = {}
        self._cache: dict[int, Solved | None] = {}
        self._rounded: dict[int, Decisions | None] = {}

    @cached_property
    def average(self) -> AverageBin:
        """What bounds every composition."""
        if self._like and self._like.epochs is self.epochs:
            return self._like.average
        return AverageBin(self.costs, self.classes, self.epochs, self._like.average if self._like else None)

    def varied(self, **options: object) -> Search:
        """The search for the same job with other options."""
        return Search(self.costs, self.workload, self.forms, replace(self.options, **options), like=self)  # type: ignore[arg-type]

    def coarser(self, epochs: int) -> Search:
        """The search for the same job in about so many epochs at most: bounds are weaker, and found sooner."""
        return Search(self.costs, self.workload, self.forms, self.options, like=self, most_epochs=epochs)

    # ---- the search ------------------------------------------------------------------------------

    def run(self, below_s: float = inf, nodes: int = MAX_NODES) -> Found | None:
        """None when no number of mini-batches is feasible, or all are proven to take `below_s` or more. With fewer
        `nodes` the same choice is proven less."""
        heap: list[_Node] = [(floor_s, *self._counts, least_parts) for floor_s, least_parts in self._floors]
        if not heap or heap[0][0] >= below_s:
            return None
        best_s = self._first_s(below_s)
        for _ in range(nodes):
            if not heap or heap[0][0] >= min(best_s * (1 - TOLERANCE), below_s) or heap[0][1] == heap[0][2]:
                break
            _, lo, hi, least_parts = heapq.heappop(heap)
            # The fewest are mostly best, so intervals grow with the number.
            middle = min((lo + hi) // 2, 2 * lo - 1)
            self._push(heap, lo, middle, least_parts)
            self._push(heap, middle + 1, hi, least_parts)
        for count in self._simplest_first(best_s) if best_s < inf else ():
            decisions, one = self._decided(count), self._solved(count)
            if decisions and one:
                bound_s = min([best_s, *(node[0] for node in heap[:1])])
                return Found(decisions, one.split.objective_s, bound_s, len(self._cache))
        return None

    def _first_s(self, below_s: float) -> float:
        """The least objective of the numbers 1, 2, 4, ... of mini-batches that the relaxation promises most of, where
        that is less than `below_s`: objectives themselves may be above what is simulated then."""
        best_s = inf
        for tried, (bound_s, count) in enumerate(sorted(self._promises)):
            if bound_s >= min(best_s, below_s) or (best_s < inf and tried >= MAX_EXACT_SOLVES):
                break
            if self._objective_s(count) < best_s and self._decided(count) is not None:
                best_s = self._objective_s(count)
        return best_s if best_s < inf else self._any_s(below_s)

    def _any_s(self, below_s: float) -> float:
        """That of the first number of mini-batches that can be rounded, where those that promise most cannot."""
        fewest, most = self._counts
        counts = {*range(fewest, min(most, SMALL) + 1), *(2**i for i in range(most.bit_length()) if 2**i >= fewest)}
        for count in sorted(counts):
            if self._promised_s(count) < below_s and self._decided(count):
                return self._objective_s(count)
        return inf

    @property
    def _counts(self) -> tuple[int, int]:
        """The fewest and most mini-batches."""
        fixed = min(self.options.mini_batches or 0, len(self.requests))
        return (fixed, fixed) if fixed else (1, len(self.requests))

    def _simplest_first(self, best_s: float) -> list[int]:
        """Numbers of mini-batches to take: the fewest of 1, 2, 4, ... that are nearly as good as the best, then it."""
        solved = {count: one.split.objective_s for count, one in self._cache.items() if one}
        best = next(count for count, objective_s in solved.items() if objective_s == best_s)
        fewer = [2**i for i in range(best.bit_length()) if 2**i < best and self.options.mini_batches is None]
        enough_s = best_s * (1 + self.options.simplicity)
        return [n for n in fewer if self._promised_s(n) < enough_s and self._objective_s(n) <= enough_s] + [best]

    def _objective_s(self, count: int) -> float:
        one = self._solved(count)
        return one.split.objective_s if one else inf

    @cached_property
    def _promises(self) -> list[tuple[float, int]]:
        """(what the relaxation says, mini-batches) for 1, 2, 4, ... of them, until more promise clearly less."""
        found: list[tuple[float, int]] = []
        count, most = self._counts
        while count <= most and (not found or found[-1][0] <= min(found)[0] * (1 + RISING)):
            if (bound_s := self._promised_s(count)) < inf:
                found.append((bound_s, count))
            count *= 2
        return found

    def _promised_s(self, count: int) -> float:
        """What the relaxation says of so many mini-batches; infinite where not even real numbers fit."""
        return next((bound_s for bound_s, _ in self._levels_by_promise(count)), inf)

    def _levels_by_promise(self, count: int) -> Iterator[tuple[float, int]]:
        """(what the relaxation says, parts of every layer that are resident at least), ascending: no more of them are
        bounded than is asked for."""
        heap: list[tuple[float, int, bool]] = [(floor_s, least_parts, False) for floor_s, least_parts in self._floors]
        while heap:
            bound_s, least_parts, bounded = heapq.heappop(heap)
            if bounded:
                yield bound_s, least_parts
            elif (found := self._bound(count, count, least_parts)) is not None:
                heapq.heappush(heap, (found, least_parts, True))

    @cached_property
    def _floors(self) -> list[tuple[float, int]]:
        """(what no number of mini-batches undercuts, parts of every layer that are resident at least), ascending."""
        found = [(self._bound(*self._counts, least_parts), least_parts) for least_parts in self._levels]
        return sorted((bound_s, least_parts) for bound_s, least_parts in found if bound_s is not None)

    @cached_property
    def _levels(self) -> list[int]:
        """How many parts of every layer may be resident at least, within the options."""
        model, most = self.costs.model, self.options.max_resident_layers
        ends = [model.layers * nbytes / model.layer_bytes for nbytes in model.prefix_bytes]
        upper = model.layers if most is None else most
        return [
            k for k, (low, high) in enumerate(zip(ends, [*ends[1:], ends[-1]], strict=True))
            if low <= upper * (1 + EXACT) and high >= self.options.min_resident_layers * (1 - EXACT)
        ]  # fmt: skip

    def near(self, counts: Iterable[int], below_s: float) -> Iterator[Found]:
        """Decisions with such of `counts` mini-batches as may take less than `below_s`, those of few that promise most,
        the fastest first. Nothing bounds them."""
        counts = {min(max(n, 1), len(self.requests)) for n in counts}
        if self.options.mini_batches:
            counts = {self._counts[0]}
        promised = sorted((self._promised_s(n), n) for n in counts)[:MOST_NEAR]
        found = [(self._objective_s(n), n) for promise_s, n in promised if promise_s < below_s]
        for objective_s, n in sorted(found):
            if objective_s < below_s and (decisions := self._decided(n)):
                yield Found(decisions, objective_s, 0.0, 1)

    def promises_s(self) -> dict[int, float]:
        """What the relaxation says of the best of 1, 2, 4, ... mini-batches, for each number of parts of every layer
        that may be resident at least; only where real numbers fit."""
        found: dict[int, float] = {}
        for level, (_, count) in product(self._levels, self._promises):
            if (bound_s := self._bound(count, count, level)) is not None:
                found[level] = min(found.get(level, inf), bound_s)
        return found

    def floor_s(self) -> float | None:
        """What no plan undercuts, whatever its number of mini-batches; None where not even real numbers fit."""
        return self._floors[0][0] if self._floors else None

    @property
    def margins(self) -> tuple[float, float]:
        """Bytes of GPU and host that the last rounding took."""
        return self._decider.margins

    def like_another(self, count: int, margins: tuple[float, float]) -> Found | None:
        """Decisions with `count` mini-batches, as for a job that hardly differs and is planned already: nothing bounds
        them. The options fix the resident weights; `margins` are what rounding took there."""
        batches = self._batches(min(count, len(self.requests)))
        for left in dict.fromkeys((margins, (0.0, 0.0))):
            one = self._solve(batches, margins=left)
            if one and (decisions := self._decider.rounded(one)):
                return Found(decisions, one.split.objective_s, 0.0, 1)
        return None

    def composed(self, batches: list[list[int]], below_s: float) -> Found | None:
        """Decisions with these mini-batches; None where they have none, or none that looks faster than `below_s`."""
        one = self._solve(batches)
        if one is None or one.split.objective_s >= below_s:
            return None
        decisions = self._decider.rounded(one)
        return Found(decisions, one.split.objective_s, 0.0, 1) if decisions else None

    def _push(self, heap: list[_Node], lo: int, hi: int, least_parts: int) -> None:
        bound = self._bound(lo, hi, least_parts)
        if bound is not None:
            heapq.heappush(heap, (bound, lo, hi, least_parts))

    def _bound(self, lo: int, hi: int, least_parts: int) -> float | None:
        """That of the linear program; None where it has no solution."""
        key = lo, hi, least_parts
        if key not in self._bounds:
            if (lo, hi) not in self._relaxations:
                self._relaxations[lo, hi] = Relaxation(self.relaxed(lo, hi))
            self._bounds[key] = self._relaxations[lo, hi].bound_s(least_parts)
        return self._bounds[key]

    def relaxed(self, lo: int, hi: int, least_parts: int | None = None) -> SplitProblem:
        """The relaxation of every composition of `lo` to `hi` mini-batches."""
        # The bound must not charge store slots that a plan without host blocks does not need.
        bins, rows = (self.average.at(lo, hi),), -(-len(self.requests) // hi)
        problem = self._problem(bins, rows, 0, tuple(self.prefill.rungs))
        if len({r.gen_len for r in self.requests}) == 1:  # no mini-batch ends before the others
            pieces = self._pieces(lo, max(self.options.cache_slots, MOST_CACHE_SLOTS))
            problem = replace(problem, pieces_per_layer=pieces)
        # The link runs ahead of compute by the slots, so a link-bound decode begins while prefill still computes.
        sample_s = self.costs.sample(len(self.requests)).seconds
        return replace(problem, head_start=self.options.weight_slots, sample_s=sample_s, least_parts=least_parts)

    # ---- one number of mini-batches --------------------------------------------------------------

    def _batches(self, count: int) -> list[list[int]]:
        """The requests of each of `count` mini-batches."""
        # By length, so that the order in which requests came changes nothing but their numbers.
        order = sorted(range(len(self.requests)), key=lambda r: (self.requests[r].prompt_len, self.requests[r].gen_len))
        sizes = [blocks_for(self.requests[r].positions) for r in order]
        lives = [lifetime_of(self.requests[r].gen_len, self.epochs) for r in order]
        return [[order[i] for i in members] for members in compose(sizes, count, lives)]

    def _solved(self, count: int) -> Solved | None:
        if count not in self._cache:
            best: Solved | None = None
            for bound_s, least_parts in self._levels_by_promise(count):
                if best is None or bound_s < best.split.objective_s:
                    one = self._solve(self._batches(count), least_parts)
                    best = min(filter(None, (best, one)), key=lambda solved: solved.split.objective_s, default=None)
            self._cache[count] = best
        return self._cache[count]

    def _solve(
        self, batches: list[list[int]], least_parts: int | None = None, margins: tuple[float, float] = (0.0, 0.0)
    ) -> Solved | None:
        """`margins`: bytes of GPU and host left for rounding."""
        bins, indices = exact_bins(self.costs, self.requests, self.epochs, batches)
        rows = max(len(members) for members in batches)
        sizes = tuple(one.size for one in self.prefill_sizes)
        problem = self._problem(bins, rows, self.store_elements, sizes)
        problem = replace(
            problem, pieces_per_layer=self._pieces(len(batches)), decided=True, least_parts=least_parts,
            gpu_margin_bytes=margins[0], host_margin_bytes=margins[1],
        )  # fmt: skip
        if len(sizes) > 2 * SIZES_AROUND + 1 and (first := solve(problem, relax=True)):
            low = max(first.prefill - SIZES_AROUND, 0)
            if found := self._split(problem, range(low, min(low + 2 * SIZES_AROUND + 1, len(sizes)))):
                return Solved(problem, found, batches, indices)
        found = self._split(problem, range(len(sizes)))
        return Solved(problem, found, batches, indices) if found else None

    @staticmethod
    def _split(problem: SplitProblem, sizes: range) -> Split | None:
        """With one of some sizes of prefill."""
        found = solve(replace(problem, prefill=problem.prefill[sizes.start : sizes.stop]), gap=EXACT_GAP)
        return replace(found, prefill=found.prefill + sizes.start) if found else None

    def _decided(self, count: int) -> Decisions | None:
        if count not in self._rounded:
            one = self._solved(count)
            self._rounded[count] = self._decider.rounded(one) if one else None
        return self._rounded[count]

    def overshoot(self, decisions: Decisions) -> tuple[int, int]:
        """Bytes beyond the budgets of GPU and host; below zero where some are left."""
        return overshoot(self.costs, decisions)

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

    def _pieces(self, batches: int, cache_slots: int | None = None) -> int:
        """Transfers of one layer: one for each mini-batch that the slots let the link run ahead by."""
        ahead = (cache_slots or self.options.cache_slots) - 1
        return 1 if self.options.weight_slots == 1 else max(1, batches - ahead)
