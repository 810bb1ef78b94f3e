"""The kernels that a profile times, one by one, as the engine runs them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from runtime.attention import attend_prompt, attend_segment, attend_self, merge
from runtime.ragged import merge_at_once
from runtime.timing import Operands, Round

HEAD_DIM = 64
GEMM_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
GEMM_INNER = (0.5, 1, 2, 4)
"""Inner dimensions to measure, in widths of the model: from less than one head's worth to that of the feed-forward."""
GEMM_COLUMNS = 2
"""Columns, in widths: those of the rebuild, between those of the other products of a layer."""
NARROW_ROWS, NARROW_COLUMNS = (256, 1024), 0.5
"""Of products with fewer columns, in widths: how much of a product's time its columns make no difference to."""
PROMPTS = (32, 64, 128, 256, 512, 1024)
TOGETHER = (1, 2, 4, 8, 16)
"""Prompts in one call of causal attention, and at most how many tokens of them."""
MOST_PROMPT_TOKENS = 2048
REQUESTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (16, 32, 64, 128, 256, 512, 1024)
MOST_TOKENS = 16384
"""Of requests times context: more only takes longer to measure."""
GROUP = 4
"""Query heads per K/V head where the cost of sharing is measured, and where: (requests, context)."""
GROUP_AT = ((16, 256), (4, 512))
COPY_BYTES = 2**28
ELEMENT_ROWS = 512
MERGE_ROWS = (1, 64)
GATHER_ROWS, EMBEDDINGS = 1024, 1024


Timed = tuple[str, float, float, float, Callable[[], object]]
"""Kernel, first size, second size, work in FLOP or bytes, and the call."""


def calibrated_shapes(hidden: int) -> set[tuple[str, int, int, int]]:
    """Shapes that `Kernels.run` times: `gemm` rows, inner, columns; `decode` and `prefill` requests, tokens, width."""
    columns = GEMM_COLUMNS * hidden
    return {
        *(("gemm", rows, int(inner * hidden), columns) for rows in GEMM_ROWS for inner in GEMM_INNER),
        *(("gemm", rows, hidden, int(NARROW_COLUMNS * hidden)) for rows in NARROW_ROWS),
        *(("decode", requests, context, hidden) for requests in REQUESTS for context in CONTEXTS),
        *(("prefill", together, prompt, hidden) for together in TOGETHER for prompt in PROMPTS),
    }


def widest(dtype: torch.dtype) -> int:
    """The widest model whose kernels can be timed: K and V of `MOST_TOKENS` are read from the operands."""
    return Operands.BYTES // (2 * MOST_TOKENS * dtype.itemsize)


