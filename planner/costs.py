"""What each operation of the schedule costs. One small method per operation; `OpCost` adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from planner.forms import BLOCK_TOKENS
from planner.gpu import EngineSlowdown
from planner.hardware import HardwareProfile
from planner.model import ModelSpec


@dataclass(frozen=True, slots=True)
class OpCost:
    """Additive: seconds on the operation's stream, and the work done in them."""

    seconds: float = 0.0
    flops: float = 0.0
    memory_bytes: float = 0.0
    """Read plus written in device memory."""

    def __add__(self, other: OpCost) -> OpCost:
        return OpCost(self.seconds + other.seconds, self.flops + other.flops, self.memory_bytes + other.memory_bytes)

    def __mul__(self, slowdown: float) -> OpCost:
        """The same work, `slowdown` times as long."""
        return OpCost(self.seconds * slowdown, self.flops, self.memory_bytes)


Attended = tuple[tuple[int, tuple[float, ...]], ...]
"""What one operation attends to, by group of requests: (requests, cached tokens of each in every segment)."""


class CostModel:
    """Times of the operations of `model` on `hardware`. Pure functions of their arguments, cached."""

    def __init__(self, hardware: HardwareProfile, model: ModelSpec) -> None:
        self.hardware, self.model = hardware, model
        self.ragged = hardware.gpu.ragged_attention
        hardware.gpu.gemm_rates(model.dtype)  # refuse early, with a message, a dtype without a rate
        self.rebuild = lru_cache(maxsize=None)(self._rebuild)
        self.decode_segments = lru_cache(maxsize=None)(self._decode_forward)
        self.prefill_forward = lru_cache(maxsize=None)(self._prefill_forward)
        self.sample = lru_cache(maxsize=None)(self._sample)
        self.projections = lru_cache(maxsize=None)(self._projections)
        self.decode_attention = lru_cache(maxsize=None)(self._decode_attention)

    # ---- link ------------------------------------------------------------------------------------

    def h2d(self, nbytes: float) -> float:
        """Seconds on the link for one transfer to the GPU."""
        return self.hardware.link.h2d_time(nbytes)

    def d2h(self, nbytes: float) -> float:
        """Seconds on the link for one transfer to the host."""
        return self.hardware.link.d2h_time(nbytes)

    # ---- compute, per layer ----------------------------------------------------------------------

    def _rebuild(self, blocks: int) -> OpCost:
        """[K V] = A [W_K W_V] for `blocks` blocks: 4 d d_kv FLOP a token (facts, section 2)."""
        if not blocks:
            return OpCost()
        tokens = blocks * BLOCK_TOKENS
        kernels = self._gemm(tokens, self.model.hidden, 2 * self.model.d_kv) + self._placing(tokens, self.model.d_kv)
        return kernels * self._slowdown.rebuild.value + self._overhead()

    def _decode_forward(self, rows: int, groups: Attended) -> OpCost:
        """One layer for `rows` new tokens that attend to what is cached, one attention call per segment of a group."""
        achieved = self.hardware.gpu.achieved
        # The new tokens' own K and V are written once more, to where their block is kept.
        kernels = self.projections(rows) + self.elementwise(4 * rows * self.model.d_kv)
        calls, parts = 0, 0
        for requests, segments in groups:
            for context in segments:
                kernels += self.decode_attention(requests, context)
            calls, parts = calls + len(segments), parts + requests * len(segments)
        # The new token is a part of its own, and every request has at least one cached token.
        kernels += self.merge(rows + max(rows, parts))
        further = max(calls - 1, 0) * achieved.attention_call_s.value
        if not self.ragged:
            further += max(len(groups) - 1, 0) * achieved.attention_group_s.value
        return kernels * self._slowdown.forward.value + self._forward_overhead() + OpCost(further)

    def decode_forward(self, rows: int, cached_tokens: float) -> OpCost:
        """The same for requests of equal context whose cache is one segment."""
        return self.decode_segments(rows, ((rows, (cached_tokens / rows,)),) if cached_tokens else ())

    def _decode_attention(self, requests: int, context: float) -> OpCost:
        """Reading K and V of `context` cached tokens of each request once."""
        tokens = requests * context
        if not tokens:
            return OpCost()
        kv_bytes = tokens * self.model.kv_bytes_per_token_layer
        seconds = self.hardware.gpu.decode_attention_time(kv_bytes, requests, context, self.model.gqa_group)
        flops = 4.0 * tokens * self.model.heads * self.model.head_dim
        return OpCost(seconds, flops, kv_bytes)

    def merge(self, parts: int) -> OpCost:
        """Merging `parts` parts of the attention output of one token in one layer."""
        nbytes = parts * self.model.heads * self.model.head_dim * self.model.element_bytes
        return OpCost(self.hardware.gpu.merge_time(nbytes), 0.0, nbytes)

    def _prefill_forward(self, prompts: tuple[int, ...]) -> OpCost:
        """One layer over whole prompts of the given lengths, causal attention and keeping K and V included."""
        tokens = sum(prompts)
        kernels = self.projections(tokens) + self.elementwise(4 * tokens * self.model.d_kv)
        for prompt, alike in Counter(prompts).items():
            kernels += self.prefill_attention(prompt, alike)
        return kernels * self._slowdown.prefill.value + self._forward_overhead()

    def prefill_attention(self, tokens: int, prompts: int = 1) -> OpCost:
        """Causal attention of `prompts` prompts of `tokens` in one layer, one call; half the square counts."""
        flops = 2.0 * prompts * tokens * tokens * self.model.heads * self.model.head_dim
        return OpCost(self.hardware.gpu.prefill_attention_time(flops, tokens, prompts), flops)

    def _projections(self, rows: int) -> OpCost:
        """Q, K, V and output projections, feed-forward, norms and residuals of one layer."""
        m = self.model
        width = m.heads * m.head_dim
        cost = self._gemm(rows, m.hidden, width + 2 * m.d_kv) + self._gemm(rows, width, m.hidden)
        ups = 2 if m.gated else 1
        for _ in range(ups):
            cost += self._gemm(rows, m.hidden, m.ffn)
        cost += self._gemm(rows, m.ffn, m.hidden)
        cost += self._placing(rows, width + m.d_kv)
        # Two norms and two residual additions read and write the hidden state, the activation the FFN's.
        return cost + self.elementwise(rows * (10 * m.hidden + (1 + 2 * ups) * m.ffn))

    def _placing(self, rows: int, width: int) -> OpCost:
        """Turning queries and keys, `width` elements a token, to their positions, and norming their heads: in place."""
        passes = bool(self.model.rope) + self.model.qk_norm
        return self.elementwise(2 * passes * rows * width) if passes else OpCost()

    # ---- compute, per step -----------------------------------------------------------------------

    def embed(self, rows: int) -> OpCost:
        """Gathering token and position embeddings."""
        nbytes = 4.0 * rows * self.model.hidden * self.model.element_bytes
        gather = OpCost(self.hardware.gpu.gather_time(nbytes), 0.0, nbytes)
        return gather * self._slowdown.embed.value + self._overhead()

    def _sample(self, rows: int) -> OpCost:
        """Final norm, head and the choice of a token, for `rows` requests."""
        m = self.model
        kernels = self._gemm(rows, m.hidden, m.vocab) + self.elementwise(rows * (m.hidden + m.vocab))
        return kernels * self._slowdown.sample.value + self._overhead()

    # ---- parts -----------------------------------------------------------------------------------

    def _gemm(self, rows: int, inner: int, columns: int) -> OpCost:
        element = self.model.element_bytes
        seconds = self.hardware.gpu.gemm_time(rows, inner, columns, self.model.dtype, element)
        traffic = element * (inner * columns + rows * (inner + columns))
        return OpCost(seconds, 2.0 * rows * inner * columns, traffic)

    def elementwise(self, elements: float) -> OpCost:
        """Kernels that read and write `elements` in all."""
        nbytes = elements * self.model.element_bytes
        return OpCost(self.hardware.gpu.elementwise_time(nbytes), 0.0, nbytes)

    @property
    def _slowdown(self) -> EngineSlowdown:
        return self.hardware.gpu.achieved.engine_slowdown

    def _overhead(self) -> OpCost:
        return OpCost(self.hardware.gpu.achieved.op_overhead_s.value)

    def _forward_overhead(self) -> OpCost:
        return OpCost(self.hardware.gpu.achieved.forward_overhead_s.value)


def extrapolations(costs: CostModel, gemm_rows: Sequence[int], contexts: Sequence[float]) -> list[str]:
    """Notes for a plan: which tables of the profile were read beyond their ends."""
    notes = []
    gpu = costs.hardware.gpu
    gemm, attention = gpu.gemm_rates(costs.model.dtype), gpu.achieved.decode_attention_bytes_per_s_by_context
    for name, table, sizes in (("GEMM rate", gemm, gemm_rows), ("decode attention rate", attention, contexts)):
        beyond = sorted({size for size in sizes if not table.covers(size)})
        if beyond:
            low, high = table.sizes[0], table.sizes[-1]
            span = f"{beyond[0]:g}" if len(beyond) == 1 else f"{beyond[0]:g} to {beyond[-1]:g}"
            notes.append(f"{name} extrapolated at {span} (table {low:g} to {high:g}): the end value is held")
    return notes
