"""From the real numbers of a split to the form of every block of every request.

A request whose blocks all have one form is attended in one call, so requests are kept whole wherever that meets the
split: the prompts of a mini-batch are dealt request by request, and only the few left over are cut.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations
from math import floor

import numpy as np
import numpy.typing as npt

from planner.epochs import Epoch
from planner.forms import BLOCK_TOKENS, FORMS, CacheForm, blocks_for
from planner.placement import MiniBatch, RequestGroup
from planner.workload import Request

Floats = npt.NDArray[np.float64]
Targets = dict[tuple[CacheForm, int], float]
"""Blocks of one mini-batch by (form, epoch): only proportions count. The epoch after the last is the end."""
SLACK = 1e-6
STICK = 0.02
"""Share of the blocks held that a form may miss before requests of another form begin blocks in it."""


def place_blocks(
    members: Sequence[int],
    requests: Sequence[Request],
    epochs: Sequence[Epoch],
    targets: Targets,
    gpu_limits: dict[CacheForm, int],
) -> MiniBatch:
    """Give every block of `members` a form so that in each epoch those still generating hold the targets' shares.

    `gpu_limits` are never passed, so rounding cannot exceed the GPU budget.
    """
    forms = _used_forms(targets)
    order = sorted(members, key=lambda r: (requests[r].gen_len, requests[r].prompt_len, r))
    prompts = {r: blocks_for(requests[r].prompt_len) for r in order}
    shares = _Shares(forms, targets, epochs)
    wanted = _whole_numbers(shares.at(0), sum(prompts.values()), gpu_limits)
    whole = _deal_requests(_held_by_epoch(order, requests, epochs), shares)
    of = _cut(dict(zip(order, whole, strict=True)), prompts, wanted)
    blocks = {r: [form for form in FORMS for _ in range(of[r].get(form, 0))] for r in order}
    _Appender(order, requests, shares, gpu_limits, blocks).run()
    return MiniBatch(_grouped(order, requests, blocks))


class _Shares:
    """What share of the blocks of living requests each form shall hold, by epoch."""

    def __init__(self, forms: list[CacheForm], targets: Targets, epochs: Sequence[Epoch]) -> None:
        self.forms = forms
        self._ends = [epoch.last for epoch in epochs]
        self._by_epoch = [self._of(targets, e) for e in range(max(e for _, e in targets) + 1)]

    def _of(self, targets: Targets, epoch: int) -> dict[CacheForm, float]:
        held = {f: max(targets.get((f, epoch), 0.0), 0.0) for f in self.forms}
        total = sum(held.values())
        return {f: x / total if total > SLACK else 1 / len(held) for f, x in held.items()}

    def epoch(self, step: int) -> int:
        """The epoch of a decode step; the number of epochs after the last."""
        return bisect_left(self._ends, step)

    def at(self, epoch: int) -> dict[CacheForm, float]:
        """Shares that sum to 1; the last known ones for later epochs."""
        return self._by_epoch[min(epoch, len(self._by_epoch) - 1)]


def _used_forms(targets: Targets) -> list[CacheForm]:
    """Forms that hold anything, in table order, with the host twin of each GPU form for what rounding leaves over."""
    used = {form for (form, _), blocks in targets.items() if blocks > SLACK}
    if not any(not form.on_gpu for form in used):
        used |= {twin for form in used for twin in FORMS if twin.content == form.content}
    return [form for form in FORMS if form in used]


def _whole_numbers(shares: dict[CacheForm, float], total: int, limits: dict[CacheForm, int]) -> dict[CacheForm, int]:
    """Integers that sum to `total`, near `shares` of it, GPU forms within their limits."""
    exact = {f: share * total for f, share in shares.items()}
    whole = {f: min(floor(x + SLACK), limits.get(f, total)) if f.on_gpu else floor(x + SLACK) for f, x in exact.items()}
    while sum(whole.values()) < total:
        free = [f for f in shares if not f.on_gpu or whole[f] < limits.get(f, total)]
        form = max(free or shares, key=lambda f: exact[f] - whole[f])
        whole[form] += 1
    return whole


def _held_by_epoch(order: Sequence[int], requests: Sequence[Request], epochs: Sequence[Epoch]) -> Floats:
    """[members, epochs] blocks of each in the middle of an epoch, 0 once it has ended; prompts where none decodes."""
    prompt = np.array([[requests[r].prompt_len] for r in order])
    gen = np.array([[requests[r].gen_len] for r in order])
    middle = np.array([(epoch.first + epoch.last) // 2 for epoch in epochs] or [0])
    tokens = prompt + np.maximum(middle - 1, 0)
    return np.where((middle < gen) | (middle == 0), -(-tokens // BLOCK_TOKENS), 0).astype(float)


def _deal_requests(held: Floats, shares: _Shares) -> list[CacheForm]:
    """A form for each request, whole, so that in every epoch the living ones hold about the shares.

    From the longest-lived on, each takes the form that lacks most in the epochs in which it lives, each epoch counted
    in parts of what lives then.
    """
    living = held.sum(axis=0)
    weight = held / np.maximum(living, 1.0)
    wanted = np.array([[shares.at(e)[f] for e in range(held.shape[1])] for f in shares.forms])
    lacking = wanted * living
    found: list[CacheForm] = []
    for r in range(len(held) - 1, -1, -1):
        form = int((lacking @ (weight[r] / np.maximum(living, 1.0))).argmax())
        lacking[form] -= held[r]
        found.append(shares.forms[form])
    return found[::-1]


def _cut(
    whole: dict[int, CacheForm], prompts: dict[int, int], wanted: dict[CacheForm, int]
) -> dict[int, dict[CacheForm, int]]:
    """Prompt blocks of each request by form: `wanted` in all, cutting as few requests as that takes."""
    given = dict.fromkeys(wanted, 0)
    of: dict[int, dict[CacheForm, int]] = {}
    for r, form in whole.items():
        given[form] += prompts[r]
        of[r] = {form: prompts[r]}
    over = {form: given[form] - number for form, number in wanted.items()}
    for form, other in permutations(wanted, 2):
        for r in sorted((r for r in of if of[r].get(form, 0)), key=lambda r: -of[r][form]):
            if not over[form] > 0 > over[other]:
                break
            moved = min(over[form], -over[other], of[r][form])
            of[r][form] -= moved
            of[r][other] = of[r].get(other, 0) + moved
            over[form] -= moved
            over[other] += moved
    return of


class _Appender:
    """Deals the blocks that begin while decoding, in time order."""

    def __init__(
        self, order: Sequence[int], requests: Sequence[Request], shares: _Shares, limits: dict[CacheForm, int],
        blocks: dict[int, list[CacheForm]],
    ) -> None:  # fmt: skip
        self._requests, self._shares, self._limits, self._blocks = requests, shares, limits, blocks
        self._ending = list(reversed(order))
        self._placed: Counter[CacheForm] = Counter(form for r in order for form in blocks[r])
        self._alive = Counter(self._placed)
        alike: dict[tuple[int, int, tuple[CacheForm, ...]], list[int]] = defaultdict(list)
        for r in order:
            alike[requests[r].prompt_len, requests[r].gen_len, tuple(blocks[r])].append(r)
        self._alike = list(alike.items())

    def run(self) -> None:
        """Alike requests stay alike, to be attended in one call."""
        for step, n in sorted(self._begun()):
            self._end_before(step + 1)
            group = self._alike[n][1]
            # A block begun at step t is read from step t + 1 on.
            form = self._next_form(self._shares.epoch(step + 1), len(group), self._blocks[group[0]][-1])
            self._placed[form] += len(group)
            self._alive[form] += len(group)
            for request in group:
                self._blocks[request].append(form)

    def _begun(self) -> Iterator[tuple[int, int]]:
        """(step, number of the alike requests) of every block: step t stores token prompt + t - 1."""
        for n, ((prompt, gen, _), _) in enumerate(self._alike):
            for block in range(blocks_for(prompt), blocks_for(prompt + gen - 1)):
                yield block * BLOCK_TOKENS - prompt + 1, n

    def _end_before(self, step: int) -> None:
        """Forget the blocks of requests that are not read in `step` any more."""
        while self._ending and self._requests[self._ending[-1]].gen_len - 1 < step:
            ended = self._ending.pop()
            self._alive.subtract(self._blocks[ended])

    def _next_form(self, epoch: int, more: int, own: CacheForm) -> CacheForm:
        """The form for `more` blocks: that of their requests so far, unless another falls too far below its share."""
        forms = self._shares.forms
        allowed = [f for f in forms if not f.on_gpu or self._placed[f] + more <= self._limits.get(f, 0)] or forms
        total = self._alive.total() + more
        behind = {f: self._shares.at(epoch)[f] * total - self._alive[f] for f in allowed}
        neediest = max(allowed, key=lambda f: behind[f])
        keeps = own in behind and behind[neediest] - behind[own] <= more + STICK * total
        return own if keeps else neediest


def _grouped(
    members: Sequence[int], requests: Sequence[Request], blocks: dict[int, list[CacheForm]]
) -> tuple[RequestGroup, ...]:
    alike: dict[tuple[int, int, tuple[CacheForm, ...]], list[int]] = defaultdict(list)
    for r in members:
        alike[requests[r].prompt_len, requests[r].gen_len, tuple(blocks[r])].append(r)
    return tuple(RequestGroup(tuple(rs), p, g, b) for (p, g, b), rs in alike.items())
