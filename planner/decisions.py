"""Everything a plan decides. The memory budget, the schedule and the engine are functions of this and the model."""

from __future__ import annotations

from dataclasses import dataclass

from planner.forms import FORMS
from planner.placement import FORM_INDEX, MiniBatch

_ACT = [FORM_INDEX[form.name] for form in FORMS if form.rebuilt]


@dataclass(frozen=True)
class PrefillChunk:
    """Whole prompts of one mini-batch that cross each layer together in prefill."""

    mini_batch: int
    requests: tuple[int, ...]
    tokens: int


PrefillPass = tuple[PrefillChunk, ...]
"""Chunks that share one sweep over the layers, so one load of every streamed layer."""


@dataclass(frozen=True)
class Decisions:
    """All integers where the runtime needs integers."""

    mini_batches: tuple[MiniBatch, ...]
    prefill_passes: tuple[PrefillPass, ...]
    resident_layers: tuple[int, ...]
    weight_slots: int
    """GPU buffers of one layer's weights each, shared by the streamed layers in turn."""
    cache_slots: int
    """GPU buffers for the host cache of one mini-batch and layer each."""
    store_slots: int
    """GPU buffers for what is on its way back to the host."""

    @property
    def requests(self) -> int:
        return sum(len(mini_batch.requests) for mini_batch in self.mini_batches)

    @property
    def decode_steps(self) -> int:
        return max(mini_batch.decode_steps for mini_batch in self.mini_batches)

    @property
    def act_share(self) -> float:
        """Share of cached blocks kept as activations, mean over mini-batches and decode steps."""
        act = sum(int(mini_batch.shapes.blocks[:, _ACT].sum()) for mini_batch in self.mini_batches)
        total = sum(int(mini_batch.shapes.blocks.sum()) for mini_batch in self.mini_batches)
        return act / total if total else 0.0


def spread_layers(resident: int, layers: int) -> tuple[int, ...]:
    """`resident` of `layers` layer numbers, as evenly spaced as integers allow.

    Streamed layers then alternate with resident ones, so the link is never idle for long.
    """
    return tuple(i for i in range(layers) if (i + 1) * resident // layers > i * resident // layers)


def chunk_prompts(
    mini_batches: tuple[MiniBatch, ...], prompt_lens: dict[int, int], chunk_tokens: int, pass_tokens: int
) -> tuple[PrefillPass, ...]:
    """Cut every mini-batch's prompts into chunks of at most `chunk_tokens` (one prompt is never cut), and
    gather chunks into as few passes of at most `pass_tokens` as that takes (one chunk is never cut).

    Passes are level, since the shortest one hides least of the weights that each of them loads.
    """
    chunks: list[PrefillChunk] = []
    for index, mini_batch in enumerate(mini_batches):
        held: list[int] = []
        tokens = 0
        for request in mini_batch.requests:
            length = prompt_lens[request]
            if held and tokens + length > chunk_tokens:
                chunks.append(PrefillChunk(index, tuple(held), tokens))
                held, tokens = [], 0
            held.append(request)
            tokens += length
        chunks.append(PrefillChunk(index, tuple(held), tokens))
    filled = _gather(chunks, pass_tokens, len(chunks))
    level = _gather(chunks, pass_tokens, len(filled))
    return level if len(level) == len(filled) else filled


def _gather(chunks: list[PrefillChunk], pass_tokens: int, count: int) -> tuple[PrefillPass, ...]:
    """Passes of at most `pass_tokens`; `count` level ones where that holds, as full as it allows beyond."""
    total = sum(chunk.tokens for chunk in chunks)
    passes: list[PrefillPass] = []
    held: list[PrefillChunk] = []
    tokens = done = 0
    for chunk in chunks:
        enough = count < len(chunks) and (2 * done + chunk.tokens) * count > 2 * total * (len(passes) + 1)
        if held and (tokens + chunk.tokens > pass_tokens or enough):
            passes.append(tuple(held))
            held, tokens = [], 0
        held.append(chunk)
        tokens += chunk.tokens
        done += chunk.tokens
    passes.append(tuple(held))
    return tuple(passes)
