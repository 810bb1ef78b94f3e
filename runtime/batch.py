"""What one decode step of one mini-batch touches: which rows, which tokens of which form, and where in the slots."""

from __future__ import annotations

from dataclasses import dataclass

from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, KV_HOST, CacheForm
from planner.model import ModelSpec
from runtime.cache import GroupCache


@dataclass(frozen=True)
class GroupStep:
    """One group in one step. Offsets are in tokens of the slot, packed group after group."""

    cache: GroupCache
    first_row: int
    rows: int
    cached: int
    kv_slot: int
    act_slot: int
    rebuilt_gpu: int
    """Where K and V rebuilt from act@gpu begin; those from act@host lie where their activations lay."""
    new_form: CacheForm
    new_offset: int
    """Where in its room the new token goes."""
    store: int
    """Where in the store slot, in elements, its new tokens begin; unused when they stay on the GPU."""

    def blocks(self, form: CacheForm) -> int:
        return self.cache.blocks(form, self.cached)

    def tokens(self, form: CacheForm) -> int:
        return self.cache.tokens(form, self.cached)

    def padded(self, form: CacheForm) -> int:
        """Tokens of whole blocks: what a load moves per request."""
        return self.blocks(form) * BLOCK_TOKENS


@dataclass(frozen=True)
class StepView:
    """The active groups of a mini-batch in one step, finished ones left out."""

    groups: tuple[GroupStep, ...]
    rows: int
    act_slot_tokens: int
    """Activations staged from the host."""


def step_view(caches: list[GroupCache], step: int, model: ModelSpec) -> StepView:
    """Lay out decode step `step` (1, 2, ...) of a mini-batch."""
    active = [cache for cache in caches if cache.group.decode_steps >= step]
    act_total = sum(
        len(c.group.requests) * c.blocks(ACT_HOST, c.group.prompt_len + step - 1) * BLOCK_TOKENS for c in active
    )
    steps: list[GroupStep] = []
    row = kv = act = 0
    # New tokens of a form lie together, so that one copy can write them.
    stores = {KV_HOST: 0, ACT_HOST: sum(len(c.group.requests) for c in active if _new_form(c, step) is KV_HOST)}
    stores[ACT_HOST] *= KV_HOST.width(model)
    rebuilt_gpu = act_total
    for cache in active:
        rows, cached = len(cache.group.requests), cache.group.prompt_len + step - 1
        form, offset = cache.place_of(cached)
        store = stores.get(form, 0)
        steps.append(GroupStep(cache, row, rows, cached, kv, act, rebuilt_gpu, form, offset, store))
        row += rows
        kv += rows * cache.blocks(KV_HOST, cached) * BLOCK_TOKENS
        act += rows * cache.blocks(ACT_HOST, cached) * BLOCK_TOKENS
        rebuilt_gpu += rows * cache.blocks(ACT_GPU, cached) * BLOCK_TOKENS
        if form in stores:
            stores[form] += rows * form.width(model)
    return StepView(tuple(steps), row, act_total)


def _new_form(cache: GroupCache, step: int) -> CacheForm:
    """The form of the token that decode step `step` appends."""
    return cache.place_of(cache.group.prompt_len + step - 1)[0]
