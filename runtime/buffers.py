"""The buffers of a plan, carved from the GPU arena by the names of its memory lines."""

from __future__ import annotations

import torch

from planner.decisions import Decisions
from planner.forms import ACT_HOST, BLOCK_TOKENS, KV_HOST
from planner.memory import Sizes, workspace_elements
from planner.model import ModelSpec
from runtime.arena import Arena
from runtime.layers.base import Workspace


class PrefillBuffers:
    """Hidden states of one pass, scratch of one chunk, and what is on its way to the host."""

    def __init__(self, model: ModelSpec, decisions: Decisions, sizes: Sizes, dtype: torch.dtype, gpu: Arena) -> None:
        self.hidden = gpu.carve("hidden state (prefill)", (sizes.pass_tokens, model.hidden), dtype)
        scratch = workspace_elements(model, sizes.chunk_tokens, sizes.chunk_requests)
        self.space = Workspace(gpu.carve("workspace (prefill)", (scratch,), dtype))
        slots = (decisions.store_slots, sizes.prefill_store_elements)
        self.store = gpu.carve("store slots (prefill)", slots, dtype)


class DecodeBuffers:
    """Hidden states of every mini-batch, scratch of one, and the slots of the host cache."""

    def __init__(self, model: ModelSpec, decisions: Decisions, sizes: Sizes, dtype: torch.dtype, gpu: Arena) -> None:
        hidden = gpu.carve("hidden state", (decisions.requests, model.hidden), dtype)
        rows = [len(mini_batch.requests) for mini_batch in decisions.mini_batches]
        self.hidden: list[torch.Tensor] = list(hidden.split(rows))
        scratch = workspace_elements(model, sizes.decode_rows, sizes.decode_rows)
        self.space = Workspace(gpu.carve("workspace", (scratch,), dtype))
        kv, act = KV_HOST.width(model), ACT_HOST.width(model)
        slots = decisions.cache_slots
        self.kv_slots = gpu.carve("kv slots", (slots, sizes.kv_slot_blocks * BLOCK_TOKENS, kv), dtype)
        self.act_slots = gpu.carve("act slots", (slots, sizes.act_slot_blocks * BLOCK_TOKENS, act), dtype)
        self.rebuilt = gpu.carve("rebuilt K and V", (sizes.rebuilt_blocks * BLOCK_TOKENS, kv), dtype)
        self.store = gpu.carve("store slots", (decisions.store_slots, sizes.decode_store_elements), dtype)
