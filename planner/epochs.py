"""Stretches of decode steps in which a job looks the same: the time axis of the ILP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def scaled(self, factor: float) -> Demand:
        """The same requests, `factor` times as many."""
        return Demand(
            self.rows * factor, self.cached_tokens * factor, self.blocks * factor, self.begun_blocks * factor,
            self.final_blocks * factor, self.prompt_blocks * factor,
        )  # fmt: skip


def make_epochs(lengths: Sequence[tuple[int, int]]) -> list[Epoch]:
    """Epochs for requests of the given (prompt, generation) lengths.

    Boundaries fall where the commonest phase of prompts begins a new block, so that for equal requests every epoch
    has one number of blocks and the average is exact.
    """
    steps = max(gen for _, gen in lengths) - 1
    if steps < 1:
        return []
    phases = np.bincount([prompt % BLOCK_TOKENS for prompt, _ in lengths], minlength=BLOCK_TOKENS)
    phase = int(phases.argmax())
    # Step t attends to prompt + t - 1 tokens, so a block is added after the step at which that is a multiple of 16.
    first_end = (BLOCK_TOKENS - phase) % BLOCK_TOKENS + 1
    ends = [*range(first_end, steps, BLOCK_TOKENS), steps]
    stride = -(-len(ends) // MAX_EPOCHS)
    ends = ends[stride - 1 :: stride] + ([steps] if len(ends) % stride else [])
    starts = [1] + [end + 1 for end in ends[:-1]]
    return [Epoch(a, b) for a, b in zip(starts, ends, strict=True)]


def demand_of(lengths: Sequence[tuple[int, int]], epochs: Sequence[Epoch]) -> Demand:
    """Average demand of requests with the given (prompt, generation) lengths, by classes of equal lengths."""
    classes: dict[tuple[int, int], int] = {}
    for pair in lengths:
        classes[pair] = classes.get(pair, 0) + 1
    n = len(epochs)
    rows, cached, blocks, begun = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    final = prompts = 0.0
    for (prompt, gen), count in classes.items():
        most = -(-(prompt + gen - 1) // BLOCK_TOKENS)
        final += count * most
        prompts += count * -(-prompt // BLOCK_TOKENS)
        for e, epoch in enumerate(epochs):
            steps = np.arange(epoch.first, min(epoch.last, gen - 1) + 1)
            tokens = prompt + steps - 1
            rows[e] += count * len(steps) / epoch.steps
            cached[e] += count * tokens.sum() / epoch.steps
            held = count * (-(-tokens // BLOCK_TOKENS)).sum() / epoch.steps
            blocks[e] += held
            begun[e] += held + count * most * (epoch.steps - len(steps)) / epoch.steps
    return Demand(rows, cached, blocks, begun, final, prompts)