class Kernels:
    """Every kernel of the cost model at one model width; `run` times each of them once."""

    def __init__(self, hidden: int, operands: Operands) -> None:
        self.hidden, self.heads, self.operands = hidden, hidden // HEAD_DIM, operands
        self._source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=operands.device).zero_()
        self._target = torch.empty_like(self._source).zero_()
        self._order = random.Random(0)
        self._lse = torch.zeros(max(MERGE_ROWS), self.heads, device=operands.device)
        self._ids = torch.randint(0, EMBEDDINGS, (GATHER_ROWS,), device=operands.device)

    def run(self, one: Round) -> None:
        """One timing of each kernel into `one`, in an order of its own: what runs before a kernel is not part of it."""
        calls = [*self._products(), *self._attention(), *self._others()]
        self._order.shuffle(calls)
        for name, size, second, work, call in calls:
            one.time(name, size, second, work, call)

    def _products(self) -> Iterator[Timed]:
        columns = GEMM_COLUMNS * self.hidden
        for inner in self.inner_sizes():
            for rows in GEMM_ROWS:
                flops = 2.0 * rows * inner * columns
                yield "gemm", rows, inner, flops, partial(self.product, rows, inner, columns)
        narrow = int(NARROW_COLUMNS * self.hidden)
        for rows in NARROW_ROWS:
            flops = 2.0 * rows * self.hidden * narrow
            yield "narrow", rows, self.hidden, flops, partial(self.product, rows, self.hidden, narrow)

    def _attention(self) -> Iterator[Timed]:
        d, element = self.hidden, self.operands.dtype.itemsize
        for requests in REQUESTS:
            for context in CONTEXTS:
                if requests * context <= MOST_TOKENS:
                    call = partial(self.attend, requests, context, self.heads, 1)
                    yield "decode", context, requests, 2.0 * requests * context * d * element, call
        shared = max(self.heads // GROUP, 1)
        for requests, context in GROUP_AT:
            nbytes = 2.0 * requests * context * shared * HEAD_DIM * element
            yield "grouped", context, requests, nbytes, partial(self.attend, requests, context, shared, GROUP)
        for together in TOGETHER:
            for prompt in PROMPTS:
                if together == 1 or together * prompt <= MOST_PROMPT_TOKENS:
                    flops = 2.0 * together * prompt * prompt * d
                    yield "prefill", prompt, together, flops, partial(self.attend_prompts, together, prompt)
        for segments in (1, 2):
            yield "calls", segments, 1, 1.0, partial(self.attend_and_merge, segments)
        for rows in MERGE_ROWS:
            yield "merge", rows, 1, 2.0 * rows * d * element, partial(self.merge, rows)

    def _others(self) -> Iterator[Timed]:
        d, element = self.hidden, self.operands.dtype.itemsize
        # Read plus written: the cost model counts both.
        yield "memory", COPY_BYTES, 1, 2.0 * COPY_BYTES, partial(self._target.copy_, self._source)
        yield "elementwise", ELEMENT_ROWS, 1, 22.0 * ELEMENT_ROWS * d * element, self.elementwise
        yield "gather", GATHER_ROWS, 1, 4.0 * GATHER_ROWS * d * element, self.gather

    def inner_sizes(self) -> list[int]:
        """Inner dimensions of the products measured."""
        return [int(inner * self.hidden) for inner in GEMM_INNER]

    def product(self, rows: int, inner: int, columns: int) -> None:
        """One dense product with bias."""
        take = self.operands.take
        torch.addmm(take(columns), take(rows, inner), take(columns, inner).t(), out=self.operands.result(rows, columns))

    def attend(self, requests: int, context: int, kv_heads: int, group: int) -> None:
        """One attention call of a decode step."""
        keys, values = (
            part.transpose(1, 2) for part in self.operands.take(requests, context, 2, kv_heads, HEAD_DIM).unbind(2)
        )
        attend_segment(self.operands.take(requests, kv_heads, group, HEAD_DIM), keys, values)

    def attend_prompts(self, together: int, tokens: int) -> None:
        """Causal attention of prompts of equal length."""
        shape = (together, tokens, self.heads, HEAD_DIM)
        attend_prompt(self.operands.take(*shape), self.operands.take(*shape), self.operands.take(*shape))

    def elementwise(self) -> None:
        """Two norms, two residuals and an activation, as in a layer: 22 widths read or written per row."""
        d, take = self.hidden, self.operands.take
        hidden, up = take(ELEMENT_ROWS, d), take(ELEMENT_ROWS, 4 * d)
        out, wide = self.operands.result(ELEMENT_ROWS, d), self.operands.result(ELEMENT_ROWS, 4 * d)
        for _ in range(2):
            F.layer_norm(hidden, (d,), take(d), take(d))
            torch.add(hidden, take(ELEMENT_ROWS, d), out=out)
        torch.clamp_min(up, 0.0, out=wide)

    def gather(self) -> None:
        """Token and position embeddings of many rows, added."""
        table, out = self.operands.take(EMBEDDINGS, self.hidden), self.operands.result(GATHER_ROWS, self.hidden)
        torch.index_select(table, 0, self._ids, out=out)
        out += table[self._ids]

    def attend_and_merge(self, segments: int) -> None:
        """A new token's attention to itself and to `segments` tiny segments, merged."""
        query = self.operands.take(1, self.heads, 1, HEAD_DIM)
        parts = [attend_self(query, query, query)]
        for _ in range(segments):
            keys = self.operands.take(1, self.heads, 1, HEAD_DIM)
            parts.append(attend_segment(query, keys, keys))
        if query.is_cuda:  # as the engine does where one call takes requests of all lengths
            merge_at_once([out for out, _ in parts], [lse for _, lse in parts])
        else:
            merge(parts, self.operands.result(1, self.hidden).view(query.shape))

    def merge(self, rows: int) -> None:
        """New tokens' attention to themselves, and one more part, merged into place."""
        shape = (rows, self.heads, 1, HEAD_DIM)
        query, other = self.operands.take(*shape), self.operands.take(*shape)
        parts = [attend_self(query, query, query), (other, self._lse[:rows, :, None])]
        merge(parts, self.operands.result(rows, self.hidden).view(shape))
