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
        found[np.arange(1, len(self.blocks) + 1), self.codes] = 1
        return found.cumsum(axis=0)

    @cached_property
    def codes(self) -> Ints:
        """[blocks] the place of each one's form in `FORMS`."""
        return np.array([FORM_INDEX[form.name] for form in self.blocks], np.int64)


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
        """From what changes where: each block is begun, has one token more after every step that writes to it until it
        is full, and goes with its request."""
        groups, steps = batch.groups, batch.decode_steps
        sizes, prompts, ends = (
            np.array(column, np.int64)
            for column in zip(*((len(g.requests), g.prompt_len, g.decode_steps) for g in groups), strict=True)
        )
        group = np.repeat(np.arange(len(groups)), [len(g.codes) for g in groups])
        form, n, end = np.concatenate([g.codes for g in groups]), sizes[group], ends[group]
        # The step, counted from 0, that writes the first token of a block: below 0 where that is one of the prompt.
        first = BLOCK_TOKENS * np.concatenate([np.arange(len(g.codes)) for g in groups]) - prompts[group]
        full = first + BLOCK_TOKENS
        start = np.zeros_like(ends)
        rows, prompt_tokens = (_sums(steps, start, start, ends, amount)[:, 0] for amount in (sizes, sizes * prompts))
        changes = _sums(steps, form, np.maximum(first, 0) + 1, np.minimum(full + 1, end), n)
        for step, tokens in ((0, np.clip(-first, 0, BLOCK_TOKENS)), (end, -np.clip(end - 1 - first, 0, BLOCK_TOKENS))):
            counts = (end > 0) & (step < steps)
            np.add.at(changes, (np.broadcast_to(step, end.shape)[counts], form[counts]), (n * tokens)[counts])
        _, oldest = np.unique(group * len(FORMS) + form, return_index=True)
        return cls(
            rows=rows,
            cached_tokens=prompt_tokens + rows * np.arange(steps),
            blocks=_sums(steps, form, first + 1, end, n),
            new_tokens=_sums(steps, form, first, np.minimum(full, end), n),
            form_tokens=changes.cumsum(axis=0),
            form_requests=_sums(steps, form[oldest], first[oldest] + 1, end[oldest], n[oldest]),
        )

    def peak_blocks(self, *forms: CacheForm) -> int:
        """The most blocks that any step holds in `forms` together."""
        columns = [FORM_INDEX[form.name] for form in forms]
        return int(self.blocks[:, columns].sum(axis=1).max(initial=0))


def _sums(steps: int, column: Ints, begins: Ints, ends: Ints, amounts: Ints) -> Ints:
    """[steps, forms] sums of amounts that each count from a step on, or from the first, until before another."""
    found = np.zeros((steps + 1, len(FORMS)), np.int64)
    begins = np.maximum(begins, 0)
    amounts = np.where(begins < ends, amounts, 0)
    np.add.at(found, (np.clip(begins, 0, steps), column), amounts)
    np.add.at(found, (np.clip(ends, 0, steps), column), -amounts)
    return found.cumsum(axis=0)[:-1]
