"""Finds the number of mini-batches, by branch and bound over intervals of it, and the split for it.

Every interval has a bound from the average-bin relaxation. The interval with the lowest bound is halved until it is
one number, which is then solved exactly. The search ends when no interval left can beat the best plan found: its
result is within `TOLERANCE` of the best number of mini-batches, and the bound holds for all of them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, inf

from planner.bins import AverageBin, exact_bins
from planner.composition import compose, compose_by_end
from planner.costs import CostModel
from planner.decisions import Decisions, PrefillPass, chunk_prompts, spread_layers
from planner.epochs import Classes, make_epochs
from planner.forms import BLOCK_TOKENS, CacheForm
from planner.ilp import Bin, Split, SplitProblem, solve
from planner.memory import (
    ALIGNMENT,
    TOKEN_BYTES,
    gpu_lines,
    host_lines,
    pinned_total,
    planned_bytes,
    workspace_elements,
)
from planner.placement import MiniBatch
from planner.rounding import place_blocks
from planner.workload import Workload

TOLERANCE = 1e-3
PREFILL_CHUNK_TOKENS = 2048
"""Rows at which GEMM rates have levelled off in every profile: larger chunks only need more workspace."""
WIDER_CHUNKS = (2048, 1024, 512, 256, 128)
"""Tried, the widest first, where memory only sufficed to plan with the longest prompt as a chunk."""
MAX_EXACT_SOLVES = 6
MAX_ROUNDINGS = 8
NEAR = 0.01
"""Within this of the bound, no second way to size prefill's buffers is tried."""

USUAL_FORMS = 3
"""Forms that a request's blocks take at the same time, at most, in the plans that turn out best."""


@dataclass(frozen=True)
class Options:
    """What a caller may fix instead of leaving it to the solver."""

    act_share: float | None = None
    mini_batches: int | None = None
    max_resident_layers: int | None = None
    weight_slots: int = 2
    cache_slots: int = 2
    store_slots: int = 2
    end_together: bool = False
    """Form mini-batches of requests that end together, not of all kinds: see `compose_by_end`."""
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
    roomy: bool


