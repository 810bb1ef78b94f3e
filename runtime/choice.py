"""Choosing the next token of every row. What one request draws depends on nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.device import on_device
from runtime.sampling import Sampling

ROWS_AT_ONCE = 8
"""Requests whose logits are sorted together: sorting needs several times their bytes."""


def choose(logits: torch.Tensor, ways: Sequence[Sampling], index: int) -> torch.Tensor:
    """[n] token ids from `logits` [n, vocab], each row in its request's way; all are the `index`-th of this run."""
    found = logits.argmax(-1)
    drawn = [i for i, way in enumerate(ways) if way.temperature > 0]
    for at in range(0, len(drawn), ROWS_AT_ONCE):
        rows = drawn[at : at + ROWS_AT_ONCE]
        some = [ways[i] for i in rows]
        draws = [way.draw(index) for way in some]
        where = on_device(rows, torch.int64, logits.device)
        found[where] = _draw(logits[where].float(), some, draws)
    return found


def _draw(logits: torch.Tensor, ways: Sequence[Sampling], draws: Sequence[float]) -> torch.Tensor:
    """Inverse transform sampling over the kept tokens, the likeliest first."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return on_device(values, torch.float32, logits.device).unsqueeze(1)

    vocab = logits.shape[1]
    heated = logits / column([way.temperature for way in ways])
    ordered, tokens = torch.sort(heated, dim=1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device)
    kept = rank < column([min(way.top_k or vocab, vocab) for way in ways])
    chances = torch.softmax(ordered.masked_fill(~kept, -torch.inf), dim=1)
    before = chances.cumsum(1) - chances
    # The fewest of the likeliest tokens that reach top_p together; the first always stays.
    kept &= (before < column([way.top_p for way in ways])) | (rank == 0)
    sums = (chances * kept).cumsum(1)
    at = torch.searchsorted(sums, column(draws) * sums[:, -1:], right=True)
    last = kept.sum(1, keepdim=True) - 1
    return tokens.gather(1, torch.minimum(at, last)).squeeze(1)
