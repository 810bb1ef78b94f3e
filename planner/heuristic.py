"""The paper's own way to a plan (HybridServe, arXiv 2501.01792), wave by wave: see `planner.greedy`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from planner.costs import CostModel
from planner.cutting import Cut, cut
from planner.decisions import Decisions, act_share
from planner.errors import InfeasibleError
from planner.estimate import estimated_waves_s
from planner.explain import binding_in_words, busy_fractions
from planner.feasibility import scarcer
from planner.forms import ACT_GPU
from planner.greedy import Greedy
from planner.plan import WhatIf
from planner.policies import POLICIES
from planner.search import Options, Search
from planner.tables import size
from planner.timeline import Timeline
from planner.wave_bound import WaveBound
from planner.wave_timeline import simulate_waves
from planner.waves import FoundWaves
from planner.what_if import RATES, Step, steps, with_more
from planner.workload import Request, Workload


class Heuristic:
    """One job, planned as the paper does."""

    def __init__(self, costs: CostModel, workload: Workload, options: Options) -> None:
        self.costs, self.workload, self.options = costs, workload, options
        self.requests = workload.requests

    def run(self) -> FoundWaves | None:
        """The plan, with the bound of the best one in as many waves; None where no number of waves fits."""
        found = self.waves()
        if found is None:
            return None
        timeline = simulate_waves(self.costs, found)
        return FoundWaves(found, timeline, self._bound_s(len(found), timeline.total_s), timeline.total_s, ())

    def reasons(self, waves: Sequence[Decisions], timeline: Timeline) -> list[str]:
        """One sentence each: the ratio, what streams, mini-batches, what binds."""
        share = act_share(waves)
        counts = sorted({len(wave.mini_batches) for wave in waves})
        on_gpu = sum(batch.blocks(ACT_GPU) for batch in waves[0].mini_batches)
        asked = self.options.act_share is not None
        found = [
            f"{share:.0%} ACT in every request: "
            + ("the share was asked for" if asked else "the ratio at which all of host memory would be in balance"),
            f"All layers stream; what memory the GPU has left holds {on_gpu} blocks of activations",
            f"{' or '.join(map(str, counts))} mini-batches: powers of two were tried until one was slower",
            binding_in_words(*busy_fractions(timeline)),
        ]
        if len(waves) > 1:
            found.insert(0, f"{len(waves)} waves: memory does not hold more requests at once with this ratio")
        return found

    def what_if(self, waves: Sequence[Decisions], timeline: Timeline) -> list[WhatIf]:
        """What the heuristic makes of a step more of each resource: planned and estimated again, at least nothing.

        With as many mini-batches as now where all waves have as many: another number of them is luck, not the resource.
        """
        counts, options = {len(wave.mini_batches) for wave in waves}, self.options
        if len(counts) == 1:
            options = replace(options, mini_batches=counts.pop())
        now_s = estimated_waves_s(self.costs, waves)
        return [self._answer(step, options, now_s, timeline) for step in steps(self.costs.hardware)]

    def _answer(self, step: Step, options: Options, now_s: float, timeline: Timeline) -> WhatIf:
        costs = CostModel(with_more(self.costs.hardware, step.resource, step.share), self.costs.model)
        waves, now = Heuristic(costs, self.workload, options).waves(), timeline.throughput_tokens_per_s
        gained = max(now * (now_s / estimated_waves_s(costs, waves) - 1), 0.0) if waves else 0.0
        if step.resource in RATES:  # more than that share is luck with the number of mini-batches
            gained = min(gained, step.share * now)
        how: Literal["re-solved", "not binding"] = "re-solved" if gained > 0 else "not binding"
        return WhatIf(change=step.change, tokens_per_s=gained, at_first_tokens_per_s=gained, how=how)

    def waves(self) -> tuple[Decisions, ...] | None:
        """As few as memory allows, or as many as asked for."""
        count = min(self.options.waves or 1, len(self.requests))
        while True:
            parts = cut(self.requests, Cut(count))
            found = [self._wave(tuple(self.requests[r] for r in members)).best() for members in parts]
            planned = [one.renumbered(members) for one, members in zip(found, parts, strict=True) if one]
            if len(planned) == len(parts):
                return tuple(planned)
            if count == len(self.requests) or self.options.waves:
                return None
            count = min(2 * count, len(self.requests))

    def refusal(self) -> InfeasibleError:
        """Why `run` found nothing: what the largest request alone lacks."""
        largest = max(self.requests, key=lambda r: (r.positions, r.prompt_len))
        limit, name, missing = scarcer(*self._wave((largest,)).shortage())
        what = f"hybridserve of {self.costs.model.name} has no plan on {self.costs.hardware.id}"
        if self.options.waves:
            what += f" in {self.options.waves} waves"
        if missing > 0:
            what += f": request {largest.id!r} alone lacks {size(missing)} of {name} memory"
        cure = "Its layers all stream and its ratio is fixed: hybrid may have a plan"
        return InfeasibleError(what, limit=limit, missing_bytes=max(missing, 0), cure=cure)

    def _bound_s(self, waves: int, total_s: float) -> float:
        options = replace(self.options, act_share=None, mini_batches=None, waves=waves)
        search = Search(self.costs, self.workload, POLICIES["hybrid"].forms, options)
        if waves == 1:
            best = search.run()
            return min(best.bound_s, total_s) if best else 0.0
        bound = WaveBound(search).of(waves, waves)
        return min(bound.total_s, total_s) if bound else 0.0

    def _wave(self, requests: tuple[Request, ...]) -> Greedy:
        return Greedy(Search(self.costs, Workload(requests), POLICIES["hybrid"].forms, self.options))
