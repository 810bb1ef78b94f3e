"""Everything a plan decides for one wave of requests. Budget, schedule and engine are functions of it and the model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeVar

from planner.forms import FORMS, CacheForm
from planner.model import ModelSpec
from planner.placement import FORM_INDEX, MiniBatch

EXACT = 1e-9
"""Relative: what real numbers may lack of a whole part."""
_Item = TypeVar("_Item")
_ACT = [FORM_INDEX[form.name] for form in FORMS if form.rebuilt]


@dataclass(frozen=True)
class PrefillChunk:
    """Whole prompts of one mini-batch that cross each layer together in prefill."""

    mini_batch: int
    requests: tuple[int, ...]
    tokens: int


PrefillPass = tuple[PrefillChunk, ...]
"""Chunks that share one sweep over the layers, so one load of all that streams."""


@dataclass(frozen=True)
class Decisions:
    """One wave: requests that run together from prefill to their ends. All integers where the runtime needs integers.

    A job that memory does not hold at once is a sequence of them, which share resident weights and slots.
    """

    mini_batches: tuple[MiniBatch, ...]
    prefill_passes: tuple[PrefillPass, ...]
    resident_parts: tuple[int, ...]
    """[layers] how many parts of each layer's weights stay on the GPU, the first ones (`ModelSpec.prefix_bytes`): the
    rest streams. Empty where every layer streams whole."""
    weight_slots: int
    """GPU buffers for what streams of one layer each, shared by all layers in turn."""
    cache_slots: int
    """GPU buffers for the host cache of one mini-batch and layer each."""
    store_slots: int
    """GPU buffers for what is on its way back to the host."""

    @property
    def requests(self) -> int:
        return sum(len(mini_batch.requests) for mini_batch in self.mini_batches)

    @property
    def forms(self) -> tuple[CacheForm, ...]:
        """Those that any block has, in table order."""
        return tuple(form for form in FORMS if any(batch.blocks(form) for batch in self.mini_batches))

    @property
    def decode_steps(self) -> int:
        return max(mini_batch.decode_steps for mini_batch in self.mini_batches)

    @property
    def generated_tokens(self) -> int:
        """Of all requests together."""
        return sum(len(group.requests) * group.gen_len for batch in self.mini_batches for group in batch.groups)

    @property
    def positions(self) -> int:
        """The most that a request reaches."""
        return max(group.positions for mini_batch in self.mini_batches for group in mini_batch.groups)

    @property
    def act_blocks(self) -> int:
        """Cached blocks kept as activations, summed over decode steps."""
        return sum(int(mini_batch.shapes.blocks[:, _ACT].sum()) for mini_batch in self.mini_batches)

    @property
    def step_blocks(self) -> int:
        """Cached blocks, summed over decode steps."""
        return sum(int(mini_batch.shapes.blocks.sum()) for mini_batch in self.mini_batches)

    @property
    def act_share(self) -> float:
        """Share of cached blocks kept as activations, mean over mini-batches and decode steps."""
        return act_share([self])

    @cached_property
    def shape(self) -> tuple[object, ...]:
        """What everything but the request numbers comes to: waves of one shape take the same time and memory."""
        groups = [[(len(g.requests), g.prompt_len, g.gen_len, g.blocks) for g in b.groups] for b in self.mini_batches]
        group_of = {r: i for b in self.mini_batches for i, g in enumerate(b.groups) for r in g.requests}
        passes = tuple(
            tuple((chunk.mini_batch, tuple(sorted(group_of[r] for r in chunk.requests))) for chunk in chunks)
            for chunks in self.prefill_passes
        )
        slots = (self.weight_slots, self.cache_slots, self.store_slots)
        return (tuple(map(tuple, groups)), passes, self.resident_parts, slots)

    def parts_of(self, layer: int) -> int:
        """How many parts of its weights stay on the GPU."""
        return self.resident_parts[layer] if self.resident_parts else 0

    def renumbered(self, numbers: Sequence[int]) -> Decisions:
        """The same for requests `numbers[0]`, `numbers[1]`, ... in place of 0, 1, ..."""
        return replace(
            self,
            mini_batches=tuple(
                MiniBatch(tuple(replace(g, requests=tuple(numbers[r] for r in g.requests)) for g in b.groups))
                for b in self.mini_batches
            ),
            prefill_passes=tuple(
                tuple(replace(chunk, requests=tuple(numbers[r] for r in chunk.requests)) for chunk in chunks)
                for chunks in self.prefill_passes
            ),
        )


def act_share(waves: Sequence[Decisions]) -> float:
    """Share of cached blocks kept as activations, mean over all waves, mini-batches and decode steps."""
    act = sum(wave.act_blocks for wave in waves)
    total = sum(wave.step_blocks for wave in waves)
    return act / total if total else 0.0


def spread_layers(chosen: int, layers: int) -> tuple[int, ...]:
    """`chosen` of `layers` layer numbers, as evenly spaced as integers allow, from the end."""
    return tuple(i for i in range(layers) if (i + 1) * chosen // layers > i * chosen // layers)


def spread_parts(model: ModelSpec, layers: float) -> tuple[int, ...]:
    """`Decisions.resident_parts` for no more bytes than `layers` have: as many parts of every layer as that holds, and
    one more of some, evenly spaced.

    All layers then stream about the same, so the link is never idle for long and slots are as small as can be.
    """
    ends, room = model.prefix_bytes, layers * model.layer_bytes * (1 + EXACT)
    least = max(parts for parts, nbytes in enumerate(ends) if nbytes * model.layers <= room)
    if least == len(ends) - 1:
        return (least,) * model.layers
    more = set(spread_layers(int((room - model.layers * ends[least]) // (ends[least + 1] - ends[least])), model.layers))
    return tuple(least + (i in more) for i in range(model.layers)) if least or more else ()


def spreads(model: ModelSpec) -> list[tuple[int, ...]]:
    """Every amount of resident weights, spread over the layers, the least first."""
    steps = [b - a for a, b in pairwise(model.prefix_bytes) for _ in range(model.layers)]
    return [spread_parts(model, nbytes / model.layer_bytes) for nbytes in accumulate(steps, initial=0)]


def kept_layers(model: ModelSpec, parts: Sequence[int]) -> float:
    """How many whole layers resident parts come to."""
    return kept_bytes(model, parts) / model.layer_bytes


def kept_bytes(model: ModelSpec, parts: Sequence[int]) -> int:
    """Of the layers' weights that stay on the GPU with so many parts of each."""
    ends = model.prefix_bytes
    return sum(ends[kept] for kept in parts)


