"""Stretches of decode steps in which a job looks the same: the time axis of the ILP."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from planner.forms import BLOCK_TOKENS

MAX_EPOCHS = 12
"""Coarser epochs weaken the bound a little and never invalidate it; a dozen keeps a solve under a second."""


@dataclass(frozen=True)
class Epoch:
    """Decode steps first .. last, inclusive, counted from 1."""

    first: int
    last: int

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Demand:
    """What a set of requests needs, averaged over the steps of each epoch. Shapes: [epochs].

    Step time is convex in these, so its average is never below the time of the average (Jensen): a problem
    written in averages is a relaxation, and its optimum a lower bound.
    """

    rows: npt.NDArray[np.float64]
    cached_tokens: npt.NDArray[np.float64]
    blocks: npt.NDArray[np.float64]
    """Blocks of the requests that are still generating."""
    begun_blocks: npt.NDArray[np.float64]
    """Blocks of all requests, those of ended ones included: what has been given a form so far."""
    final_blocks: float
    """Blocks in the end, all requests alive: what memory must hold."""
    prompt_blocks: float
    """Blocks after prefill."""

    def __add__(self, other: Demand) -> Demand:
        """Both together."""
        return Demand(
            self.rows + other.rows, self.cached_tokens + other.cached_tokens, self.blocks + other.blocks,
            self.begun_blocks + other.begun_blocks, self.final_blocks + other.final_blocks,
            self.prompt_blocks + other.prompt_blocks,
        )  # fmt: skip

    def scaled(self, factor: float) -> Demand:
        """The same requests, `factor` times as many."""
        return Demand(
            self.rows * factor, self.cached_tokens * factor, self.blocks * factor, self.begun_blocks * factor,
            self.final_blocks * factor, self.prompt_blocks * factor,
        )  # fmt: skip


@dataclass(frozen=True)
class Classes:
    """Requests by their lengths: those of a class are interchangeable. Shapes: [classes], in ascending order."""

    prompt: npt.NDArray[np.int64]
    gen: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]

    @classmethod
    def of(cls, lengths: Sequence[tuple[int, int]]) -> Classes:
        """From (prompt, generation) lengths, one pair for each request."""
        pairs = np.array(lengths, dtype=np.int64).reshape(-1, 2)
        keys, count = np.unique(pairs[:, 0] << 32 | pairs[:, 1], return_counts=True)
        return cls(keys >> 32, keys & 0xFFFFFFFF, count)

    def lifetimes(self, epochs: Sequence[Epoch]) -> npt.NDArray[np.int64]:
        """[classes] when they end: 0 with prefill, e + 1 where the last decode step is in epoch e."""
        ends = np.array([epoch.last for epoch in epochs], np.int64)
        return np.where(self.gen > 1, np.searchsorted(ends, self.gen - 1) + 1, 0)

    def during(self, epoch: Epoch) -> AliveClasses:
        """What is alive of every class in `epoch`."""
        steps = np.clip(np.minimum(epoch.last, self.gen - 1) - epoch.first + 1, 0, None)
        return AliveClasses(steps, self.prompt + epoch.first - 1, self.prompt + epoch.first - 2 + steps)


@dataclass(frozen=True)
class AliveClasses:
    """Of every class in one epoch. Shapes: [classes]."""

    steps: npt.NDArray[np.int64]
    """Steps of the epoch in which its requests still generate, from the first on."""
    shortest: npt.NDArray[np.int64]
    """Cached tokens of one request in the first of them."""
    longest: npt.NDArray[np.int64]
    """In the last of them; one less than `shortest` where there is none."""

    @property
    def token_steps(self) -> npt.NDArray[np.int64]:
        """Cached tokens of one request, summed over the steps."""
        return self.steps * (self.shortest + self.longest) // 2

    @property
    def block_steps(self) -> npt.NDArray[np.int64]:
        """Blocks that hold them, summed over the steps."""
        return _blocks_up_to(self.longest) - _blocks_up_to(self.shortest - 1)


def _blocks_up_to(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """sum over u = 1 .. tokens of ceil(u / block)."""
    full, rest = tokens // BLOCK_TOKENS, tokens % BLOCK_TOKENS
    return BLOCK_TOKENS * full * (full + 1) // 2 + rest * (full + 1)


def make_epochs(lengths: Sequence[tuple[int, int]], limit: int = MAX_EPOCHS) -> list[Epoch]:
    """At most about `limit` epochs for requests of the given (prompt, generation) lengths.

    Boundaries fall where the commonest phase of prompts begins a new block, so that for equal requests every epoch
    has one number of blocks and the average is exact. Where requests end at different times, half of the boundaries
    fall between as many ends as the others: what lives then changes most.
    """
    steps = max(gen for _, gen in lengths) - 1
    if steps < 1:
        return []
    phases = np.bincount([prompt % BLOCK_TOKENS for prompt, _ in lengths], minlength=BLOCK_TOKENS)
    phase = int(phases.argmax())
    # Step t attends to prompt + t - 1 tokens, so a block is added after the step at which that is a multiple of 16.
    first_end = (BLOCK_TOKENS - phase) % BLOCK_TOKENS + 1
    ends = [*range(first_end, steps, BLOCK_TOKENS), steps]
    last = sorted(gen - 1 for _, gen in lengths if gen > 1)
    most = limit if last[0] == last[-1] else limit // 2
    stride = -(-len(ends) // most)
    ends = ends[stride - 1 :: stride] + ([steps] if len(ends) % stride else [])
    if last[0] < last[-1]:
        ends = sorted({*ends, *(last[len(last) * k // most] for k in range(most))})
    starts = [1] + [end + 1 for end in ends[:-1]]
    return [Epoch(a, b) for a, b in zip(starts, ends, strict=True)]


def demand_of(lengths: Sequence[tuple[int, int]] | Classes, epochs: Sequence[Epoch]) -> Demand:
    """Average demand of requests with the given (prompt, generation) lengths."""
    classes = lengths if isinstance(lengths, Classes) else Classes.of(lengths)
    return _demands(classes, epochs, np.zeros(len(classes.count), np.int64), 1)[0]


def lifetime_of(gen_len: int, epochs: Sequence[Epoch]) -> int:
    """The number of the lifetime of a request: see `Classes.lifetimes`."""
    return 1 + bisect_left([epoch.last for epoch in epochs], gen_len - 1) if gen_len > 1 else 0


def demands_of(classes: Classes, epochs: Sequence[Epoch]) -> list[Demand]:
    """Average demand by lifetime: see `Classes.lifetimes`."""
    return _demands(classes, epochs, classes.lifetimes(epochs), len(epochs) + 1)


def _demands(c: Classes, epochs: Sequence[Epoch], of: npt.NDArray[np.int64], groups: int) -> list[Demand]:
    """Average demand of each of `groups`, of which every class belongs to one."""
    most = -(-(c.prompt + c.gen - 1) // BLOCK_TOKENS)
    prompts = -(-c.prompt // BLOCK_TOKENS)

    def summed(values: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.bincount(of, c.count * values, groups).astype(np.float64)

    rows, cached, blocks, begun = (np.zeros((groups, len(epochs))) for _ in range(4))
    for e, epoch in enumerate(epochs):
        alive = c.during(epoch)
        rows[:, e] = summed(alive.steps) / epoch.steps
        cached[:, e] = summed(alive.token_steps) / epoch.steps
        held = alive.block_steps
        blocks[:, e] = summed(held) / epoch.steps
        begun[:, e] = summed(held + most * (epoch.steps - alive.steps)) / epoch.steps
    final, first = summed(most), summed(prompts)
    return [Demand(rows[g], cached[g], blocks[g], begun[g], float(final[g]), float(first[g])) for g in range(groups)]


def total(demands: Sequence[Demand]) -> Demand:
    """All together."""
    return reduce(Demand.__add__, demands)