class Search:
    """One job to plan: a cost model (hardware and model), a workload, the allowed forms and the options."""

    def __init__(self, costs: CostModel, workload: Workload, forms: tuple[CacheForm, ...], options: Options) -> None:
        self.costs, self.workload, self.forms, self.options = costs, workload, forms, options
        self.requests = workload.requests
        lengths = [(r.prompt_len, r.gen_len) for r in self.requests]
        self.epochs = make_epochs(lengths)
        self.average = AverageBin(costs, Classes.of(lengths), self.epochs)
        self.longest_prompt = max(r.prompt_len for r in self.requests)
        self.prompt_tokens = workload.total_prompt_tokens
        # However many tokens each shall generate: a chunk takes equal prompts into one attention call.
        self._prompts = Counter(r.prompt_len for r in self.requests)

    # ---- the search ------------------------------------------------------------------------------

    def run(self) -> Found | None:
        """None when no number of mini-batches is feasible."""
        fixed = min(self.options.mini_batches or 0, len(self.requests))
        low, high = (fixed, fixed) if fixed else (1, len(self.requests))
        heap: list[tuple[float, int, int]] = []
        self._push(heap, low, high)
        best: Found | None = None
        proven: list[float] = []
        solves = 0
        while heap:
            bound, lo, hi = heapq.heappop(heap)
            if best and (bound >= best.objective_s * (1 - TOLERANCE) or solves >= MAX_EXACT_SOLVES):
                proven.append(bound)
                break
            if lo < hi:
                middle = (lo + hi) // 2
                self._push(heap, lo, middle)
                self._push(heap, middle + 1, hi)
                continue
            proven.append(bound)
            solves += 1
            found = self._solve_for(lo, bound, best.objective_s if best else inf)
            if found:
                best = Found(*found, 0.0, solves)
        if best is None:
            return None
        bound = min([*proven, best.objective_s])
        return replace(self._simpler(best), bound_s=bound, exact_solves=solves)

    def _simpler(self, best: Found) -> Found:
        """Fewer mini-batches at nearly the same time, trying 1, 2, 4, ..."""
        count = 1
        while self.options.mini_batches is None and count < len(best.decisions.mini_batches):
            found = self._solve_for(count, best.objective_s, best.objective_s * (1 + self.options.simplicity))
            if found:
                return Found(*found, 0.0, 0)
            count *= 2
        return best

    def _push(self, heap: list[tuple[float, int, int]], lo: int, hi: int) -> None:
        split = solve(self.relaxed(lo, hi))
        if split:
            heapq.heappush(heap, (split.bound_s, lo, hi))

    def relaxed(self, lo: int, hi: int) -> SplitProblem:
        """The relaxation of every composition of `lo` to `hi` mini-batches."""
        problem = self._problem((self.average.at(lo, hi),), lo, rows=-(-len(self.requests) // hi), roomy=False)
        # The link runs ahead of compute by the slots, so a link-bound decode begins while prefill still computes.
        return replace(problem, head_start_bytes=float(self.options.weight_slots * self.costs.model.layer_bytes))

    # ---- one number of mini-batches --------------------------------------------------------------

    def plan_with(self, count: int) -> Decisions | None:
        """Decisions with exactly `count` mini-batches, or None where there are none."""
        found = self._solve_for(count, inf, inf)
        return found[0] if found else None

    def _solve_for(self, count: int, good_s: float, below_s: float) -> tuple[Decisions, float] | None:
        """The better of roomy and least prefill buffers, if it is better than `below_s`.

        Least buffers only where roomy ones are not near `good_s`. Only what may be the best is rounded.
        """
        found = self._solved(self._batches(count), good_s)
        for one in sorted(found, key=lambda one: one.split.objective_s):
            if one.split.objective_s >= below_s:
                break
            decisions = self._rounded(one)
            if decisions:
                return decisions, one.split.objective_s
        return None

    def _batches(self, count: int) -> list[list[int]]:
        """The requests of each of `count` mini-batches."""
        # By length, so that the order in which requests came changes nothing but their numbers.
        order = sorted(range(len(self.requests)), key=lambda r: (self.requests[r].prompt_len, self.requests[r].gen_len))
        sizes = [-(-self.requests[r].positions // BLOCK_TOKENS) for r in order]
        if self.options.end_together:
            composed = compose_by_end([self.requests[r].gen_len for r in order], sizes, count)
        else:
            composed = compose(sizes, count)
        return [[order[i] for i in members] for members in composed]

    def _solved(self, batches: list[list[int]], good_s: float) -> Iterator[_Solved]:
        """In real numbers, with roomy prefill buffers and with the least."""
        bins, indices = exact_bins(self.costs, self.requests, self.epochs, batches, min(len(self.forms), USUAL_FORMS))
        rows = max(len(members) for members in batches)
        for roomy in (True, False):
            problem = replace(self._problem(bins, len(batches), rows, roomy), in_proportion=True)
            if not roomy:  # what the relaxation may hope for is not what the least buffers allow
                chunk, passed = self._prefill_tokens(roomy)
                sweeps, compute_s = -(-self.prompt_tokens // passed), self._prefill_compute_s(chunk)
                problem = replace(problem, prefill_sweeps=sweeps, prefill_compute_s=compute_s)
            split = solve(problem)
            if split:
                yield _Solved(problem, split, batches, indices, roomy)
                if split.objective_s <= good_s * (1 + NEAR):
                    return

    def _rounded(self, one: _Solved) -> Decisions | None:
        """Rounding to whole blocks and slabs can overshoot a full budget a little: then plan with that much less.

        A margin smaller than a block may be rounded away again, so it grows.
        """
        problem, split = one.problem, one.split
        for attempt in range(MAX_ROUNDINGS):
            decisions = self._decide(split, one.batches, one.indices, one.roomy)
            gpu, host = self._overshoot(decisions)
            if not gpu and not host:
                return self._widest_passes(decisions, one.roomy)
            problem = replace(
                problem,
                fixed_decode_bytes=problem.fixed_decode_bytes + gpu * 4**attempt,
                prefill_bytes=problem.prefill_bytes + gpu * 4**attempt,
                host_margin_bytes=problem.host_margin_bytes + host * 4**attempt,
            )
            tighter = solve(problem)
            if tighter is None:
                return None
            split = tighter
        return None

    def _overshoot(self, decisions: Decisions) -> tuple[int, int]:
        """Bytes beyond the budgets of GPU and host."""
        model, hardware = self.costs.model, self.costs.hardware
        gpu = planned_bytes(gpu_lines(model, decisions)) - hardware.gpu.budget_bytes
        host = pinned_total(host_lines(model, decisions), hardware.host.pin_rounding)
        return max(gpu, 0), max(host - hardware.host.budget_bytes, 0)

    def _problem(self, bins: tuple[Bin, ...], batches: int, rows: int, roomy: bool) -> SplitProblem:
        model, options = self.costs.model, self.options
        e = model.element_bytes
        width = max((f.width(model) for f in self.forms if not f.on_gpu), default=0)
        chunk, passed = self._prefill_tokens(roomy)
        sampled = len(self.requests) if roomy else 1
        token_ids = TOKEN_BYTES * (self.prompt_tokens + self.workload.total_generated_tokens)
        fixed = len(self.requests) * model.hidden + workspace_elements(model, rows, rows)
        # The bound must not charge store slots that a plan without host blocks does not need.
        store = options.store_slots * width if roomy else 0
        prefill = passed * model.hidden + workspace_elements(model, chunk, min(sampled, chunk)) + store * chunk
        return SplitProblem(
            model=model,
            hardware=self.costs.hardware,
            forms=self.forms,
            epochs=self.epochs,
            bins=bins,
            weight_slots=options.weight_slots,
            cache_slots=options.cache_slots,
            fixed_decode_bytes=e * (fixed + store * rows) + token_ids,
            prefill_bytes=e * prefill + token_ids,
            prefill_compute_s=self._prefill_compute_s(chunk) if roomy else self._prefill_floor_s(),
            prefill_sweeps=-(-self.prompt_tokens // passed) if roomy else 1,
            pieces_per_layer=self._pieces(batches, roomy),
            act_share=options.act_share,
            max_resident_layers=options.max_resident_layers,
        )

    def _pieces(self, batches: int, roomy: bool) -> int:
        """Transfers of one layer: one with a single slot, and for the bound where mini-batches may end early."""
        ends = {r.gen_len for r in self.requests}
        if self.options.weight_slots == 1 or (len(ends) > 1 and not roomy):
            return 1
        return max(1, batches - self.options.cache_slots + 1)

    # ---- prefill ---------------------------------------------------------------------------------

    def _prefill_tokens(self, roomy: bool) -> tuple[int, int]:
        """Tokens of a chunk and of a pass: `roomy` ones run at full rate and hide the weights, else the least."""
        if not roomy:
            return self.longest_prompt, self.longest_prompt
        chunk = min(max(self.longest_prompt, PREFILL_CHUNK_TOKENS), self.prompt_tokens)
        per_token = self.costs.projections(chunk).seconds / chunk
        hiding = self.costs.h2d(self.costs.model.layer_bytes) / per_token
        return chunk, min(self.prompt_tokens, chunk * max(1, -(-int(hiding) // chunk)))

    def _prefill_compute_s(self, chunk: int) -> float:
        """At the rates of chunks of `chunk` tokens, with the overhead of every chunk."""
        costs, chunks = self.costs, self.prompt_tokens / chunk
        attention = 0.0
        for prompt, alike in self._prompts.items():
            together = min(alike, max(chunk // prompt, 1))
            attention += alike / together * costs.prefill_attention(prompt, together).seconds
        return self._prefill_s(chunks * costs.projections(chunk).seconds + attention, ceil(chunks))

    def _prefill_floor_s(self) -> float:
        """The same for chunks of the best rate there is, with the overhead of a single one."""
        costs, gpu = self.costs, self.costs.hardware.gpu
        sizes = {min(max(int(size), 1), self.prompt_tokens) for size in gpu.gemm_rates(costs.model.dtype).sizes}
        per_token = min(costs.projections(size).seconds / size for size in sizes | {self.prompt_tokens})
        attention = 0.0
        for prompt, alike in self._prompts.items():
            best = gpu.achieved.prefill_attention_flops_by_tokens.best_within(alike, prompt)
            attention += costs.prefill_attention(prompt, alike).flops / best
        return self._prefill_s(self.prompt_tokens * per_token + attention, 1)

    def _prefill_s(self, products_s: float, chunks: int) -> float:
        """All layers: projections and attention as given, and what every chunk costs beside."""
        costs, achieved = self.costs, self.costs.hardware.gpu.achieved
        kept = costs.elementwise(4 * self.prompt_tokens * costs.model.d_kv).seconds
        layer = (products_s + kept) * achieved.engine_slowdown.prefill.value
        layer += chunks * achieved.forward_overhead_s.value
        return costs.model.layers * layer + costs.sample(len(self.requests)).seconds

    def _widest_passes(self, decisions: Decisions, roomy: bool) -> Decisions:
        """Let prefill use every byte that decode's buffers and the rest of the budget leave it.

        Larger chunks run at better rates, and longer passes load the streamed weights less often.
        """
        model, budget = self.costs.model, self.costs.hardware.gpu.budget_bytes
        chunk, least = self._prefill_tokens(roomy)
        for wider in (size for size in WIDER_CHUNKS if size > chunk):
            passes = self._passes(decisions.mini_batches, wider, max(wider, least))
            if planned_bytes(gpu_lines(model, replace(decisions, prefill_passes=passes))) <= budget:
                chunk, least = wider, max(wider, least)
                decisions = replace(decisions, prefill_passes=passes)
                break
        lines = gpu_lines(model, decisions)
        # Not `planned_bytes`: prefill may grow up to the whole budget.
        taken = sum(line.nbytes for line in lines if line.phase == "always")
        others = sum(line.nbytes for line in lines if line.phase == "prefill" and not line.name.startswith("hidden"))
        room = budget - taken - others - (len(lines) + 1) * ALIGNMENT
        tokens = min(self.prompt_tokens, room // (model.hidden * model.element_bytes))
        return replace(decisions, prefill_passes=self._passes(decisions.mini_batches, chunk, max(tokens, least)))

    def _passes(self, batches: tuple[MiniBatch, ...], chunk: int, passed: int) -> tuple[PrefillPass, ...]:
        prompts = {i: r.prompt_len for i, r in enumerate(self.requests)}
        return chunk_prompts(batches, prompts, chunk, passed)

    # ---- integers --------------------------------------------------------------------------------

    def _decide(self, split: Split, batches: list[list[int]], indices: list[list[int]], roomy: bool) -> Decisions:
        model, options = self.costs.model, self.options
        placed: dict[int, MiniBatch] = {}
        for b, members_of in enumerate(indices):
            for position, index in enumerate(members_of):
                end = len(self.epochs)
                targets = {
                    (f, e): split.begun[b, f.name, e] if e < end else split.final[b, f.name]
                    for f in self.forms for e in range(end + 1)
                }  # fmt: skip
                limits = {f: _share(split.final[b, f.name], position, len(members_of)) for f in self.forms if f.on_gpu}
                placed[index] = place_blocks(batches[index], self.requests, self.epochs, targets, limits)
        ordered = tuple(placed[i] for i in range(len(batches)))
        streams = split.resident_layers < model.layers
        chunk, passed = self._prefill_tokens(roomy)
        return Decisions(
            mini_batches=ordered,
            prefill_passes=self._passes(ordered, chunk, passed),
            resident_layers=spread_layers(split.resident_layers, model.layers),
            weight_slots=options.weight_slots if streams else 0,
            cache_slots=options.cache_slots,
            store_slots=options.store_slots,
        )


def _share(total: float, position: int, count: int) -> int:
    """Whole blocks for one of `count` mini-batches so that together they take ceil(total)."""
    whole = ceil(total - 1e-6)
    return whole * (position + 1) // count - whole * position // count
