"""The arithmetic and the transfers of decode operations, each as work for a stream."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from planner.decisions import Decisions
from planner.forms import ACT_GPU, ACT_HOST, KV_GPU, KV_HOST, CacheForm
from planner.model import ModelSpec
from planner.operation import Operation
from runtime.attention import attend_segment, attend_self, joined, merge
from runtime.batch import GroupStep, Run, StepView, step_view
from runtime.buffers import DecodeBuffers
from runtime.cache import Cache
from runtime.device import Device
from runtime.layers.base import Layers
from runtime.places import Places
from runtime.ragged import RaggedStep, attend_ragged
from runtime.store import WeightStore
from runtime.tokens import Tokens


class Decode:
    """Handlers of load_act, load_kv, rebuild, forward, store, embed and sample in decode steps."""

    def __init__(
        self, model: ModelSpec, decisions: Decisions, layers: Layers, device: Device,
        weights: WeightStore, cache: Cache, buffers: DecodeBuffers, tokens: Tokens,
    ) -> None:  # fmt: skip
        self.model, self.layers, self.device = model, layers, device
        self.weights, self.cache, self.buffers, self.tokens = weights, cache, buffers, tokens
        self.ragged = device.ragged
        self._positions = decisions.positions
        self._places: dict[int, tuple[int, Places]] = {}
        self._views: dict[int, StepView] = {}
        self._ragged: dict[int, tuple[int, RaggedStep]] = {}

    def view(self, op: Operation, ended: Collection[int]) -> StepView:
        """The layout of this step and mini-batch without the requests in `ended`, made once for all layers."""
        view = self._views.get(op.part)
        if view is None or view.step != op.step:
            view = self._views[op.part] = step_view(self.cache.groups[op.part], op.step, self.model, ended)
        return view

    # ---- link ------------------------------------------------------------------------------------

    def load(self, op: Operation, view: StepView) -> None:
        """Host blocks of one form into a slot, packed group after group."""
        form = ACT_HOST if op.kind == "load_act" else KV_HOST
        slot = (self.buffers.act_slots if form is ACT_HOST else self.buffers.kv_slots)[op.slot]
        for group in view.groups:
            tokens = group.padded(form)
            if tokens:
                packed = self._packed(slot, group, form)
                for run, source in self._rooms(op, group, form, tokens):
                    self.device.copy(packed[run.row : run.row + run.rows], source)

    def store(self, op: Operation, view: StepView) -> None:
        """New tokens from the store slot into their rooms on the host."""
        slot = self.buffers.store[op.slot]
        for group in view.groups:
            if not group.new_form.on_gpu:
                stored = self._stored(slot, group)
                for run, room in self._rooms(op, group, group.new_form, 1, group.new_offset):
                    self.device.copy(room[:, 0], stored[run.row : run.row + run.rows])

    @staticmethod
    def _rooms(
        op: Operation, group: GroupStep, form: CacheForm, tokens: int, offset: int = 0
    ) -> Iterator[tuple[Run, torch.Tensor]]:
        """[rows, tokens, width] of each run of a group: `tokens` from `offset` on, where they are kept."""
        region = group.cache.regions[form]
        for run in group.runs:
            yield run, region.part(op.layer, run.member, run.rows, tokens, offset)

    def _stored(self, slot: torch.Tensor, group: GroupStep) -> torch.Tensor:
        width = group.new_form.width(self.model)
        return slot[group.store : group.store + group.rows * width].view(group.rows, width)

    def _packed(self, slot: torch.Tensor, group: GroupStep, form: CacheForm) -> torch.Tensor:
        """[rows, padded tokens, width] of a group in a slot, or in the rebuilt buffer."""
        starts = {KV_HOST: group.kv_slot, ACT_HOST: group.act_slot, ACT_GPU: group.rebuilt_gpu}
        tokens = group.padded(form)
        return slot[starts[form] : starts[form] + group.rows * tokens].view(group.rows, tokens, -1)

    # ---- compute ---------------------------------------------------------------------------------

    def embed(self, op: Operation, view: StepView) -> None:
        """The newest token of every active request."""
        ids, positions = self.tokens.newest(view)
        self.layers.embed(self.weights.outer, ids, positions, self._hidden(op, view))

    def rebuild(self, op: Operation, view: StepView) -> None:
        """K and V of every token kept as an activation: one product for all that was staged, one per group on GPU."""
        w = self.weights.views(op.layer, op.weights)
        if view.act_slot_tokens:
            staged = self.buffers.act_slots[self._act_slot(op)][: view.act_slot_tokens]
            self.layers.project_kv(w, staged, self.buffers.rebuilt[: view.act_slot_tokens])
        for group in view.groups:
            tokens = group.padded(ACT_GPU)
            if tokens:
                out = self._packed(self.buffers.rebuilt, group, ACT_GPU)
                for run, kept in self._rooms(op, group, ACT_GPU, tokens):
                    into = out[run.row : run.row + run.rows]
                    if kept.is_contiguous():
                        self.layers.project_kv(w, kept.flatten(0, 1), into.flatten(0, 1))
                    else:
                        for one, rebuilt in zip(kept, into, strict=True):
                            self.layers.project_kv(w, one, rebuilt)
        if self.model.rope:
            self.buffers.space.reset()
            places = self._placed(op, view).rebuilt
            self.layers.place_keys(w, self.buffers.rebuilt[: len(places)], places, self.buffers.space)

    def _placed(self, op: Operation, view: StepView) -> Places:
        """Positions of this step and mini-batch, made once for all layers."""
        step, places = self._places.get(op.part, (0, None))
        if places is None or step != op.step:
            newest = self.tokens.positions(view)
            places = Places.of(view, newest, self._positions - 1)
            self._places[op.part] = (op.step, places)
        return places

    @staticmethod
    def _act_slot(op: Operation) -> int:
        return next(slot for name, slot in op.reads if name == "act")

    @staticmethod
    def _kv_slot(op: Operation) -> int | None:
        return next((slot for name, slot in op.reads if name == "kv"), None)

    def forward(self, op: Operation, view: StepView) -> None:
        """One layer for the newest tokens, attention to everything cached included."""
        w, space = self.weights.views(op.layer, op.weights), self.buffers.space
        space.reset()
        hidden = self._hidden(op, view)
        normed = self.layers.normed(w, hidden, space)
        qkv = self.layers.project_qkv(w, normed, space)
        if self.model.rope:
            self.layers.place_qkv(w, qkv, self._placed(op, view).newest, space)
        query, new_kv = self.layers.split_qkv(qkv)
        kv_slot = self._kv_slot(op)
        staged = None if kv_slot is None else self.buffers.kv_slots[kv_slot]
        if self.ragged:
            self.layers.finish(w, hidden, self._attend_all(op, view, query, new_kv, normed, staged), space)
            return
        attended = space.take(view.rows, self.model.d_q)
        for group in view.groups:
            rows = slice(group.first_row, group.first_row + group.rows)
            self._attend(op, group, query[rows], new_kv[rows], staged, attended[rows])
            kept = normed if group.new_form.rebuilt else new_kv
            self._keep(op, group, kept[rows])
        self.layers.finish(w, hidden, attended, space)

    def _attend_all(
        self, op: Operation, view: StepView, query: torch.Tensor, new_kv: torch.Tensor, normed: torch.Tensor,
        staged: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Attention of all groups together, by form, and where their new tokens are kept. [rows, d_q]."""
        made, step = self._ragged.get(op.part, (0, None))
        if step is None or made != op.step:
            step = RaggedStep.of(view, query.device)
            self._ragged[op.part] = (op.step, step)
        pools = {form: region.pool[op.layer] for form, region in view.groups[0].cache.regions.items() if form.on_gpu}
        buffers = {KV_GPU: pools[KV_GPU], ACT_HOST: self.buffers.rebuilt, ACT_GPU: self.buffers.rebuilt}
        if staged is not None:
            buffers[KV_HOST] = staged
        attended = attend_ragged(self.model, query, new_kv, step, buffers)
        for form, new in step.new.items():
            source = normed if form.rebuilt else new_kv
            rows = source if new.rows is None else source[new.rows]
            if form.on_gpu:
                pools[form].index_copy_(0, new.places, rows)
            else:
                slot = self.buffers.store[op.slot]
                slot[new.store : new.store + rows.numel()].view(rows.shape).copy_(rows)
        return attended

    def _keep(self, op: Operation, group: GroupStep, rows: torch.Tensor) -> None:
        """The new tokens of a group, in the form that the plan gives their block."""
        if group.new_form.on_gpu:
            for run, room in self._rooms(op, group, group.new_form, 1, group.new_offset):
                room[:, 0].copy_(rows[run.row : run.row + run.rows])
        else:
            self._stored(self.buffers.store[op.slot], group).copy_(rows)

    def _attend(
        self, op: Operation, group: GroupStep, query: torch.Tensor, new_kv: torch.Tensor, staged: torch.Tensor | None,
        into: torch.Tensor,
    ) -> None:  # fmt: skip
        """[rows, d_q] of one group: its segments, wherever they lie, and the new token itself."""
        m = self.model
        shaped = query.reshape(group.rows, m.kv_heads, m.gqa_group, m.head_dim)
        parts = [attend_self(shaped, *self._heads(new_kv.unsqueeze(1)))]
        for form in (KV_GPU, KV_HOST, ACT_HOST, ACT_GPU):
            tokens = group.tokens(form)
            if not tokens:
                continue
            if form is KV_GPU:
                rooms = self._rooms(op, group, form, tokens)
                found = [attend_segment(shaped[r.row : r.row + r.rows], *self._heads(room)) for r, room in rooms]
                parts.append(found[0] if len(found) == 1 else joined(found))
                continue
            where = staged if form is KV_HOST else self.buffers.rebuilt
            assert where is not None
            parts.append(attend_segment(shaped, *self._heads(self._packed(where, group, form)[:, :tokens])))
        merge(parts, into.view(shaped.shape))

    def _heads(self, kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[R, n, 2 d_kv] as keys and values [R, kv_heads, n, head_dim], views both."""
        shaped = kv.unflatten(2, (2, self.model.kv_heads, self.model.head_dim))
        return shaped[:, :, 0].transpose(1, 2), shaped[:, :, 1].transpose(1, 2)

    def sample(self, op: Operation, view: StepView) -> None:
        """The next token of every active request."""
        space = self.buffers.space
        space.reset()
        logits = self.layers.logits(self.weights.outer, self._hidden(op, view), space)
        self.tokens.choose(view, logits)

    def _hidden(self, op: Operation, view: StepView) -> torch.Tensor:
        return self.buffers.hidden[op.part][: view.rows]
