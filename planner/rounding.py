"""From the real numbers of a split to the form of every block of every request."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from math import floor

from planner.epochs import Epoch
from planner.forms import BLOCK_TOKENS, FORMS, CacheForm, blocks_for
from planner.placement import MiniBatch, RequestGroup
from planner.workload import Request

Targets = dict[tuple[CacheForm, int], float]
"""Blocks of one mini-batch by (form, epoch), those of ended requests included; the epoch after the last is the end."""
SLACK = 1e-6


def place_blocks(
    members: Sequence[int],
    requests: Sequence[Request],
    epochs: Sequence[Epoch],
    targets: Targets,
    gpu_limits: dict[CacheForm, int],
) -> MiniBatch:
    """Give every block of `members` a form so that at each epoch the mini-batch holds its targets.

    Blocks are placed in the order in which they come to be, each in the form furthest below its target;
    `gpu_limits` are never passed, so rounding cannot exceed the GPU budget.
    """
    forms = _used_forms(targets)
    held: dict[CacheForm, int] = defaultdict(int)
    blocks: dict[int, list[CacheForm]] = {}
    prompts = {r: blocks_for(requests[r].prompt_len) for r in members}
    _place_prompts(members, prompts, forms, targets, gpu_limits, held, blocks)
    last = max(e for _, e in targets)
    for e, wave in _appended(members, requests, epochs):
        # Requests whose blocks have the same forms are attended in one call, so alike ones stay alike.
        form = _neediest(forms, held, targets, min(e, last), gpu_limits, len(wave))
        held[form] += len(wave)
        for request in wave:
            blocks[request].append(form)
    return MiniBatch(_grouped(members, requests, blocks))


def _used_forms(targets: Targets) -> list[CacheForm]:
    """Forms that hold anything, in table order, with the host twin of each GPU form for what rounding leaves over."""
    used = {form for (form, _), blocks in targets.items() if blocks > SLACK}
    if not any(not form.on_gpu for form in used):
        used |= {twin for form in used for twin in FORMS if twin.content == form.content}
    return [form for form in FORMS if form in used]


def _place_prompts(
    members: Sequence[int], prompts: dict[int, int], forms: list[CacheForm], targets: Targets,
    gpu_limits: dict[CacheForm, int], held: dict[CacheForm, int], blocks: dict[int, list[CacheForm]],
) -> None:  # fmt: skip
    """Shares of the first epoch, scaled to the prompts, dealt evenly over requests."""
    total = sum(prompts.values())
    wanted = _whole_numbers({f: targets.get((f, 0), 0.0) for f in forms}, total, gpu_limits)
    left = dict(wanted)
    free = dict(prompts)
    given: dict[int, dict[CacheForm, int]] = {r: defaultdict(int) for r in members}
    for form in forms:
        room = sum(free.values())
        for r in members:
            # Of what this and the following requests can still take, this one's fair share, rounded up.
            share = min(free[r], -(-left[form] * free[r] // room) if room else 0, left[form])
            room -= free[r]
            given[r][form] += share
            free[r] -= share
            left[form] -= share
    for r in members:
        blocks[r] = [form for form in forms for _ in range(given[r][form])]
    for form in forms:
        held[form] = wanted[form]


def _whole_numbers(targets: dict[CacheForm, float], total: int, limits: dict[CacheForm, int]) -> dict[CacheForm, int]:
    """Integers that sum to `total`, near `targets` scaled to it, GPU forms within their limits."""
    scale = total / max(sum(targets.values()), SLACK)
    exact = {f: targets[f] * scale for f in targets}
    whole = {f: min(floor(x + SLACK), limits.get(f, total)) if f.on_gpu else floor(x + SLACK) for f, x in exact.items()}
    while sum(whole.values()) < total:
        free = [f for f in targets if not f.on_gpu or whole[f] < limits.get(f, total)]
        form = max(free or targets, key=lambda f: exact[f] - whole[f])
        whole[form] += 1
    return whole


def _appended(
    members: Sequence[int], requests: Sequence[Request], epochs: Sequence[Epoch]
) -> list[tuple[int, list[int]]]:
    """(epoch, requests that begin a block), in time order; requests of other lengths make a wave of their own."""
    waves: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for r in members:
        prompt, gen = requests[r].prompt_len, requests[r].gen_len
        for block in range(blocks_for(prompt), blocks_for(prompt + gen - 1)):
            waves[block * BLOCK_TOKENS - prompt + 1, prompt, gen].append(r)  # step t stores token prompt + t - 1
    ends = [epoch.last for epoch in epochs]
    # A block begun at step t is read from step t + 1 on.
    return [(bisect_left(ends, step + 1), waves[step, prompt, gen]) for step, prompt, gen in sorted(waves)]


def _neediest(
    forms: list[CacheForm], held: dict[CacheForm, int], targets: Targets, e: int, limits: dict[CacheForm, int],
    more: int,
) -> CacheForm:  # fmt: skip
    """The form for `more` blocks: the one whose share falls furthest below its target share at epoch `e`."""
    allowed = [f for f in forms if not f.on_gpu or held[f] + more <= limits.get(f, 0)]
    total = (sum(held.values()) + more) / max(sum(targets.get((f, e), 0.0) for f in forms), SLACK)
    return max(allowed or forms, key=lambda f: targets.get((f, e), 0.0) * total - held[f])


def _grouped(
    members: Sequence[int], requests: Sequence[Request], blocks: dict[int, list[CacheForm]]
) -> tuple[RequestGroup, ...]:
    alike: dict[tuple[int, int, tuple[CacheForm, ...]], list[int]] = defaultdict(list)
    for r in members:
        alike[requests[r].prompt_len, requests[r].gen_len, tuple(blocks[r])].append(r)
    return tuple(RequestGroup(tuple(rs), p, g, b) for (p, g, b), rs in alike.items())
