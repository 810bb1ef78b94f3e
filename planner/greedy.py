"""One wave as the HybridServe paper plans it (arXiv 2501.01792): one ratio for all requests, mini-batches by greed.

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
from dataclasses import dataclass
from math import floor

from planner.costs import CostModel
from planner.decisions import Decisions
from planner.estimate import estimated_s
from planner.forms import ACT_GPU, ACT_HOST, KV_HOST, CacheForm, blocks_for
from planner.placement import MiniBatch, RequestGroup
from planner.prefill_sizing import Sized
from planner.search import Search
from planner.workload import Request, by_length

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


class Greedy:
    """Requests that run together."""

    FORMS = (ACT_GPU, ACT_HOST, KV_HOST)
    """All that it chooses from."""

    def __init__(self, search: Search) -> None:
        """For the job and with the options of a search, which says what fits."""
        self.costs, self.requests, self._search, self._options = search.costs, search.requests, search, search.options
        # Whatever order they came in.
        self._order = sorted(range(len(self.requests)), key=lambda r: by_length(self.requests[r]))

    def best(self) -> Decisions | None:
        """With as many mini-batches as asked for, or as are fastest; None where nothing fits."""
        best: tuple[float, Decisions] | None = None
        for count in self._counts():
            decisions = self.plan(count)
            if decisions is None:
                continue
            total_s = estimated_s(self.costs, decisions)
            if best and total_s >= best[0]:
                break
            best = total_s, decisions
        return best[1] if best else None

    def _counts(self) -> list[int]:
        requests = len(self.requests)
        if self._options.mini_batches:
            return [min(self._options.mini_batches, requests)]
        return sorted({min(2**i, requests) for i in range(requests.bit_length() + 1)})

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
        found: list[tuple[CacheForm, ...]] = [()] * len(rebuilt)
        for r in self._order:
            request, act = self.requests[r], rebuilt[r]
            held += act
            here = min(min(on_gpu, total) * held // total - taken, act)
            taken += here
            found[r] = _blocks(blocks_for(request.prompt_len), blocks_for(request.positions), share, here)
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
        for r in self._order:
            held = blocks[r]
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
