"""The paper's own way to a plan (HybridServe, arXiv 2501.01792): one ratio for all requests, mini-batches by greed.

As recalled from the paper, no solver: (A) rebuilding the activations that fit the GPU is compared with loading a
layer's weights; activations on the host fill up whichever is shorter, or K and V do. (B) The rest of host memory is cut
so that what it adds to rebuilding and to loading takes as long. The ratio of all activations to all K and V then holds
for every request; each request joins the mini-batch whose rebuilding and loading then differ least. All layers stream,
and what memory the GPU has left holds activations. The paper does not say how many mini-batches: powers of two are
tried until one is slower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Literal

from planner.costs import CostModel
from planner.decisions import Decisions, act_share
from planner.errors import InfeasibleError
from planner.estimate import estimated_s, estimated_waves_s
from planner.explain import binding_in_words, busy_fractions
from planner.forms import ACT_GPU, ACT_HOST, KV_HOST, CacheForm, blocks_for
from planner.placement import MiniBatch, RequestGroup
from planner.plan import WhatIf
from planner.policies import POLICIES
from planner.prefill_sizing import Sized
from planner.search import Options, Search
from planner.tables import size
from planner.timeline import Timeline
from planner.wave_bound import WaveBound
from planner.wave_plans import cut
from planner.wave_timeline import simulate_waves
from planner.waves import FoundWaves
from planner.what_if import RATES, Step, steps, with_more
from planner.workload import Request, Workload

EPS = 1e-9
"""A share of blocks that is whole but for its last digits counts as whole."""


@dataclass(frozen=True)
class Ratio:
    """Blocks of each kind, for the whole machine."""

    act: float
    kv: float

    @property
    def act_share(self) -> float:
        return self.act / (self.act + self.kv) if self.act + self.kv else 0.0


def ratio(costs: CostModel, act_on_gpu: int) -> Ratio:
    """How many blocks of host and GPU memory shall be activations, and how many K and V; times are those of a layer."""
    model = costs.model
    streamed = model.layers * model.layer_bytes
    room = max(costs.hardware.host.budget_bytes - streamed, 0.0)
    act_bytes, kv_bytes = ACT_HOST.block_bytes(model), KV_HOST.block_bytes(model)
    many = max(int(room / act_bytes), 1)
    rebuild_s = costs.rebuild(many).seconds / many
    act_s, kv_s = (costs.hardware.link.h2d_time(n * many / model.layers) / many for n in (act_bytes, kv_bytes))
    spare_s = costs.h2d(model.layer_bytes) - act_on_gpu * rebuild_s
    act, kv = max(spare_s, 0.0) / rebuild_s, max(-spare_s, 0.0) / kv_s
    rest = max(room - act * act_bytes - kv * kv_bytes, 0.0)
    # a rebuild = a act + k kv, in seconds, and a act + k kv = rest, in bytes.
    kv_per_act = (rebuild_s - act_s) / kv_s
    if kv_per_act <= 0:  # activations cross more slowly than they are rebuilt: nothing balances
        return Ratio(act_on_gpu + act + rest / act_bytes, kv)
    more = rest / (act_bytes + kv_per_act * kv_bytes)
    return Ratio(act_on_gpu + act + more, kv + kv_per_act * more)


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
        """What the heuristic makes of a step more of each resource: planned and estimated again, at least nothing."""
        now_s = estimated_waves_s(self.costs, waves)
        return [self._answer(step, now_s, timeline) for step in steps(self.costs.hardware)]

    def _answer(self, step: Step, now_s: float, timeline: Timeline) -> WhatIf:
        costs = CostModel(with_more(self.costs.hardware, step.resource, step.share), self.costs.model)
        waves, now = Heuristic(costs, self.workload, self.options).waves(), timeline.throughput_tokens_per_s
        gained = max(now * (now_s / estimated_waves_s(costs, waves) - 1), 0.0) if waves else 0.0
        if step.resource in RATES:  # more than that share is luck with the number of mini-batches
            gained = min(gained, step.share * now)
        how: Literal["re-solved", "not binding"] = "re-solved" if gained > 0 else "not binding"
        return WhatIf(change=step.change, tokens_per_s=gained, at_first_tokens_per_s=gained, how=how)

    def waves(self) -> tuple[Decisions, ...] | None:
        """As few as memory allows, or as many as asked for."""
        count = min(self.options.waves or 1, len(self.requests))
        while True:
            parts = cut(self.requests, count)
            found = [self._wave(members) for members in parts]
            planned = [one.renumbered(members) for one, members in zip(found, parts, strict=True) if one]
            if len(planned) == len(parts):
                return tuple(planned)
            if count == len(self.requests) or self.options.waves:
                return None
            count = min(2 * count, len(self.requests))

    def refusal(self) -> InfeasibleError:
        """Why `run` found nothing: what the largest request alone lacks."""
        largest = max(self.requests, key=lambda r: (r.positions, r.prompt_len))
        gpu, host = _Wave(self.costs, Workload((largest,)), self.options).shortage()
        limit, name, missing = ("gpu_memory", "GPU", gpu) if gpu > host else ("host_memory", "host", host)
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

    # ---- one wave --------------------------------------------------------------------------------

    def _wave(self, members: Sequence[int]) -> Decisions | None:
        job = Workload(tuple(self.requests[r] for r in members))
        wave = _Wave(self.costs, job, self.options)
        best: tuple[float, Decisions] | None = None
        for count in self._counts(len(members)):
            decisions = wave.plan(count)
            if decisions is None:
                continue
            total_s = estimated_s(self.costs, decisions)
            if best and total_s >= best[0]:
                break
            best = total_s, decisions
        return best[1] if best else None

    def _counts(self, requests: int) -> list[int]:
        if self.options.mini_batches:
            return [min(self.options.mini_batches, requests)]
        return sorted({min(2**i, requests) for i in range(requests.bit_length() + 1)})


class _Wave:
    """Requests that run together."""

    def __init__(self, costs: CostModel, job: Workload, options: Options) -> None:
        self.costs, self.requests = costs, job.requests
        self._search = Search(costs, job, POLICIES["hybrid"].forms, options)
        self._options = options

    def plan(self, count: int) -> Decisions | None:
        """With `count` mini-batches; None where that does not fit."""
        nothing_on_gpu = self._decisions(count, self._share(0), 0)
        share = self._share(self._gpu_blocks(nothing_on_gpu))
        without = self._decisions(count, share, 0)
        decisions = self._decisions(count, share, self._gpu_blocks(without)) if without else None
        return decisions or without

    def _share(self, act_on_gpu: int) -> float:
        return ratio(self.costs, act_on_gpu).act_share if self._options.act_share is None else self._options.act_share

    def _gpu_blocks(self, decisions: Decisions | None) -> int:
        """Blocks of activations for which the GPU has room left."""
        if decisions is None:
            return 0
        return max(int(-self._search.overshoot(decisions)[0] // ACT_GPU.block_bytes(self.costs.model)), 0)

    def _decisions(self, count: int, share: float, on_gpu: int) -> Decisions | None:
        """With the largest passes of prefill that leave the GPU room for it; None where none does."""
        for sized in reversed(self._search.prefill_sizes):
            found = self._decided(count, share, on_gpu, sized)
            if max(self._search.overshoot(found)) <= 0:
                return found
        return None

    def _decided(self, count: int, share: float, on_gpu: int, sized: Sized) -> Decisions:
        forms, options = self._forms(share, on_gpu), self._options
        batches = tuple(_grouped(self.requests, members, forms) for members in self._composed(count, share))
        passes = self._search.prefill.passes(batches, sized.chunk, sized.passed)
        return Decisions(batches, passes, (), options.weight_slots, options.cache_slots, options.store_slots)

    def shortage(self) -> tuple[float, float]:
        """(GPU, host) bytes that a single mini-batch with the smallest prefill lacks; below zero where it fits."""
        found = self._decided(1, self._share(0), 0, self._search.prefill_sizes[0])
        return self._search.overshoot(found)

    def _forms(self, share: float, on_gpu: int) -> list[tuple[CacheForm, ...]]:
        """Of each request, the forms of its blocks: `share` of them activations, of the prompt and of what follows."""
        rebuilt = [_act_blocks(blocks_for(r.positions), share) for r in self.requests]
        total, taken, held = max(sum(rebuilt), 1), 0, 0
        found = []
        for request, act in zip(self.requests, rebuilt, strict=True):
            held += act
            here = min(min(on_gpu, total) * held // total - taken, act)
            taken += here
            found.append(_blocks(blocks_for(request.prompt_len), blocks_for(request.positions), share, here))
        return found

    def _composed(self, count: int, share: float) -> list[list[int]]:
        """Each request into the mini-batch whose rebuilding and loading then differ least."""
        costs, model = self.costs, self.costs.model
        blocks = [blocks_for(r.positions) for r in self.requests]
        per_block = share * costs.rebuild(sum(blocks)).seconds / sum(blocks)
        for form, part in ((ACT_HOST, share), (KV_HOST, 1 - share)):
            per_block -= part * costs.h2d(form.block_bytes(model) / model.layers)
        bins: list[list[int]] = [[] for _ in range(count)]
        differ = [0.0] * count
        for r, held in enumerate(blocks):
            b = min(range(count), key=lambda b: (abs(differ[b] + held * per_block), len(bins[b]), b))
            bins[b].append(r)
            differ[b] += held * per_block
        return bins


def _act_blocks(blocks: int, share: float) -> int:
    """Of the first `blocks`, those kept as activations."""
    return floor(blocks * share + EPS)


def _blocks(prompt: int, total: int, share: float, on_gpu: int) -> tuple[CacheForm, ...]:
    """Forms in position order: the prompt's activations first, of them `on_gpu` on the GPU, then as blocks begin."""
    act = _act_blocks(prompt, share)
    forms: list[CacheForm] = [ACT_HOST] * act + [KV_HOST] * (prompt - act)
    for i in range(prompt, total):
        forms.append(ACT_HOST if _act_blocks(i + 1, share) > _act_blocks(i, share) else KV_HOST)
    places = [i for i, form in enumerate(forms) if form is ACT_HOST][:on_gpu]
    for i in places:
        forms[i] = ACT_GPU
    return tuple(forms)


def _grouped(requests: Sequence[Request], members: Sequence[int], forms: Sequence[tuple[CacheForm, ...]]) -> MiniBatch:
    alike: dict[tuple[int, int, tuple[CacheForm, ...]], list[int]] = defaultdict(list)
    for r in members:
        request = requests[r]
        alike[request.prompt_len, request.gen_len, forms[r]].append(r)
    return MiniBatch(tuple(RequestGroup(tuple(rs), prompt, gen, blocks) for (prompt, gen, blocks), rs in alike.items()))
