"""Who runs with whom and in which form each block is kept, and the shape of every decode step that follows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from planner.forms import BLOCK_TOKENS, FORMS, CacheForm, blocks_for

Ints = npt.NDArray[np.int64]
FORM_INDEX = {form.name: i for i, form in enumerate(FORMS)}


@dataclass(frozen=True)
class RequestGroup:
    """Requests of one mini-batch that are alike in lengths and in the form of every block."""

    requests: tuple[int, ...]
    prompt_len: int
    gen_len: int
    blocks: tuple[CacheForm, ...]
    """The form of each block in position order, up to the last cached token (prompt_len + gen_len - 1)."""

    @property
    def token_ids(self) -> int:
        """Tokens of the whole group, prompts and generated ones."""
        return len(self.requests) * (self.prompt_len + self.gen_len)

    @property
    def positions(self) -> int:
        """Of a request: the last generated token is never fed, so it has none."""
        return self.prompt_len + self.gen_len - 1

    @property
    def prompt_blocks(self) -> int:
        return blocks_for(self.prompt_len)

    @property
    def decode_steps(self) -> int:
        """Steps after prefill: prefill itself yields the first token."""
        return self.gen_len - 1

    def count(self, form: CacheForm) -> int:
        """Blocks of one request that end up in `form`."""
        return self.blocks.count(form)

    @cached_property
    def prefix_counts(self) -> Ints:
        """[blocks + 1, forms]: how many of the first n blocks of one request are in each form."""
        found = np.zeros((len(self.blocks) + 1, len(FORMS)), dtype=np.int64)
        found[np.arange(1, len(self.blocks) + 1), [FORM_INDEX[form.name] for form in self.blocks]] = 1
        return found.cumsum(axis=0)


@dataclass(frozen=True)
class MiniBatch:
    """Requests that cross each layer together."""

    groups: tuple[RequestGroup, ...]

    @property
    def requests(self) -> tuple[int, ...]:
        return tuple(r for group in self.groups for r in group.requests)

    @property
    def decode_steps(self) -> int:
        return max(group.decode_steps for group in self.groups)

    def blocks(self, form: CacheForm) -> int:
        """Blocks of the whole mini-batch that end up in `form`."""
        return sum(len(g.requests) * g.count(form) for g in self.groups)

    def attended(self, step: int, ragged: bool = False) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """What one layer attends to in decode step `step` + 1: of each group its requests, and cached tokens by form.

        The last block of a request may be partly filled. `ragged`: a call takes requests of all lengths, so of each
        form the requests that have tokens in it, and their mean.
        """
        if ragged:
            tokens, requests = self.shapes.form_tokens[step], self.shapes.form_requests[step]
            return tuple((int(n), (float(held / n),)) for held, n in zip(tokens, requests, strict=True) if n)
        found: list[tuple[int, tuple[float, ...]]] = []
        for group in self.groups:
            if step >= group.decode_steps:
                continue
            full, rest = divmod(group.prompt_len + step, BLOCK_TOKENS)
            tokens = BLOCK_TOKENS * group.prefix_counts[full]
            if rest:
                tokens = tokens + rest * (group.prefix_counts[full + 1] - group.prefix_counts[full])
            found.append((len(group.requests), tuple(float(n) for n in tokens if n)))
        return tuple(found)

    @cached_property
    def shapes(self) -> StepShapes:
        """What each decode step of this mini-batch moves and computes."""
        return StepShapes.of(self)


@dataclass(frozen=True)
class StepShapes:
    """Per decode step t = 1 .. decode_steps (row t - 1) of one mini-batch; finished requests count no more."""

    rows: Ints
    """[steps] requests still generating."""
    cached_tokens: Ints
    """[steps] tokens attended, without the new ones."""
    blocks: Ints
    """[steps, forms] blocks that hold them; the last of a request may be partly filled."""
    new_tokens: Ints
    """[steps, forms] tokens appended in this step, by the form of the block they fall into."""
    form_tokens: Ints
    """[steps, forms] tokens attended in each form."""
    form_requests: Ints
    """[steps, forms] requests that have any there."""

    @classmethod
    def of(cls, batch: MiniBatch) -> StepShapes:
        steps = batch.decode_steps
        rows, cached = np.zeros(steps, np.int64), np.zeros(steps, np.int64)
        blocks, new, held, having = (np.zeros((steps, len(FORMS)), np.int64) for _ in range(4))
        for group in batch.groups:
            n, mine = len(group.requests), group.decode_steps
            tokens = group.prompt_len + np.arange(mine)
            rows[:mine] += n
            cached[:mine] += n * tokens
            blocks[:mine] += n * group.prefix_counts[-(-tokens // BLOCK_TOKENS)]
            position = tokens // BLOCK_TOKENS
            newest = group.prefix_counts[position + 1] - group.prefix_counts[position]
            new[:mine] += n * newest
            mixed = BLOCK_TOKENS * group.prefix_counts[position] + (tokens % BLOCK_TOKENS)[:, None] * newest
            held[:mine] += n * mixed
            having[:mine] += n * (mixed > 0)
        return cls(rows, cached, blocks, new, held, having)

    def peak_blocks(self, *forms: CacheForm) -> int:
        """The most blocks that any step holds in `forms` together."""
        columns = [FORM_INDEX[form.name] for form in forms]
        return int(self.blocks[:, columns].sum(axis=1).max(initial=0))
