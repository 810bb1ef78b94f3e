"""Decode attention of requests of any lengths in one call per cache form, and one copy per form for their new tokens.

For devices whose kernels take sequences of many lengths. A mini-batch's indices are made once per step, for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from planner.forms import ACT_GPU, ACT_HOST, FORMS, KV_GPU, KV_HOST, CacheForm
from planner.model import ModelSpec
from runtime.attention import attend_segment, attend_self
from runtime.batch import GroupStep, StepView
from runtime.device import on_device

FLASH_CAPABILITY = (8, 0)
"""From which compute capability on the flash kernels run."""


@dataclass(frozen=True)
class Segments:
    """The tokens of one form: those of request i begin at `starts[i]` of its buffer and are `used[i]`."""

    rows: torch.Tensor | None
    """[n] rows of the mini-batch that have any; None for all of them."""
    starts: torch.Tensor
    """[n + 1] int32; the last one is where the buffer's used part ends."""
    used: torch.Tensor
    """[n] int32."""
    longest: int


@dataclass(frozen=True)
class NewTokens:
    """Which rows' newest tokens go to one form, and where."""

    rows: torch.Tensor | None
    """[n]; None for all."""
    places: torch.Tensor
    """[n] tokens of the pool, for a form on the GPU."""
    store: int
    """Elements of the store slot at which they begin, for one on the host."""


@dataclass(frozen=True)
class RaggedStep:
    """One decode step of one mini-batch, as index tensors on the device."""

    segments: dict[CacheForm, Segments]
    new: dict[CacheForm, NewTokens]

    @classmethod
    def of(cls, view: StepView, device: torch.device) -> RaggedStep:
        """Copied to the device in the order of the current stream, without waiting for it."""

        def tensor(values: list[int], dtype: torch.dtype) -> torch.Tensor:
            return on_device(values, dtype, device)

        segments = {form: s for form in FORMS if (s := _segments(view, form, tensor)) is not None}
        new = {form: n for form in FORMS if (n := _new_tokens(view, form, tensor)) is not None}
        return cls(segments, new)


Maker = Callable[[list[int], torch.dtype], torch.Tensor]


def _rows(groups: list[GroupStep], view: StepView, tensor: Maker) -> torch.Tensor | None:
    rows = [row for g in groups for row in range(g.first_row, g.first_row + g.rows)]
    return None if len(rows) == view.rows else tensor(rows, torch.int64)


def _segments(view: StepView, form: CacheForm, tensor: Maker) -> Segments | None:
    groups = [g for g in view.groups if g.tokens(form)]
    if not groups:
        return None
    starts: list[int] = []
    for g in groups:
        starts += _starts(g, form)
    used = [g.tokens(form) for g in groups for _ in range(g.rows)]
    return Segments(
        _rows(groups, view, tensor),
        tensor([*starts, starts[-1] + used[-1]], torch.int32),
        tensor(used, torch.int32),
        max(used),
    )


def _starts(group: GroupStep, form: CacheForm) -> list[int]:
    """Where each request's tokens begin in their buffer: rooms that stay where they are, or packed."""
    if form is KV_GPU:
        region = group.cache.regions[form]
        return [region.start + member * region.capacity for member in group.members]
    first = {KV_HOST: group.kv_slot, ACT_HOST: group.act_slot, ACT_GPU: group.rebuilt_gpu}[form]
    return [first + row * group.padded(form) for row in range(group.rows)]


def _new_tokens(view: StepView, form: CacheForm, tensor: Maker) -> NewTokens | None:
    groups = [g for g in view.groups if g.new_form is form]
    if not groups:
        return None
    places: list[int] = []
    for g in groups if form.on_gpu else ():
        region = g.cache.regions[form]
        places += [region.start + member * region.capacity + g.new_offset for member in g.members]
    return NewTokens(_rows(groups, view, tensor), tensor(places, torch.int64), groups[0].store)


