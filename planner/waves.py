"""Cuts a job into waves that run one after the other, and plans each: how many, and who runs with whom.

A job that memory holds at once is planned as a single wave first. Smaller ones may take less time, since they leave the
GPU more room for each request, or for all layers; so they are tried where the bound of all cuts promises enough.

Requests that end together belong together: a wave runs until its longest request has ended, and every step loads the
weights once for all. So requests are sorted by generation length and cut into consecutive waves of equal memory demand.
The number of waves is searched like the number of mini-batches: by branch and bound over intervals of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, inf

import numpy as np

from planner.best import best_of
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.errors import InfeasibleError
from planner.estimate import estimated_waves_s
from planner.feasibility import explain_infeasible, explain_rounding, shortage
from planner.forms import blocks_for
from planner.memory import resident_layers
from planner.policies import Policy
from planner.search import TOLERANCE, Found, Options, Search
from planner.tables import size
from planner.timeline import Timeline
from planner.wave_bound import WaveBound
from planner.wave_timeline import simulate_waves
from planner.workload import Request, Workload

MAX_CUTS = 5
"""Numbers of waves planned once a plan is known: neighbours differ little, and each takes seconds."""
WORTH_CUTTING = 0.02
"""A job that memory holds at once is cut into waves only where the bound leaves room for more than this, relative."""
MANY_REQUESTS = 1000
"""In waves, beyond which only the first number of waves that has a plan is planned, and none of them in every way."""
MANY_WAVES = 4
"""Beyond so many different waves only one is planned by a search; the others take over its number of mini-batches."""
MOST_PROMISED = 12
"""Different waves whose relaxations are asked what they promise; of very many requests only `MANY_WAVES`."""
FEW_KINDS = 2
"""Different waves up to which each is worth a second look."""
ANOTHER_LOOK = 0.02
"""A cut is worth it that takes no longer than the best so far by more than this, relative, at the first, and that is
not as near to what it promises."""
FAR_LESS = 0.8
"""Of the time of a job at once: what promises less is planned before that is planned in every way."""


@dataclass(frozen=True)
class FoundWaves:
    """The best plan found, and its bound.

    That of a plan in one wave is over all ways to run the job at once; of one in several, over every cut into waves; of
    a number of waves that was asked for, over every cut into so many.
    """

    waves: tuple[Decisions, ...]
    timeline: Timeline
    bound_s: float
    objective_s: float
    parts: Sequence[tuple[Search, Decisions]]
    """Each wave's search and decisions, its requests numbered from 0."""


@dataclass(frozen=True)
class _Wave:
    """One wave, its requests numbered from 0."""

    search: Search
    found: Found
    margins: tuple[float, float]
    """Bytes of GPU and host that rounding took."""

    @property
    def layers(self) -> float:
        """Whole layers that its resident weights come to."""
        return resident_layers(self.search.costs.model, self.found.decisions)


@dataclass(frozen=True)
class _Planned:
    """A whole job, cut in one way."""

    costs: CostModel
    waves: tuple[Decisions, ...]
    parts: tuple[_Wave, ...]
    simulated: Timeline | None = None
    """Where that has been done already."""

    @cached_property
    def timeline(self) -> Timeline:
        """As simulated."""
        return self.simulated or simulate_waves(self.costs, self.waves)

    @cached_property
    def estimated_s(self) -> float:
        """As simulated where that has been done, else from some of its steps: enough to tell which cut is faster."""
        if self.simulated:
            return self.simulated.total_s
        return estimated_waves_s(self.costs, self.waves)

    @property
    def kinds(self) -> int:
        """Different waves."""
        return len({wave.shape for wave in self.waves})

    def bounded(self, bound_s: float) -> FoundWaves:
        """With the bound found for it."""
        return FoundWaves(
            self.waves, self.timeline, bound_s, sum(part.found.objective_s for part in self.parts),
            [(part.search, part.found.decisions) for part in self.parts],
        )  # fmt: skip


def cut(requests: Sequence[Request], count: int) -> list[list[int]]:
    """Request numbers of `count` waves, by generation length, then prompt length; about equal blocks in the end.

    No wave is empty. Equal requests make waves of at most two sizes.
    """
    order = sorted(range(len(requests)), key=lambda r: (requests[r].gen_len, requests[r].prompt_len, r))
    sizes = [blocks_for(requests[r].positions) for r in order]
    total, held, position = sum(sizes), 0, 0
    waves: list[list[int]] = []
    for wave in range(1, count + 1):
        first, last = position, len(order) - (count - wave)
        while position < last and (position == first or (held + sizes[position]) * count <= wave * total):
            held += sizes[position]
            position += 1
        waves.append(order[first:position])
    waves[-1] += order[position:]
    return waves


