"""The arithmetic and the transfers of prefill operations, each as work for a stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planner.decisions import Decisions, PrefillChunk
from planner.model import ModelSpec
from planner.operation import Operation
from runtime.attention import attend_prompt
from runtime.buffers import PrefillBuffers
from runtime.cache import Cache, GroupCache, PromptRun
from runtime.device import Device
from runtime.layers.base import Layers
from runtime.store import WeightStore
from runtime.tokens import Tokens


@dataclass(frozen=True)
class ChunkGroup:
    """The requests of one group that are in one chunk: consecutive members, consecutive rows."""

    cache: GroupCache
    first_member: int
    members: int
    first_row: int

    @property
    def prompt_len(self) -> int:
        return self.cache.group.prompt_len

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.members * self.prompt_len)


class Prefill:
    """Handlers of prefill, store, embed and sample in prefill passes."""

    def __init__(
        self, model: ModelSpec, decisions: Decisions, layers: Layers, device: Device,
        weights: WeightStore, cache: Cache, buffers: PrefillBuffers, tokens: Tokens,
    ) -> None:  # fmt: skip
        self.model, self.decisions, self.layers, self.device = model, decisions, layers, device
        self.weights, self.cache, self.buffers, self.tokens = weights, cache, buffers, tokens
        self._groups = {
            (p, c): self._chunk_groups(chunk)
            for p, chunks in enumerate(decisions.prefill_passes) for c, chunk in enumerate(chunks)
        }  # fmt: skip

        self._known: tuple[int, dict[int, torch.Tensor]] = (-1, {})

    def _chunk_groups(self, chunk: PrefillChunk) -> list[ChunkGroup]:
        wanted, found, row = set(chunk.requests), [], 0
        for cache in self.cache.groups[chunk.mini_batch]:
            members = [i for i, request in enumerate(cache.group.requests) if request in wanted]
            if members:
                found.append(ChunkGroup(cache, members[0], len(members), row))
                row += len(members) * cache.group.prompt_len
        return found

    def chunk(self, op: Operation) -> PrefillChunk:
        return self.decisions.prefill_passes[op.offset][op.part]

    def _hidden(self, op: Operation) -> torch.Tensor:
        chunks = self.decisions.prefill_passes[op.offset]
        start = sum(chunk.tokens for chunk in chunks[: op.part])
        return self.buffers.hidden[start : start + chunks[op.part].tokens]

    def _positions(self, op: Operation) -> torch.Tensor:
        """Of every token of the chunk; kept for the pass, since all its layers ask."""
        known = self._known
        if known[0] != op.offset:
            known = self._known = (op.offset, {})
        if op.part not in known[1]:
            known[1][op.part] = self.tokens.prompt_positions(self.chunk(op))
        return known[1][op.part]

    def embed(self, op: Operation) -> None:
        """Every prompt token of the chunk."""
        ids, positions = self.tokens.prompts(self.chunk(op))
        self.layers.embed(self.weights.outer, ids, positions, self._hidden(op))

    def forward(self, op: Operation) -> None:
        """One layer over whole prompts; their cache goes to its rooms on the GPU or into a store slot."""
        w, space = self.weights.views(op.layer, op.weights), self.buffers.space
        space.reset()
        hidden = self._hidden(op)
        normed = self.layers.normed(w, hidden, space)
        qkv = self.layers.project_qkv(w, normed, space)
        if self.model.rope:
            self.layers.place_qkv(w, qkv, self._positions(op), space)
        query, kv = self.layers.split_qkv(qkv)
        attended = space.take(len(hidden), self.model.d_q)
        for group in self._groups[op.offset, op.part]:
            attended[group.rows] = self._attend(group, query[group.rows], kv[group.rows])
        self._keep(op, normed, kv)
        self.layers.finish(w, hidden, attended, space)

    def _attend(self, group: ChunkGroup, query: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        m, shape = self.model, (group.members, group.prompt_len)
        keys, values = kv.unflatten(0, shape).unflatten(2, (2, m.kv_heads, m.head_dim)).unbind(2)
        shaped = query.unflatten(0, shape).unflatten(2, (m.heads, m.head_dim))
        return attend_prompt(shaped, keys, values).flatten(0, 1)

    def _keep(self, op: Operation, normed: torch.Tensor, kv: torch.Tensor) -> None:
        for group, run, slot in self._runs(op):
            kept = (normed if run.form.rebuilt else kv)[group.rows].unflatten(0, (group.members, group.prompt_len))
            target = self._room(op, group, run) if slot is None else slot
            target.copy_(kept[:, run.first : run.first + run.tokens])

    def store(self, op: Operation) -> None:
        """What a prefill operation left in the store slot, to its rooms on the host."""
        for group, run, slot in self._runs(op):
            if slot is not None:
                self.device.copy(self._room(op, group, run), slot)

    def _runs(self, op: Operation) -> list[tuple[ChunkGroup, PromptRun, torch.Tensor | None]]:
        """Runs of one form of each group, with their part of the store slot if they are kept on the host."""
        found, at = [], 0
        for group in self._groups[op.offset, op.part]:
            for run in group.cache.prompt_runs():
                slot = None
                if not run.form.on_gpu:
                    shape = (group.members, run.tokens, run.form.width(self.model))
                    size = shape[0] * shape[1] * shape[2]
                    slot = self.buffers.store[op.slot][at : at + size].view(shape)
                    at += size
                found.append((group, run, slot))
        return found

    @staticmethod
    def _room(op: Operation, group: ChunkGroup, run: PromptRun) -> torch.Tensor:
        region = group.cache.regions[run.form]
        return region.part(op.layer, group.first_member, group.members, run.tokens, run.offset)

    def sample(self, op: Operation) -> None:
        """The first token of every request of the chunk."""
        space = self.buffers.space
        space.reset()
        hidden = self._hidden(op)
        groups = self._groups[op.offset, op.part]
        last = torch.cat([hidden[g.rows].unflatten(0, (g.members, g.prompt_len))[:, -1] for g in groups])
        logits = self.layers.logits(self.weights.outer, last, space)
        self.tokens.choose_first(self.chunk(op), logits)
