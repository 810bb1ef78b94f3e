"""The cache of a job: one pool per form and side, a contiguous region of it for every group of requests.

A region holds, for each request of a group, room for all blocks that its plan puts in that form, in position order.
The filled part of a request's room is a prefix, so a load is one (strided) copy per group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from planner.decisions import Decisions
from planner.forms import BLOCK_TOKENS, FORMS, CacheForm, blocks_for
from planner.model import ModelSpec
from planner.placement import RequestGroup
from runtime.arena import Arena


@dataclass(frozen=True)
class Region:
    """The room of one group in the pool of one form."""

    pool: torch.Tensor
    """[layers, tokens, width] of all groups."""
    start: int
    members: int
    capacity: int
    """Tokens of room per request."""

    def at(self, layer: int) -> torch.Tensor:
        """[members, capacity, width] of one layer."""
        rows = self.pool[layer, self.start : self.start + self.members * self.capacity]
        return rows.view(self.members, self.capacity, -1)

    def part(self, layer: int, first: int, members: int, tokens: int, offset: int = 0) -> torch.Tensor:
        """[members, tokens, width] of `members` requests from `first` on, from token `offset` of their room."""
        return self.at(layer)[first : first + members, offset : offset + tokens]


@dataclass(frozen=True)
class PromptRun:
    """Consecutive prompt blocks of one form: tokens [first, first + tokens) of the prompt at `offset` of the room."""

    form: CacheForm
    first: int
    tokens: int
    offset: int


@dataclass(frozen=True)
class GroupCache:
    """One group's regions, and where its tokens are at any time."""

    group: RequestGroup
    regions: dict[CacheForm, Region]

    def blocks(self, form: CacheForm, cached: int) -> int:
        """Blocks of one request in `form` when `cached` tokens are cached."""
        return self.group.blocks[: blocks_for(cached)].count(form)

    def tokens(self, form: CacheForm, cached: int) -> int:
        """Tokens of one request in `form` when `cached` tokens are cached."""
        blocks = blocks_for(cached)
        held = self.group.blocks[:blocks].count(form) * BLOCK_TOKENS
        last_is_partial = blocks and self.group.blocks[blocks - 1] is form
        return held - (blocks * BLOCK_TOKENS - cached) if last_is_partial else held

    def place_of(self, position: int) -> tuple[CacheForm, int]:
        """The form of the token at `position`, and its offset in the request's room."""
        block = position // BLOCK_TOKENS
        form = self.group.blocks[block]
        return form, self.group.blocks[:block].count(form) * BLOCK_TOKENS + position % BLOCK_TOKENS

    def prompt_runs(self) -> Iterator[PromptRun]:
        """The prompt cut where the form changes."""
        position, length = 0, self.group.prompt_len
        while position < length:
            form, offset = self.place_of(position)
            end = position
            while end < length and self.group.blocks[end // BLOCK_TOKENS] is form:
                end = min(length, (end // BLOCK_TOKENS + 1) * BLOCK_TOKENS)
            yield PromptRun(form, position, end - position, offset)
            position = end


class Cache:
    """Pools carved from the arenas, and the regions of every mini-batch's groups."""

    def __init__(self, model: ModelSpec, decisions: Decisions, dtype: torch.dtype, gpu: Arena, host: Arena) -> None:
        rooms = dict.fromkeys(FORMS, 0)
        starts: list[list[dict[CacheForm, int]]] = []
        for mini_batch in decisions.mini_batches:
            starts.append([])
            for group in mini_batch.groups:
                starts[-1].append(dict(rooms))
                for form in FORMS:
                    rooms[form] += len(group.requests) * group.count(form) * BLOCK_TOKENS
        pools = {
            form: (gpu if form.on_gpu else host).carve(
                f"{form.name} blocks", (model.layers, rooms[form], form.width(model)), dtype
            )
            for form in FORMS
        }
        self.groups: list[list[GroupCache]] = [
            [
                GroupCache(group, {
                    form: Region(pools[form], starts[m][g][form], len(group.requests), group.count(form) * BLOCK_TOKENS)
                    for form in FORMS
                })
                for g, group in enumerate(mini_batch.groups)
            ]
            for m, mini_batch in enumerate(decisions.mini_batches)
        ]  # fmt: skip