def streams(model: ModelSpec, parts: Sequence[int]) -> bool:
    """Whether any weights cross the link where so many parts of each layer are resident."""
    return min(parts, default=0) < len(model.prefix_bytes) - 1


def chunk_prompts(
    mini_batches: tuple[MiniBatch, ...], prompt_lens: dict[int, int], chunk_tokens: int, pass_tokens: int
) -> tuple[PrefillPass, ...]:
    """Pack every mini-batch's prompts into chunks of at most `chunk_tokens` (one prompt is never cut), and
    gather chunks into as few passes of at most `pass_tokens` as that takes (one chunk is never cut).

    Passes are level, since the shortest one hides least of the weights that each of them loads; and so are chunks of
    unlike prompts, since short ones run at lower rates. Equal prompts are attended in one call, so those fill them up.
    """
    chunks = [
        PrefillChunk(index, tuple(held), sum(prompt_lens[r] for r in held))
        for index, mini_batch in enumerate(mini_batches)
        for held in packed(mini_batch.requests, prompt_lens, chunk_tokens)
    ]
    return tuple(tuple(held) for held in _gathered(chunks, [chunk.tokens for chunk in chunks], pass_tokens, level=True))


def packed(requests: Sequence[int], prompt_lens: Mapping[int, int] | Sequence[int], most: int) -> list[list[int]]:
    """Requests in chunks of at most `most` tokens, in their order, or where that makes fewer chunks, each into the
    fullest that still has room, the longest prompts first. A longer prompt is alone.

    Either way those of a chunk keep their order, and equal ones that follow each other do so in it.
    """
    lengths = [prompt_lens[r] for r in requests]
    in_order = _gathered(requests, lengths, most, level=len(set(lengths)) > 1)
    if len(in_order) <= -(-sum(lengths) // most):
        return in_order
    parts: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, number of the chunk), ascending
    for r in sorted(requests, key=lambda r: -prompt_lens[r]):
        at = bisect_left(rooms, (prompt_lens[r], 0))
        left, chunk = rooms.pop(at) if at < len(rooms) else (most, len(parts))
        if chunk == len(parts):
            parts.append([])
        parts[chunk].append(r)
        insort(rooms, (left - prompt_lens[r], chunk))
    place = {r: i for i, r in enumerate(requests)}
    return [sorted(chunk, key=place.__getitem__) for chunk in parts] if len(parts) < len(in_order) else in_order


def _gathered(items: Sequence[_Item], tokens: Sequence[int], most: int, level: bool) -> list[list[_Item]]:
    """`items` of so many tokens in order, in as few parts of at most `most` as that takes (one item is never cut): each
    as full as it can be, or all about `level`."""
    filled = _parts(items, tokens, most, len(items))
    found = _parts(items, tokens, most, len(filled)) if level else filled
    return found if len(found) == len(filled) else filled


def _parts(items: Sequence[_Item], tokens: Sequence[int], most: int, count: int) -> list[list[_Item]]:
    """Parts of at most `most`; `count` level ones where that holds, as full as it allows beyond."""
    total, done, held = sum(tokens), 0, 0
    found: list[list[_Item]] = []
    for item, more in zip(items, tokens, strict=True):
        enough = count < len(items) and (2 * done + more) * count > 2 * total * len(found)
        if not found or held + more > most or enough:
            found.append([])
            held = 0
        found[-1].append(item)
        held += more
        done += more
    return found
