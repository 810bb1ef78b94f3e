"""What rounding left free of the GPU budget, filled with blocks that a plan keeps on the host."""

from __future__ import annotations

from dataclasses import replace

from planner.decisions import Decisions
from planner.forms import ACT_GPU, ACT_HOST, KV_GPU, KV_HOST, CacheForm
from planner.memory import ALIGNMENT
from planner.model import ModelSpec
from planner.placement import MiniBatch, RequestGroup

TWIN = {KV_HOST: KV_GPU, ACT_HOST: ACT_GPU}


def promoted(model: ModelSpec, decisions: Decisions, room_bytes: float, ragged: bool) -> Decisions:
    """The same with as many blocks moved to the GPU as `room_bytes` hold, those of the longest-lived requests first.

    A block on the GPU takes its bytes there and saves as many on the link in every step, whatever its form. None moves
    to a form that would cost an attention call of its own: one that its mini-batch does not use, or its requests do
    not, unless calls are `ragged` and take all requests.
    """
    room = room_bytes - ALIGNMENT * len(TWIN)
    order = sorted(
        ((m, g) for m, batch in enumerate(decisions.mini_batches) for g in range(len(batch.groups))),
        key=lambda at: -decisions.mini_batches[at[0]].groups[at[1]].gen_len,
    )
    groups = [list(batch.groups) for batch in decisions.mini_batches]
    in_use = [{form for group in some for form in group.blocks} for some in groups]
    for m, g in order:
        if room < ACT_GPU.block_bytes(model):
            break
        forms = in_use[m] if ragged else set(groups[m][g].blocks)
        groups[m][g], taken = _moved(model, groups[m][g], forms, room)
        room -= taken
    return replace(decisions, mini_batches=tuple(MiniBatch(tuple(some)) for some in groups))


def _moved(model: ModelSpec, group: RequestGroup, forms: set[CacheForm], room: float) -> tuple[RequestGroup, float]:
    """The group with its first host blocks moved, and the bytes that they take."""
    blocks, taken = list(group.blocks), 0.0
    for i, form in enumerate(blocks):
        twin = TWIN.get(form)
        nbytes = len(group.requests) * form.block_bytes(model)
        if twin in forms and taken + nbytes <= room:
            blocks[i] = twin
            taken += nbytes
    return (replace(group, blocks=tuple(blocks)), taken) if taken else (group, 0.0)
