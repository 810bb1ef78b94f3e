"""Finds how many waves a job runs in, one after the other.

A job that memory holds at once is planned as a single wave first. Smaller ones may take less time, since they leave the
GPU more room for each request, or for all layers; so they are tried where the bound of all cuts promises enough. The
number of waves is searched like the number of mini-batches: by branch and bound over intervals of it.

Fewer forms of the cache than a policy allows are searched on their own where they may take less: what a wave takes
beyond its relaxation differs between them, and with it how many waves are best.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, inf

from planner.best import DOMINANCE_GAP, best_of
from planner.costs import CostModel
from planner.cutting import Cut
from planner.decisions import Decisions
from planner.feasibility import hardest
from planner.policies import POLICIES, Policy
from planner.search import TOLERANCE, Found, Options, Search
from planner.timeline import Timeline
from planner.wave_bound import WaveBound
from planner.wave_plans import FEW_KINDS, MANY_REQUESTS, SMALL_WAVE, Planned, Wave, WavePlanner
from planner.workload import Workload

MAX_CUTS = 5
"""Numbers of waves planned once a plan is known: neighbours differ little, and each takes seconds."""
WORTH_CUTTING = 0.02
"""A job that memory holds at once is cut into waves only where the bound leaves room for more than this, relative."""
ANOTHER_LOOK = 0.02
"""A cut is worth it that takes no longer than the best so far by more than this, relative, at the first, and that is
not as near to what it promises."""
FAR_LESS = 0.8
"""Of the time of a job at once: what promises less is planned before that is planned in every way."""
RISING, SMOOTHLY_RISING = 0.1, 0.02
"""Relative: how far beyond the least so far the promise of ever more waves must be to look no further. Of waves of very
few requests promises go up and down."""
MAX_OTHERS, MAX_NARROWER = 3, 2
"""Cuts beside the most promising one that are planned where waves differ, and of fewer forms."""
SMALL_JOB = 24
"""Requests up to which fewer forms are planned as if there were no others: that takes little then."""
MOST_ASKED = 6
"""Cuts of which is asked what they promise with fewer forms."""
DEALT = ((0.05, 0.1), (0.05, 0.1, 0.2), (0.2, 0.3))
"""Shares of the blocks, of requests that end first, that may be dealt to all waves: to as many as otherwise, and to one
and two fewer."""


@dataclass(frozen=True)
class FoundWaves:
    """The best plan found, and its bound.

    That of a plan in one wave is over all ways to run the job at once; of one in several, over every cut into waves; of
    a number of waves that was asked for, over every cut into so many.
    """

    waves: tuple[Decisions, ...]
    timeline: Timeline
    bound_s: float
    """Above the total where that is estimated, or of very few steps: then it proves nothing."""
    objective_s: float
    parts: Sequence[tuple[Search, Decisions]]
    """Each wave's search and decisions, its requests numbered from 0."""

    @property
    def gap(self) -> float:
        """How much less, relative, any plan could take at most."""
        return max(1 - self.bound_s / self.timeline.total_s, 0.0)

    @classmethod
    def of(cls, planned: Planned, bound_s: float) -> FoundWaves:
        """With the bound found for it."""
        return cls(
            planned.waves, planned.timeline, bound_s,
            sum(part.found.objective_s for part in planned.parts),
            [(part.search, part.found.decisions) for part in planned.parts],
        )  # fmt: skip


@dataclass(frozen=True)
class _Choice:
    """A plan, and what is known already of how good any other can be."""

    planned: Planned
    cuts_s: float
    """What no cut into `fewest` to `most` waves beats; infinite where none may be made."""
    fewest: int = 2
    most: int = 0
    at_once_s: float = inf
    """What no plan in a single wave beats; infinite where there is none."""


