"""What one decode step of one mini-batch touches: which rows, which tokens of which form, and where in the slots."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, KV_HOST, CacheForm
from planner.model import ModelSpec
from runtime.cache import GroupCache


class Run(NamedTuple):
    """Members of a group that follow each other and have not ended."""

    row: int
    """Of the group's rows, the first one that is theirs."""
    member: int
    rows: int


@dataclass(frozen=True)
class GroupStep:
    """One group in one step, without those who have ended. Offsets are in tokens of the slot, packed group after
    group."""

    cache: GroupCache
    runs: tuple[Run, ...]
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

    @property
    def members(self) -> list[int]:
        """Of the group, in row order."""
        return [member for run in self.runs for member in range(run.member, run.member + run.rows)]

    def blocks(self, form: CacheForm) -> int:
        return self.cache.blocks(form, self.cached)

    def tokens(self, form: CacheForm) -> int:
        return self.cache.tokens(form, self.cached)

    def padded(self, form: CacheForm) -> int:
        """Tokens of whole blocks: what a load moves per request."""
        return self.blocks(form) * BLOCK_TOKENS


@dataclass(frozen=True)
class StepView:
    """The requests of a mini-batch that take part in one step."""

    step: int
    groups: tuple[GroupStep, ...]
    requests: tuple[int, ...]
    """In row order."""
    act_slot_tokens: int
    """Activations staged from the host."""
    moved_bytes: dict[str, int]
    """What `load_act`, `load_kv` and `store` of one layer move."""

    @property
    def rows(self) -> int:
        return len(self.requests)


def step_view(
    caches: Sequence[GroupCache], step: int, model: ModelSpec, ended: Collection[int] = frozenset()
) -> StepView:
    """Lay out decode step `step` (1, 2, ...) of a mini-batch, without the requests in `ended`."""
    living = [(cache, _living(cache, ended)) for cache in caches if cache.group.decode_steps >= step]
    active = [(cache, runs, sum(run.rows for run in runs)) for cache, runs in living if runs]
    act_total = sum(n * c.blocks(ACT_HOST, _cached(c, step)) * BLOCK_TOKENS for c, _, n in active)
    steps: list[GroupStep] = []
    row = kv = act = 0
    # New tokens of a form lie together, so that one copy can write them.
    new_kv = sum(n for c, _, n in active if c.place_of(_cached(c, step))[0] is KV_HOST)
    stores = {KV_HOST: 0, ACT_HOST: new_kv * KV_HOST.width(model)}
    rebuilt_gpu, stored = act_total, 0
    for cache, runs, rows in active:
        cached = _cached(cache, step)
        form, offset = cache.place_of(cached)
        store = stores.get(form, 0)
        steps.append(GroupStep(cache, runs, row, rows, cached, kv, act, rebuilt_gpu, form, offset, store))
        row += rows
        kv += rows * cache.blocks(KV_HOST, cached) * BLOCK_TOKENS
        act += rows * cache.blocks(ACT_HOST, cached) * BLOCK_TOKENS
        rebuilt_gpu += rows * cache.blocks(ACT_GPU, cached) * BLOCK_TOKENS
        if form in stores:
            stores[form] += rows * form.width(model)
            stored += rows * form.token_bytes(model)
    requests = tuple(g.cache.group.requests[member] for g in steps for member in g.members)
    moved = {
        "load_act": act * ACT_HOST.token_bytes(model), "load_kv": kv * KV_HOST.token_bytes(model), "store": stored,
    }  # fmt: skip
    return StepView(step, tuple(steps), requests, act_total, moved)


def _cached(cache: GroupCache, step: int) -> int:
    """Tokens that are cached when decode step `step` begins: also the place of the one that it appends."""
    return cache.group.prompt_len + step - 1


def _living(cache: GroupCache, ended: Collection[int]) -> tuple[Run, ...]:
    """Members that have not ended, as runs of neighbours."""
    runs: list[Run] = []
    rows = 0
    for member, request in enumerate(cache.group.requests):
        if request in ended:
            continue
        if runs and runs[-1].member + runs[-1].rows == member:
            runs[-1] = runs[-1]._replace(rows=runs[-1].rows + 1)
        else:
            runs.append(Run(rows, member, 1))
        rows += 1
    return tuple(runs)
