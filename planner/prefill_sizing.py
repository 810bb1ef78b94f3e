"""How large chunks and passes of prefill may be: buffers against rates and sweeps over the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil

from planner.costs import CostModel
from planner.decisions import Decisions, PrefillPass, chunk_prompts, packed
from planner.memory import (
    ALIGNMENT,
    TOKEN_BYTES,
    gpu_lines,
    planned_bytes,
    rotary_bytes,
    streamed_bytes,
    workspace_elements,
)
from planner.placement import MiniBatch
from planner.split_problem import PrefillSize
from planner.workload import Workload

CHUNK_TOKENS = (128, 256, 512, 1024, 2048)
"""GEMM rates have levelled off at the last in every profile: larger chunks only need more workspace."""
SMALL_CHUNK = 512
"""Beside the longest prompt alone and the largest of `CHUNK_TOKENS`, the split problem chooses chunks of so many tokens
or, where that is more, of the two longest prompts."""
SAMPLED = 64
"""Prompts that say how full chunks are, where they differ: of more a sample."""
SHARES_OF_HIDING = (0.25, 1.0)
"""Passes to choose from, in parts of one whose compute is as long as a layer's transfer."""
HARDLY = 1e-3
"""Relative: more compute than this is worth larger buffers."""
RUNG = 1.5
"""Between the buffer sizes that the relaxation tells apart."""


@dataclass(frozen=True)
class Sized:
    """A size to choose, in tokens."""

    chunk: int
    passed: int
    size: PrefillSize