def attend_ragged(
    model: ModelSpec,
    query: torch.Tensor,
    new_kv: torch.Tensor,
    step: RaggedStep,
    buffers: dict[CacheForm, torch.Tensor],
) -> torch.Tensor:
    """[R, d_q]: every new token's attention to its cached tokens, wherever they lie, and to itself.

    query [R, d_q]; new_kv [R, 2 d_kv]; buffers [tokens, 2 d_kv] of each form that `step` has segments of.
    """
    shaped = query.reshape(-1, model.kv_heads, model.gqa_group, model.head_dim)
    outs, stats = [], []
    for form, segments in step.segments.items():
        keys, values = _heads(model, buffers[form])
        mine = shaped if segments.rows is None else shaped[segments.rows]
        out, lse = _attend(mine, keys, values, segments)
        if segments.rows is not None:  # the others have nothing here: a weight of exp(-inf)
            out = torch.zeros_like(shaped).index_copy_(0, segments.rows, out)
            lse = lse.new_full(shaped.shape[:3], -torch.inf).index_copy_(0, segments.rows, lse)
        outs.append(out)
        stats.append(lse)
    keys, values = _heads(model, new_kv)
    own, lse = attend_self(shaped, keys.unsqueeze(2), values.unsqueeze(2))
    return merge_at_once([*outs, own], [*stats, lse]).reshape(query.shape)


def _heads(model: ModelSpec, kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, 2 d_kv] as keys and values [T, kv_heads, head_dim], views both."""
    shaped = kv.unflatten(1, (2, model.kv_heads, model.head_dim))
    return shaped[:, 0], shaped[:, 1]


def merge_at_once(outs: list[torch.Tensor], stats: list[torch.Tensor]) -> torch.Tensor:
    """Softmax over all parts together, in fp32, in the same few kernels however many there are."""
    weights = torch.softmax(torch.stack(stats), 0).unsqueeze(-1)
    return (torch.stack(outs).float() * weights).sum(0).to(outs[0].dtype)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, segments: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [n, kv_heads, group, head_dim]; returns the same shape and the log-sum-exp, fp32 [n, kv_heads, group]."""
    if query.device.type == "cpu":
        return _one_by_one(query, keys, values, segments)
    if query.dtype == torch.float32 or torch.cuda.get_device_capability(query.device) < FLASH_CAPABILITY:
        return _efficient(query, keys, values, segments)
    n, kv_heads, group, _ = query.shape
    first = torch.arange(n + 1, dtype=torch.int32, device=query.device)
    found = varlen_attn(
        query.flatten(1, 2), keys, values, first, segments.starts, 1, segments.longest,
        return_aux=AuxRequest(lse=True), enable_gqa=group > 1, seqused_k=segments.used,
    )  # fmt: skip
    out, lse = found  # lse [heads, n]
    return out.view_as(query), lse.t().reshape(n, kv_heads, group)


def _efficient(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, segments: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel for fp32 and for older cards: heads that share K and V are queries of one sequence."""
    n, kv_heads, group, head_dim = query.shape
    first = torch.arange(0, (n + 1) * group, group, dtype=torch.int32, device=query.device)
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        query.transpose(1, 2).reshape(1, n * group, kv_heads, head_dim), keys.unsqueeze(0), values.unsqueeze(0), None,
        first, segments.starts, group, segments.longest, 0.0, 0, True, seqlen_k=segments.used,
    )  # fmt: skip
    shaped = out.view(n, group, kv_heads, head_dim).transpose(1, 2)
    return shaped, lse[..., :group]  # this kernel pads the statistics


def _one_by_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, segments: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernels compute, request by request: the CPU has none that takes them together."""
    parts = [
        attend_segment(one.unsqueeze(0), _sequence(keys, start, used), _sequence(values, start, used))
        for one, start, used in zip(query, segments.starts.tolist(), segments.used.tolist(), strict=False)
    ]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _sequence(tokens: torch.Tensor, start: int, used: int) -> torch.Tensor:
    """[1, kv_heads, used, head_dim] of one request."""
    return tokens[start : start + used].transpose(0, 1).unsqueeze(0)