class _Cuts:
    """Intervals of the number of waves that are still open, the most promising first."""

    def __init__(self, bound: WaveBound, fewest: int, most: int) -> None:
        self.bound, self.tried = bound, set[int]()
        self.heap: list[tuple[float, int, int, float]] = []
        """(bound in seconds, fewest, most, where in between the relaxation is best)."""
        self.push(fewest, most)

    def push(self, low: int, high: int) -> None:
        """Open an interval, unless it is empty or memory holds no such cut."""
        found = self.bound.of(low, high) if low <= high else None
        if found:
            heapq.heappush(self.heap, (found.total_s, low, high, found.waves))


class WaveSearch:
    """One job to plan, in as many waves as it takes."""

    def __init__(self, costs: CostModel, workload: Workload, policy: Policy, options: Options) -> None:
        self.costs, self.workload, self.policy, self.options = costs, workload, policy, options
        self.requests = workload.requests
        self.whole = Search(costs, workload, policy.forms, options)
        self._known: dict[tuple[object, ...], _Wave | None] = {}
        self._searches: dict[tuple[object, ...], Search] = {}
        self._promised: dict[int, float] = {}

    def run(self) -> FoundWaves | None:
        """None when there is no plan in any number of waves that was tried, up to one request in each."""
        fixed = self.options.waves and min(self.options.waves, len(self.requests))
        if fixed and fixed > 1:
            return self._fixed(fixed)
        single = len(self.requests) == 1 or bool(fixed)
        may_cut = not (single or self.options.mini_batches or len(self.requests) > MANY_REQUESTS)
        if may_cut and (far_faster := self._far_fewer_at_once()):
            return far_faster
        chosen = best_of(self.whole)
        if chosen is None:
            return None if single else self._more_waves()
        at_once = self._at_once(*chosen)
        return self._fewer_at_once(at_once) if may_cut else at_once.bounded(chosen[0].bound_s)

    def _at_once(self, found: Found, timeline: Timeline | None = None) -> _Planned:
        """The job in a single wave."""
        return _Planned(self.costs, (found.decisions,), (_Wave(self.whole, found, self.whole.margins),), timeline)

    def _fixed(self, count: int) -> FoundWaves | None:
        """As many waves as asked for."""
        planned, bound = self._plan(count), WaveBound(self.whole).of(count, count)
        return planned.bounded(min(bound.total_s, planned.timeline.total_s)) if planned and bound else None

    def _more_waves(self) -> FoundWaves | None:
        """For a job that memory does not hold at once."""
        cuts = _Cuts(self._coarse, 1, len(self.requests))
        if not cuts.heap or self.hardest().run() is None:
            return None
        fewest = max(cuts.bound.fewest_waves, cuts.bound.fewest_by_blocks, 2)
        many = len(self.requests) > MANY_REQUESTS or len(self.workload.classes()) > FEW_KINDS
        first = self._promising(max(fewest, int(cuts.heap[0][3]))) if many else fewest
        best = self._first(first, cuts.tried)
        if best is None:
            return None
        best, proven_s = self._branch(cuts, best, 0 if many else MAX_CUTS, TOLERANCE)
        return best.bounded(min(self._proven(proven_s, 1), best.timeline.total_s))

    def _far_fewer_at_once(self) -> FoundWaves | None:
        """For a job that memory does hold, where waves promise far less time than it takes at once, which then need not
        be planned in every way; None elsewhere."""
        found, cuts = self.whole.run(), self._cuts_at_once()
        if found is None or not cuts.heap:
            return None
        at_once = self._at_once(found)
        enough_s, (bound_s, _, _, waves) = FAR_LESS * at_once.estimated_s, cuts.heap[0]
        if bound_s >= enough_s or min(map(self._promise_s, range(int(waves), ceil(waves) + 1))) >= enough_s:
            return None
        best = self._fewer_at_once(at_once)
        return best if len(best.waves) > 1 else None

    def _cuts_at_once(self) -> _Cuts:
        return _Cuts(self._coarse, 2, len(self.requests))

    def _fewer_at_once(self, at_once: _Planned) -> FoundWaves:
        """For a job that memory does hold: waves where they promise much, as when fewer requests leave the GPU room for
        all layers."""
        cuts, bound_s = self._cuts_at_once(), at_once.parts[0].found.bound_s
        if len(self.workload.classes()) <= FEW_KINDS:
            best, proven_s = self._branch(cuts, at_once, MAX_CUTS, WORTH_CUTTING)
        elif cuts.heap and cuts.heap[0][0] < at_once.estimated_s * (1 - WORTH_CUTTING):
            proven_s, _, _, waves = cuts.heap[0]
            best = self._faster(self._promising(max(int(waves), 2)), at_once)
        else:
            best, proven_s = at_once, inf
        if best is at_once:
            return at_once.bounded(bound_s)
        return best.bounded(min(bound_s, self._proven(proven_s, 2), best.timeline.total_s))

    @cached_property
    def _coarse(self) -> WaveBound:
        """What says which cuts to try."""
        return WaveBound(self.whole, self._unlike)

    @property
    def _unlike(self) -> bool:
        """Whether requests differ: the bound of their cuts takes long."""
        return len(self.whole.classes.count) > 1

    def _proven(self, coarse_s: float, fewest: int) -> float:
        """The better of two bounds on every cut into `fewest` waves or more: the coarse one, and the fine one."""
        fine = WaveBound(self.whole).of(fewest, len(self.requests)) if self._unlike else None
        return max(coarse_s, fine.total_s) if fine else coarse_s

    def _branch(self, cuts: _Cuts, best: _Planned, most: int, worth: float) -> tuple[_Planned, float]:
        """(the best plan, what no cut beats) after planning up to `most` numbers of waves, each of which may take less
        than the best so far by more than `worth`, relative."""
        proven = [inf]
        while cuts.heap:
            total_s, low, high, waves = heapq.heappop(cuts.heap)
            if most <= 0 or total_s >= best.estimated_s * (1 - worth):
                proven.append(total_s)
                break
            if low < high:
                middle = min(max(-int(-(waves - 1e-6) // 1), low), high)
                for part in ((low, middle - 1), (middle, middle), (middle + 1, high)):
                    cuts.push(*part)
                continue
            proven.append(total_s)
            if low not in cuts.tried:
                most -= 1
                best = self._faster(low, best)
        return best, min(proven)

    def _faster(self, count: int, best: _Planned) -> _Planned:
        """The plan in `count` waves where that takes less than the best so far. Most do not, as their relaxations or a
        first look tell."""
        promise_s = self._promise_s(count)
        if promise_s >= best.estimated_s:
            return best
        first = self._plan(count, thorough=False)
        if first is None or first.estimated_s >= best.estimated_s * (1 + ANOTHER_LOOK):
            return best
        near = first.estimated_s <= promise_s * (1 + ANOTHER_LOOK)
        other = first if near or first.kinds > FEW_KINDS else self._plan(count)
        return other if other and other.estimated_s < best.estimated_s else best

    def _promising(self, first: int) -> int:
        """Where cuts are many and unlike, only one number of waves is planned: that which promises most, from `first`
        on, where the relaxation of all cuts is best. A wave too few costs much more than one too many."""
        best, stride = first, 1
        while best + stride <= len(self.requests) and self._promise_s(best + stride) < self._promise_s(best):
            best, stride = best + stride, 2 * stride
        while stride > 1:
            stride //= 2
            nearby = {max(best - stride, first), best, min(best + stride, len(self.requests))}
            best = min(nearby, key=lambda count: (self._promise_s(count), count))
        return best

    def _first(self, first: int, tried: set[int]) -> _Planned | None:
        """The first number of waves that has a plan, in growing strides from `first`."""
        count, stride = first, 1
        while True:
            tried.add(count)
            found = self._plan(count)
            if found or count == len(self.requests):
                return found
            count, stride = min(count + stride, len(self.requests)), 2 * stride

    def hardest(self) -> Search:
        """The first request that does not fit even alone; that of most positions where all do."""
        alike = sorted(self.workload.classes().items(), key=lambda item: (-sum(item[0]), item[0]))
        alone = [Workload((self.requests[min(members)],)) for _, members in alike]
        # One of both a shorter prompt and fewer positions than another fits if that one does.
        longest, hardest = 0, []
        for job in alone:
            if job.requests[0].prompt_len > longest:
                longest = job.requests[0].prompt_len
                hardest.append(Search(self.costs, job, self.policy.forms, self.options))
        return next((search for search in hardest if search.run() is None), hardest[0])

    def refusal(self) -> InfeasibleError:
        """Why `run` found nothing."""
        hardest, fixed = self.hardest(), self.options.waves
        if fixed is None or hardest.run() is None:
            return explain_infeasible(hardest, self.policy)
        count = self.options.mini_batches or len(self.requests)
        gpu, host = shortage(self.whole.relaxed(count, count))
        limit, device, missing = ("gpu_memory", "GPU", gpu) if gpu > host else ("host_memory", "host", host)
        if fixed == 1 and missing < 1:
            return explain_rounding(self.whole, self.policy, "leave out --waves")
        what = f"{self.policy.name} of {self.costs.model.name} has no plan for {len(self.requests)} requests in "
        what += f"{fixed} wave{'s' if fixed > 1 else ''}"
        if fixed == 1:
            what += f": {size(missing)} of {device} memory are missing"
        return InfeasibleError(what, limit=limit, missing_bytes=missing, cure="Leave out --waves, or give more of them")

    def short_memory(self, found: FoundWaves) -> str:
        """The memory that keeps `found` from being one wave, as a person says it; "" where none does."""
        if len(found.waves) == 1:
            return ""
        count = self.options.mini_batches or len(self.requests)
        gpu, host = shortage(self.whole.relaxed(count, count))
        return "" if max(gpu, host) < 1 else "GPU memory" if gpu > host else "host memory"

    # ---- one number of waves ---------------------------------------------------------------------

    def _plan(self, count: int, thorough: bool = True) -> _Planned | None:
        """Weights are loaded once, so all waves keep the same layers: as many as the wave with least room for them."""
        members = cut(self.requests, count)
        kinds = self._kinds(members)
        thorough = thorough and kinds <= FEW_KINDS and len(self.requests) <= MANY_REQUESTS
        most = self.options.max_resident_layers
        while True:
            parts: list[_Wave] = []
            for wave in reversed(members):  # where memory is short, the last is the first not to fit
                like = parts[0] if parts and kinds > MANY_WAVES else None
                found = self._wave(wave, most, thorough, like)
                if found is None:
                    return None
                parts.insert(0, found)
            layers = [part.layers for part in parts]
            if len(set(layers)) == 1:
                break
            most = min(layers)
            if not thorough and (levelled := self._levelled(parts, most)):
                parts = levelled
                break
        pairs = zip(parts, members, strict=True)
        planned = tuple(part.found.decisions.renumbered(numbers) for part, numbers in pairs)
        return _Planned(self.costs, planned, tuple(parts))

    def _levelled(self, parts: Sequence[_Wave], layers: float) -> list[_Wave] | None:
        """The same waves with so many layers on the GPU; None where one of them then has no plan."""
        found = [part if part.layers == layers else self._like(part.search, part, layers) for part in parts]
        whole = [part for part in found if part]
        return whole if len(whole) == len(parts) else None

    def _promise_s(self, count: int) -> float:
        """What the relaxations of `count` waves add up to; where many differ, about that, from some of them."""
        if count not in self._promised:
            self._promised[count] = self._promise_of(count)
        return self._promised[count]

    def _promise_of(self, count: int) -> float:
        members = cut(self.requests, count)
        most = MANY_WAVES if len(self.requests) > MANY_REQUESTS else MOST_PROMISED
        asked = np.linspace(0, count - 1, most).round().astype(int) if self._kinds(members) > most else np.arange(count)
        waves = [self._search(members[i], self.options.max_resident_layers).promises_s() for i in asked]
        # All keep the same weights. Those between take as long as a straight line says.
        levels, places = set(waves[0]).intersection(*waves), np.arange(count)
        sums = (float(np.interp(places, asked, [wave[level] for wave in waves]).sum()) for level in levels)
        return min(sums, default=inf)

    def _kinds(self, waves: Sequence[Sequence[int]]) -> int:
        """How many of them differ."""
        return len(set(map(self._lengths, waves)))

    def _search(self, members: Sequence[int], most_resident: float | None) -> Search:
        """That of one wave: one for equal waves."""
        key = (self._lengths(members), most_resident)
        if key not in self._searches:
            options = replace(self.options, max_resident_layers=most_resident, vary_slots=False)
            job = Workload(tuple(self.requests[r] for r in members))
            self._searches[key] = Search(self.costs, job, self.policy.forms, options)
        return self._searches[key]

    def _lengths(self, wave: Sequence[int]) -> tuple[tuple[int, int], ...]:
        return tuple((self.requests[r].prompt_len, self.requests[r].gen_len) for r in wave)

    def _wave(
        self, members: Sequence[int], most_resident: float | None, thorough: bool, like: _Wave | None
    ) -> _Wave | None:
        """The plan of one wave; equal waves are planned once. `like`: one that hardly differs."""
        key = (self._lengths(members), most_resident, thorough)
        if key not in self._known:
            search = self._search(members, most_resident)
            self._known[key] = self._like(search, like, like.layers) if like else None
            if self._known[key] is None:
                chosen = best_of(search) if thorough else None
                found = chosen[0] if chosen else search.run(nodes=0)
                self._known[key] = _Wave(search, found, search.margins) if found else None
        return self._known[key]

    @staticmethod
    def _like(search: Search, like: _Wave, layers: float) -> _Wave | None:
        """The plan with `layers` on the GPU and as many mini-batches as `like`."""
        fixed = search.varied(min_resident_layers=layers, max_resident_layers=layers)
        found = fixed.like_another(len(like.found.decisions.mini_batches), like.margins)
        return _Wave(search, found, fixed.margins) if found else None
