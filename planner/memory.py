"""The memory budget, line by line. The engine allocates exactly these lines, by these names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.decisions import Decisions, kept_bytes, kept_layers
from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, FORMS, KV_GPU, KV_HOST, CacheForm
from planner.model import ModelSpec

Phase = Literal["always", "prefill", "decode"]
TOKEN_BYTES = 8
ALIGNMENT = 256
"""Every tensor starts at a multiple of this many bytes (coalesced loads on every GPU)."""


@dataclass(frozen=True)
class MemoryLine:
    """One allocation. Lines of phase `prefill` and `decode` share the same bytes, one after the other."""

    name: str
    nbytes: int
    phase: Phase = "always"


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of the arenas."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def planned_bytes(lines: list[MemoryLine]) -> int:
    """Peak of a budget: what is there always, plus the larger of the two phases."""
    total = {"always": 0, "prefill": 0, "decode": 0}
    for line in lines:
        total[line.phase] += aligned(line.nbytes)
    return total["always"] + max(total["prefill"], total["decode"])


@dataclass(frozen=True)
class Sizes:
    """Largest shapes of a plan, in elements or tokens: what buffers must hold."""

    kv_slot_blocks: int
    act_slot_blocks: int
    rebuilt_blocks: int
    decode_rows: int
    decode_store_elements: int
    chunk_tokens: int
    chunk_requests: int
    pass_tokens: int
    prefill_store_elements: int

    @classmethod
    def of(cls, model: ModelSpec, decisions: Decisions) -> Sizes:
        shapes = [mini_batch.shapes for mini_batch in decisions.mini_batches]
        chunks = [chunk for chunks in decisions.prefill_passes for chunk in chunks]
        widths = [0 if form.on_gpu else form.width(model) for form in FORMS]
        stored = _stored_elements(model, decisions)
        return cls(
            kv_slot_blocks=max(s.peak_blocks(KV_HOST) for s in shapes),
            act_slot_blocks=max(s.peak_blocks(ACT_HOST) for s in shapes),
            rebuilt_blocks=max(s.peak_blocks(ACT_HOST, ACT_GPU) for s in shapes),
            decode_rows=max(len(mini_batch.requests) for mini_batch in decisions.mini_batches),
            decode_store_elements=max(int((s.new_tokens @ widths).max(initial=0)) for s in shapes),
            chunk_tokens=max(chunk.tokens for chunk in chunks),
            chunk_requests=max(len(chunk.requests) for chunk in chunks),
            pass_tokens=max(sum(chunk.tokens for chunk in chunks) for chunks in decisions.prefill_passes),
            prefill_store_elements=max(sum(stored[r] for r in chunk.requests) for chunk in chunks),
        )


def _stored_elements(model: ModelSpec, decisions: Decisions) -> dict[int, int]:
    """Elements per layer that prefill of each request sends to the host, whole blocks."""
    widths = {form: 0 if form.on_gpu else BLOCK_TOKENS * form.width(model) for form in FORMS}
    stored: dict[int, int] = {}
    for mini_batch in decisions.mini_batches:
        for group in mini_batch.groups:
            elements = sum(widths[form] for form in group.blocks[: group.prompt_blocks])
            stored.update(dict.fromkeys(group.requests, elements))
    return stored


def workspace_elements(model: ModelSpec, rows: int, sampled: int) -> int:
    """Scratch of one forward over `rows` tokens, or of sampling `sampled` of them.

    Normed input, fused Q K V, attention output and feed-forward, as the layers carve them.
    """
    width = model.heads * model.head_dim
    ups = 2 if model.gated else 1
    layer = rows * (2 * model.hidden + 2 * width + 2 * model.d_kv + ups * model.ffn)
    return max(layer, sampled * (model.hidden + model.vocab))


def rotary_bytes(model: ModelSpec, positions: int) -> int:
    """Cosines and sines of every position that a request reaches; nothing where positions are learned."""
    return positions * model.head_dim * model.element_bytes if model.rope else 0


def pool_bytes(model: ModelSpec, decisions: Decisions, form: CacheForm) -> int:
    """Bytes of the pool that holds every block of `form`, all layers."""
    return sum(mini_batch.blocks(form) for mini_batch in decisions.mini_batches) * form.block_bytes(model)


def streamed_bytes(model: ModelSpec, decisions: Decisions) -> list[int]:
    """[layers] of the weights that cross the link in every sweep."""
    ends = model.prefix_bytes
    return [ends[-1] - ends[decisions.parts_of(layer)] for layer in range(model.layers)]


def resident_layers(model: ModelSpec, decisions: Decisions) -> float:
    """How many whole layers the resident weights come to."""
    return kept_layers(model, decisions.resident_parts)


def gpu_lines(model: ModelSpec, decisions: Decisions) -> list[MemoryLine]:
    """The GPU budget of a plan."""
    e, sizes = model.element_bytes, Sizes.of(model, decisions)
    kv_block, act_block = (BLOCK_TOKENS * form.token_bytes(model) for form in (KV_HOST, ACT_HOST))
    return [
        MemoryLine("embedding, head and final norm", model.outer_bytes),
        MemoryLine("token ids", TOKEN_BYTES * sum(g.token_ids for b in decisions.mini_batches for g in b.groups)),
        MemoryLine("rotary table", rotary_bytes(model, decisions.positions)),
        MemoryLine("resident weights", kept_bytes(model, decisions.resident_parts)),
        MemoryLine("weight slots", decisions.weight_slots * max(streamed_bytes(model, decisions))),
        MemoryLine("act@gpu blocks", pool_bytes(model, decisions, ACT_GPU)),
        MemoryLine("kv@gpu blocks", pool_bytes(model, decisions, KV_GPU)),
        MemoryLine("hidden state (prefill)", sizes.pass_tokens * model.hidden * e, "prefill"),
        MemoryLine(
            "workspace (prefill)", e * workspace_elements(model, sizes.chunk_tokens, sizes.chunk_requests), "prefill"
        ),
        MemoryLine("store slots (prefill)", decisions.store_slots * sizes.prefill_store_elements * e, "prefill"),
        MemoryLine("hidden state", decisions.requests * model.hidden * e, "decode"),
        MemoryLine("workspace", e * workspace_elements(model, sizes.decode_rows, sizes.decode_rows), "decode"),
        MemoryLine("kv slots", decisions.cache_slots * sizes.kv_slot_blocks * kv_block, "decode"),
        MemoryLine("act slots", decisions.cache_slots * sizes.act_slot_blocks * act_block, "decode"),
        MemoryLine("rebuilt K and V", sizes.rebuilt_blocks * kv_block, "decode"),
        MemoryLine("store slots", decisions.store_slots * sizes.decode_store_elements * e, "decode"),
    ]


def host_lines(model: ModelSpec, decisions: Decisions) -> list[MemoryLine]:
    """The host budget of a plan: what the runtime pins, slab by slab."""
    return [
        MemoryLine("streamed weights", sum(streamed_bytes(model, decisions))),
        MemoryLine("act@host blocks", pool_bytes(model, decisions, ACT_HOST)),
        MemoryLine("kv@host blocks", pool_bytes(model, decisions, KV_HOST)),
    ]


def fullest_gpu_lines(model: ModelSpec, waves: Sequence[Decisions]) -> list[MemoryLine]:
    """The GPU budget of the wave that needs most: waves use the same bytes, one after the other."""
    return max((gpu_lines(model, wave) for wave in _distinct(waves)), key=planned_bytes)


def fullest_host_lines(
    model: ModelSpec, waves: Sequence[Decisions], rounding: Literal["exact", "power_of_two"] = "exact"
) -> list[MemoryLine]:
    """The host budget of the wave that needs most."""
    return max((host_lines(model, wave) for wave in _distinct(waves)), key=lambda lines: pinned_total(lines, rounding))


def _distinct(waves: Sequence[Decisions]) -> list[Decisions]:
    return list({wave.shape: wave for wave in reversed(waves)}.values())[::-1]


def pinned_total(lines: list[MemoryLine], rounding: Literal["exact", "power_of_two"]) -> int:
    """What a host budget really takes, every line a slab of its own."""
    return sum(pinned_bytes(line.nbytes, rounding) for line in lines)


def pinned_bytes(nbytes: int, rounding: Literal["exact", "power_of_two"]) -> int:
    """What one pinned slab of `nbytes` really takes."""
    if rounding == "exact" or nbytes <= 0:
        return nbytes
    return 1 << (nbytes - 1).bit_length()