class PrefillSizing:
    """Of one job."""

    def __init__(self, costs: CostModel, workload: Workload, store_elements: int) -> None:
        """`store_elements`: of the store slots, per token of a chunk."""
        self.costs, self.requests, self._store = costs, workload.requests, store_elements
        self.longest = max(r.prompt_len for r in workload.requests)
        self.tokens = workload.total_prompt_tokens
        self.id_bytes = TOKEN_BYTES * (self.tokens + workload.total_generated_tokens)
        self.id_bytes += rotary_bytes(costs.model, max(r.positions for r in workload.requests))
        # However many tokens each shall generate: a chunk takes equal prompts into one attention call.
        self._prompts = Counter(r.prompt_len for r in workload.requests)
        self._compute = lru_cache(maxsize=None)(self._compute_s)
        self._packed = lru_cache(maxsize=None)(self._packed_in)

    # ---- sizes to choose from --------------------------------------------------------------------

    def choices(self) -> list[Sized]:
        """Sizes of which none is better than another in every way, the smallest first."""
        found = sorted(set(self._offered()))
        sized = [Sized(chunk, passed, self._size(chunk, passed)) for chunk, passed in found]
        sized.sort(key=lambda one: one.size.nbytes)
        worth = [one for one in sized if not any(_better(other.size, one.size) for other in sized)]
        return [one for one in worth if not any(_hardly_worse(other.size, one.size) for other in worth)]

    def _offered(self) -> Iterator[tuple[int, int]]:
        largest = max(self.longest, CHUNK_TOKENS[-1])
        for most in (self.longest, min(max(2 * self.longest, SMALL_CHUNK), largest), largest):
            # No larger than what prompts fill, since none is cut.
            chunk = min(max(self.longest, *(tokens for tokens, _ in self._packed(most))), self.tokens)
            per_token = self.costs.projections(chunk).seconds / chunk
            hiding = self.costs.h2d(self.costs.model.layer_bytes) / per_token
            for tokens in (chunk, *(share * hiding for share in SHARES_OF_HIDING), self.tokens):
                yield chunk, min(self.tokens, chunk * max(1, ceil(tokens / chunk)))

    def _size(self, chunk: int, passed: int) -> PrefillSize:
        nbytes = self._bytes(chunk, passed, len(self.requests), self._store)
        return PrefillSize(nbytes, self._compute(chunk), -(-self.tokens // passed))

    @cached_property
    def rungs(self) -> list[PrefillSize]:
        """For the bound: each stands for buffers from its bytes up to the next one's, at the best that these allow."""
        least = self._bytes(self.longest, self.longest, 1, 0)
        most = self._bytes(min(max(self.longest, CHUNK_TOKENS[-1]), self.tokens), self.tokens, 1, 0)
        found: list[PrefillSize] = []
        nbytes = least
        while not found or nbytes < most:
            upper = nbytes * RUNG if nbytes * RUNG < most else float("inf")
            found.append(self._rung(nbytes, upper))
            nbytes *= RUNG
        return [one for one in found if not any(_better(other, one) for other in found)]

    def _rung(self, nbytes: float, upper: float) -> PrefillSize:
        model = self.costs.model
        of_passes = upper - self._bytes(self.longest, 0, 1, 0)
        passed = min(float(self.tokens), max(of_passes / (model.element_bytes * model.hidden), self.longest))
        each = self._bytes(1, 1, 1, 0) - self._bytes(0, 0, 1, 0)
        chunk = min(float(self.tokens), max((upper - self.id_bytes) / each, self.longest))
        return PrefillSize(nbytes, self._floor_s(int(min(chunk, passed))), ceil(self.tokens / passed))

    def _bytes(self, chunk: int, passed: int, sampled: int, store: int) -> float:
        model = self.costs.model
        elements = passed * model.hidden + workspace_elements(model, chunk, min(sampled, chunk)) + store * chunk
        return float(model.element_bytes * elements + self.id_bytes)

    # ---- compute ---------------------------------------------------------------------------------

    def _compute_s(self, chunk: int) -> float:
        """At the rates of chunks as full as prompts make those of `chunk` tokens, with the overhead of every chunk."""
        costs, packed = self.costs, self._packed(chunk)
        scale = self.tokens / sum(tokens for tokens, _ in packed)
        products_s = attention_s = sample_s = 0.0
        for tokens, prompts in packed:
            products_s += costs.projections(tokens).seconds
            attention_s += sum(costs.prefill_attention(prompt, alike).seconds for prompt, alike in prompts.items())
            sample_s += costs.sample(prompts.total()).seconds
        return self._seconds(scale * (products_s + attention_s), ceil(scale * len(packed)), scale * sample_s)

    def _packed_in(self, chunk: int) -> list[tuple[int, Counter[int]]]:
        """(tokens, prompts by length) of chunks of at most `chunk` tokens, or of one longer prompt; of some of the
        prompts where they are many and differ."""
        lengths = sorted(self._prompts.elements())
        if len(self._prompts) > 1 and len(lengths) > SAMPLED:
            lengths = [lengths[i * (len(lengths) - 1) // (SAMPLED - 1)] for i in range(SAMPLED)]
        held = [Counter(lengths[i] for i in part) for part in packed(range(len(lengths)), lengths, chunk)]
        return [(sum(prompt * alike for prompt, alike in prompts.items()), prompts) for prompts in held]

    def _floor_s(self, chunk: int) -> float:
        """The least for chunks of at most `chunk` tokens, at the best rate there is."""
        costs, gpu = self.costs, self.costs.hardware.gpu
        sizes = {int(size) for size in gpu.gemm_rates(costs.model.dtype).sizes if 1 <= size < chunk}
        per_token = min(costs.projections(size).seconds / size for size in sizes | {chunk})
        # Every chunk holds a prompt, and chooses the first token of those that it holds.
        count, requests = -(-self.tokens // chunk), len(self.requests)
        sample_s = max(costs.sample(requests).seconds, min(count, requests) * costs.sample(1).seconds)
        return self._seconds(self.tokens * per_token + self._least_attention_s, count, sample_s)

    @cached_property
    def _least_attention_s(self) -> float:
        """Of one layer, at the best rates of any chunks."""
        rates = self.costs.hardware.gpu.achieved.prefill_attention_flops_by_tokens
        return sum(
            self.costs.prefill_attention(prompt, alike).flops / rates.best_within(alike, prompt)
            for prompt, alike in self._prompts.items()
        )

    def _seconds(self, products_s: float, chunks: int, sample_s: float) -> float:
        """All layers: projections and attention as given, what every chunk costs beside, and the choice of tokens."""
        costs, achieved = self.costs, self.costs.hardware.gpu.achieved
        kept = costs.elementwise(4 * self.tokens * costs.model.d_kv).seconds
        layer = (products_s + kept) * achieved.engine_slowdown.prefill.value
        layer += chunks * achieved.forward_overhead_s.value
        return costs.model.layers * layer + sample_s

    # ---- passes ----------------------------------------------------------------------------------

    def widest(self, decisions: Decisions, chunk: int, passed: int) -> Decisions:
        """Let prefill use every byte that decode's buffers and the rest of the budget leave it.

        Larger chunks run at better rates, and longer passes load the streamed weights less often: what is faster of
        `chunk` and wider ones, each in passes as long as fit.
        """
        weights_s = self.costs.h2d(sum(streamed_bytes(self.costs.model, decisions)))
        offered = [(chunk, passed), *((size, size) for size in CHUNK_TOKENS if size > chunk)]
        found = [(size, self._longest_passes(decisions, size, least)) for size, least in offered]
        fitting = [
            (max(self._compute(size), len(one.prefill_passes) * weights_s), -size, one) for size, one in found if one
        ]
        return min(fitting, key=lambda one: one[:2])[2] if fitting else decisions

    def _longest_passes(self, decisions: Decisions, chunk: int, passed: int) -> Decisions | None:
        """In the longest passes that fit, of `passed` tokens at least; None where not even those do."""
        model, budget = self.costs.model, self.costs.hardware.gpu.budget_bytes
        decisions = replace(decisions, prefill_passes=self.passes(decisions.mini_batches, chunk, passed))
        lines = gpu_lines(model, decisions)
        if planned_bytes(lines) > budget:
            return None
        # Not `planned_bytes`: prefill may grow up to the whole budget.
        taken = sum(line.nbytes for line in lines if line.phase == "always")
        others = sum(line.nbytes for line in lines if line.phase == "prefill" and not line.name.startswith("hidden"))
        room = budget - taken - others - (len(lines) + 1) * ALIGNMENT
        tokens = min(self.tokens, room // (model.hidden * model.element_bytes))
        return replace(decisions, prefill_passes=self.passes(decisions.mini_batches, chunk, max(tokens, passed)))

    def passes(self, batches: tuple[MiniBatch, ...], chunk: int, passed: int) -> tuple[PrefillPass, ...]:
        """The prompts of `batches` in chunks and passes of at most so many tokens."""
        return chunk_prompts(batches, {i: r.prompt_len for i, r in enumerate(self.requests)}, chunk, passed)


def _better(one: PrefillSize, other: PrefillSize) -> bool:
    """True when `one` is no worse in anything, and not the same."""
    mine, its = (one.nbytes, one.compute_s, one.sweeps), (other.nbytes, other.compute_s, other.sweeps)
    return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


def _hardly_worse(one: PrefillSize, other: PrefillSize) -> bool:
    """True when `one` takes less memory and hardly more time."""
    return one.nbytes < other.nbytes and one.compute_s <= other.compute_s * (1 + HARDLY) and one.sweeps <= other.sweeps