class _Cuts:
    """Intervals of the number of waves that are still open, the most promising first."""

    def __init__(self, bound: WaveBound, fewest: int, most: int) -> None:
        self.bound, self.tried = bound, set[int]()
        self.heap: list[tuple[float, int, int, float]] = []
        """(bound in seconds, fewest, most, where in between the relaxation is best)."""
        self.push(fewest, most)

    @property
    def least_s(self) -> float:
        """What no cut beats; infinite where memory holds none."""
        return self.heap[0][0] if self.heap else inf

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
        self.planner = WavePlanner(costs, workload, policy.forms, options)
        self._excess: dict[int, float] = {}
        """By number of waves, what a plan was estimated to take beyond what was promised, relative."""
        self._unlike = len(self.whole.classes.count) > 1
        """Whether requests differ: the bound of their cuts takes long."""

    def run(self) -> FoundWaves | None:
        """None when there is no plan in any number of waves that was tried, up to one request in each."""
        choice = self._choice()
        if choice is None:
            return None
        best = choice.planned
        for narrower in self._narrower():
            best = narrower._better(best, choice, self.planner)
        if len(best.waves) == 1:
            return FoundWaves.of(best, choice.at_once_s)
        return FoundWaves.of(best, min(choice.at_once_s, self._proven(choice)))

    def _choice(self) -> _Choice | None:
        """With the forms of the policy."""
        fixed = self.options.waves and min(self.options.waves, len(self.requests))
        if fixed and fixed > 1:
            return self._fixed(fixed)
        single = len(self.requests) == 1 or bool(fixed)
        may_cut = not (single or len(self.requests) > MANY_REQUESTS)
        if may_cut and (far_faster := self._far_fewer_at_once()):
            return far_faster
        chosen = best_of(self.whole)
        if chosen is None:
            return None if single else self._more_waves()
        at_once = self._at_once(self.whole, *chosen)
        return self._fewer_at_once(at_once) if may_cut else _Choice(at_once, inf, at_once_s=chosen[0].bound_s)

    @staticmethod
    def _at_once(search: Search, found: Found, timeline: Timeline | None = None) -> Planned:
        """The job in a single wave."""
        return Planned(search.costs, (found.decisions,), (Wave(search, found, search.margins),), Cut(1), timeline)

    def _fixed(self, count: int) -> _Choice | None:
        """As many waves as asked for."""
        planned, bound = self.planner.plan(Cut(count)), self._coarse.of(count, count)
        return _Choice(planned, bound.total_s, count, count) if planned and bound else None

    def _more_waves(self) -> _Choice | None:
        """For a job that memory does not hold at once."""
        cuts = _Cuts(self._coarse, 1, len(self.requests))
        if not cuts.heap or hardest(self.whole).run() is None:
            return None
        fewest = max(cuts.bound.fewest_waves, cuts.bound.fewest_by_blocks, 2)
        many = len(self.requests) > MANY_REQUESTS
        unlike = many or len(self.workload.classes()) > FEW_KINDS
        first = self._promising(max(fewest, int(cuts.heap[0][3]))) if unlike else fewest
        best = self._first(first, cuts.tried)
        if best is None:
            return None
        if unlike and not many:
            best = self._promising_too(best, self.planner)
        best, proven_s = self._branch(cuts, best, 0 if unlike else MAX_CUTS, TOLERANCE)
        return _Choice(best, proven_s, 1)

    def _far_fewer_at_once(self) -> _Choice | None:
        """For a job that memory does hold, where waves promise far less time than it takes at once, which then need not
        be planned in every way; None elsewhere."""
        found, cuts = self.whole.run(), self._cuts_at_once()
        if found is None or not cuts.heap:
            return None
        enough_s, waves = FAR_LESS * found.objective_s, cuts.heap[0][3]
        promises = [self.planner.promise_s(Cut(count)) for count in range(int(waves), ceil(waves) + 1)]
        if cuts.least_s >= enough_s or min(promises) >= enough_s:
            return None
        best = self._fewer_at_once(self._at_once(self.whole, found))
        if len(best.planned.waves) == 1:
            return None
        return replace(best, planned=self._without_host(best.planned))

    def _without_host(self, best: Planned) -> Planned:
        """`best`, or the job at once with nothing on the host and no buffers for it where that takes less."""
        forms = tuple(form for form in self.policy.forms if form.on_gpu)
        if not forms:
            return best
        search = Search(self.costs, self.workload, forms, self.options, like=self.whole)
        chosen = best_of(search, best.timeline.total_s)
        return self._at_once(search, *chosen) if chosen and chosen[1].total_s < best.timeline.total_s else best

    def _cuts_at_once(self) -> _Cuts:
        """Into waves of as many requests as there shall be mini-batches, on average."""
        return _Cuts(self._coarse, 2, len(self.requests) // (self.options.mini_batches or 1))

    def _fewer_at_once(self, at_once: Planned) -> _Choice:
        """For a job that memory does hold: waves where they promise much, as when fewer requests leave the GPU room for
        all layers."""
        best, cuts_s = self._fewer_than(at_once)
        return _Choice(best, cuts_s, at_once_s=at_once.parts[0].found.bound_s)

    def _fewer_than(self, best: Planned, worth: float = WORTH_CUTTING) -> tuple[Planned, float]:
        """(the best plan, what no cut beats) after planning cuts that may take less than `best` by `worth` of it."""
        cuts = self._cuts_at_once()
        if len(self.workload.classes()) <= FEW_KINDS:
            return self._branch(cuts, best, MAX_CUTS, worth)
        least_s = cuts.least_s
        if least_s < best.estimated_s * (1 - worth):
            best = self._faster(Cut(self._promising(max(int(cuts.heap[0][3]), 2))), best)
            best = self._promising_too(best, self.planner)
        return best, least_s

    # ---- fewer forms -----------------------------------------------------------------------------

    def _narrower(self) -> Iterator[WaveSearch]:
        """The same job with fewer of the policy's choices."""
        options, layers = self.options, self.costs.model.layers
        if options.act_share is not None:
            return
        for name in ("kv-only", "act-only", "resident"):
            forms = POLICIES[name].forms
            if set(forms) < set(self.policy.forms):
                if POLICIES[name].resident:
                    held = self.costs.model.weight_bytes <= self.costs.hardware.gpu.budget_bytes
                    if not held or (options.max_resident_layers or layers) < layers:
                        continue
                    options = replace(options, min_resident_layers=layers)
                yield WaveSearch(self.costs, self.workload, replace(self.policy, forms=forms), options)

    def _better(self, best: Planned, choice: _Choice, wider: WavePlanner) -> Planned:
        """`best`, or a plan in several waves that takes less. What fewer forms do for a job at once is known already:
        `best_of` tries them, too. Where waves differ, only numbers of them that promise less to the `wider` choice."""
        small = len(self.requests) <= SMALL_JOB
        if best.could_be_of(self.whole) and not small:
            return best
        enough_s = best.timeline.total_s * (1 - DOMINANCE_GAP)
        asked = wider.promising(best.estimated_s)
        alike = len(self.workload.classes()) <= FEW_KINDS
        worth = small or asked or alike or choice.most or self.options.min_resident_layers
        if choice.cuts_s >= enough_s or not worth:
            return best
        bound = self._coarse.of(choice.fewest, choice.most or len(self.requests))
        if bound is None or bound.total_s >= enough_s:
            return best
        other: Planned | None = best
        if choice.most:
            other = self.planner.plan(Cut(choice.most))
        elif small:
            own = self._choice()
            other = own.planned if own else None
        elif asked and not alike:
            other = self._promising_too(best, wider)
        elif choice.at_once_s < inf:
            other = self._fewer_than(best, DOMINANCE_GAP)[0]
        else:
            own = self._more_waves()
            other = own.planned if own else None
        return other if other and other.timeline.total_s < best.timeline.total_s else best

    # ---- bounds ----------------------------------------------------------------------------------

    @cached_property
    def _coarse(self) -> WaveBound:
        """What says which cuts to try."""
        return WaveBound(self.whole, self._unlike)

    def _proven(self, choice: _Choice) -> float:
        """The better of two bounds on every cut: the coarse one, and the fine one."""
        if not self._unlike:
            return choice.cuts_s
        bound, most = WaveBound(self.whole), choice.most or len(self.requests)
        # Of very many requests, whole numbers of waves prove hardly more, in three times the time.
        many = len(self.requests) > MANY_REQUESTS
        fine = bound.of(choice.fewest, most) if many else bound.of_whole(choice.fewest, most)
        return max(choice.cuts_s, fine.total_s) if fine else choice.cuts_s

    # ---- numbers of waves ------------------------------------------------------------------------

    def _branch(self, cuts: _Cuts, best: Planned, most: int, worth: float) -> tuple[Planned, float]:
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
                best = self._faster(Cut(low), best)
        return best, min(proven)

    def _faster(self, how: Cut, best: Planned) -> Planned:
        """The plan of that cut where that takes less than the best so far. Most do not, as their relaxations or a
        first look tell."""
        promise_s = self.planner.promise_s(how)
        if promise_s >= best.estimated_s:
            return best
        first = self.planner.plan(how, thorough=False)
        self._excess[how.waves] = first.estimated_s / promise_s - 1 if first else inf
        if first is None or first.estimated_s >= best.estimated_s * (1 + ANOTHER_LOOK):
            return best
        near = first.estimated_s <= promise_s * (1 + ANOTHER_LOOK)
        other = first if near or first.kinds > FEW_KINDS else self.planner.plan(how)
        return other if other and other.estimated_s < best.estimated_s else best

    def _promising(self, first: int) -> int:
        """Where cuts are many and unlike, few numbers of waves are planned: those near that which promises most, from
        `first` on, where the relaxation of all cuts is best. A wave too few costs much more than one too many.

        Looks on in growing strides until more waves promise clearly less, since promises are not smooth.
        """
        best = count = first

        def promise_s(count: int) -> float:
            return self.planner.promise_s(Cut(count))

        rising = RISING if len(self.requests) < SMALL_WAVE * first else SMOOTHLY_RISING
        while count <= len(self.requests) and promise_s(count) <= promise_s(best) * (1 + rising):
            best = min(best, count, key=promise_s)
            count += max(count // 4, 1)
        stride = max(best // 4, 1)
        while stride > 1:
            stride //= 2
            nearby = {max(best - stride, first), best, min(best + stride, len(self.requests))}
            best = min(nearby, key=lambda count: (promise_s(count), count))
        return best

    def _promising_too(self, best: Planned, by: WavePlanner) -> Planned:
        """The best plan after those of other cuts that are expected to take less, the most promising first, as far as
        `by` was asked for them."""
        own = by is self.planner
        if own:
            self._ask_dealt(best.cut.waves)
        others = [how for how in by.promising(best.estimated_s) if how.waves > 1 and not (own and how == best.cut)]
        left = set(others if own else others[:MOST_ASKED])
        for _ in range(MAX_OTHERS if own else MAX_NARROWER):
            how = min(left, key=lambda how: (self._expected_s(how), how), default=best.cut)
            if self._expected_s(how) >= best.estimated_s:
                break
            left.discard(how)
            best = self._faster(how, best)
        return best

    def _expected_s(self, how: Cut) -> float:
        """What it promises, and what the plan of nearest as many waves took beyond its own promise, relative: twice
        that where waves are fewer, half of it for as many, a quarter for more. What memory holds easily takes little
        more."""
        promise_s = self.planner.promise_s(how)
        if not self._excess:
            return promise_s
        nearest = min(self._excess, key=lambda waves: (abs(waves - how.waves), -waves))
        part = 2.0 if how.waves < nearest else 0.5 if how.waves == nearest else 0.25
        return promise_s * (1 + part * self._excess[nearest])

    def _ask_dealt(self, waves: int) -> None:
        """Ask what is promised where those requests that end first are dealt to all waves, which may then be fewer."""
        if len({request.gen_len for request in self.requests}) > 1:
            for fewer, shares in enumerate(DEALT):
                for dealt in shares if waves - fewer > 1 else ():
                    self.planner.promise_s(Cut(waves - fewer, dealt))

    def _first(self, first: int, tried: set[int]) -> Planned | None:
        """The first number of waves that has a plan, in growing strides from `first`."""
        count, stride = first, 1
        while True:
            tried.add(count)
            found = self.planner.plan(Cut(count))
            if found or count == len(self.requests):
                return found
            count, stride = min(count + stride, len(self.requests)), 2 * stride
