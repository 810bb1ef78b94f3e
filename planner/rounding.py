"""From the real numbers of a split to the form of every block of every request.

A request whose blocks all have one form is attended in one call, so requests are kept whole wherever that meets the
split: the prompts of a mini-batch are dealt request by request, and only the few left over are cut.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby, permutations
from math import floor

import numpy as np
import numpy.typing as npt

from planner.epochs import Epoch, lifetime_of
from planner.forms import BLOCK_TOKENS, FORMS, CacheForm, blocks_for
from planner.placement import MiniBatch, RequestGroup
from planner.workload import Request

Floats = npt.NDArray[np.float64]
Targets = dict[tuple[int, CacheForm, int], float]
"""Blocks of one mini-batch by (lifetime, form, epoch): only proportions count. The epoch after the last is the end."""
SLACK = 1e-6
STICK = 0.02
"""Share of the blocks held that a form may miss before requests of another form begin blocks in it."""


def place_blocks(
    members: Sequence[int],
    requests: Sequence[Request],
    epochs: Sequence[Epoch],
    targets: Targets,
    gpu_limits: dict[CacheForm, int],
    whole: bool,
) -> MiniBatch:
    """Give every block of `members` a form so that in each epoch those still generating hold the targets' shares.

    `gpu_limits` are never passed, so rounding cannot exceed the GPU budget. `whole`: keep requests in one form where
    that meets the targets of all together, since each further form costs an attention call; otherwise requests of each
    lifetime hold about the shares of their own targets.
    """
    if whole:
        targets = _of_all_lifetimes(targets)
    used = _used_forms(targets)
    order = sorted(members, key=lambda r: (requests[r].gen_len, requests[r].prompt_len, r))
    life = dict.fromkeys(order, 0) if whole else {r: lifetime_of(requests[r].gen_len, epochs) for r in order}
    prompts = {r: blocks_for(requests[r].prompt_len) for r in order}
    shares = _Shares(used, targets, epochs)
    wanted = _prompt_blocks(prompts, life, shares, gpu_limits)
    if whole:
        dealt = _deal_requests(_held_by_epoch(order, requests, epochs), _middles(epochs), shares)
        of = _cut(dict(zip(order, dealt, strict=True)), prompts, wanted[0])
    else:
        of = _spread(prompts, life, wanted)
    blocks = {r: [form for form in FORMS for _ in range(of[r].get(form, 0))] for r in order}
    _Appender(order, requests, shares, life, gpu_limits, blocks, STICK if whole else 0.0).run()
    alike = _alike(order, requests, blocks).items()
    return MiniBatch(tuple(RequestGroup(tuple(rs), prompt, gen, forms) for (prompt, gen, forms), rs in alike))


def _of_all_lifetimes(targets: Targets) -> Targets:
    """Of those still generating in each epoch, and of all in the end."""
    found: Targets = defaultdict(float)
    for (_, form, epoch), blocks in targets.items():
        found[0, form, epoch] += blocks
    return dict(found)


class _Shares:
    """What share of the blocks of living requests of each lifetime each form shall hold, by decode step.

    A target is the mean over an epoch, so it is met in its middle; between two, and before the first, blocks go on as
    they do from one to the next.
    """

    def __init__(self, forms: list[CacheForm], targets: Targets, epochs: Sequence[Epoch]) -> None:
        self.forms = forms
        by_life: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0] * len(forms)))
        for (life, form, epoch), blocks in targets.items():
            if form in forms:
                by_life[life][epoch][forms.index(form)] = max(blocks, 0.0)
        self._nodes = {life: self._path(sorted(at.items()), epochs) for life, at in by_life.items()}
        self._at: dict[tuple[int, int], dict[CacheForm, float]] = {}

    def _path(self, targets: Sequence[tuple[int, list[float]]], epochs: Sequence[Epoch]) -> tuple[Floats, Floats]:
        """Steps in ascending order, and blocks [steps, forms] wanted at them."""
        known = [epochs[e] for e, _ in targets if e < len(epochs)]
        steps = [(epoch.first + epoch.last) / 2 for epoch in known]
        steps += [known[-1].last + 1.0 if known else 1.0] * (len(targets) - len(steps))
        blocks = np.array([held for _, held in targets])
        if len(steps) == 1:
            return np.array(steps), blocks
        slope = (blocks[1] - blocks[0]) / (steps[1] - steps[0])
        before = np.maximum(blocks[0] - np.maximum(slope, 0.0) * steps[0], 0.0)
        return np.array([0.0, *steps]), np.vstack([before, blocks])

    def table(self, life: int, steps: int) -> Floats:
        """[steps, forms] shares of every step from 0 on."""
        at, blocks = self._nodes[life]
        held = np.stack([np.interp(np.arange(steps), at, column) for column in blocks.T], axis=1)
        total = held.sum(axis=1, keepdims=True)
        return np.where(total > SLACK, held / np.where(total > SLACK, total, 1.0), 1 / len(self.forms))

    def at(self, life: int, step: int) -> dict[CacheForm, float]:
        """Shares that sum to 1. Step 0 is the end of prefill."""
        if (life, step) not in self._at:
            steps, blocks = self._nodes[life]
            held = [float(np.interp(step, steps, column)) for column in blocks.T]
            total = sum(held)
            of = [x / total if total > SLACK else 1 / len(held) for x in held]
            self._at[life, step] = dict(zip(self.forms, of, strict=True))
        return self._at[life, step]


def _used_forms(targets: Targets) -> list[CacheForm]:
    """Forms that hold anything, in table order, with the host twin of each GPU form for what rounding leaves over."""
    used = {form for (_, form, _), blocks in targets.items() if blocks > SLACK}
    if not any(not form.on_gpu for form in used):
        used |= {twin for form in used for twin in FORMS if twin.content == form.content}
    return [form for form in FORMS if form in used]


def _prompt_blocks(
    prompts: dict[int, int], life: dict[int, int], shares: _Shares, limits: dict[CacheForm, int]
) -> dict[int, dict[CacheForm, int]]:
    """Whole blocks of all prompts of each lifetime by form, near its shares at the end of prefill.

    GPU forms keep within their limits. What rounding owes a form in one lifetime is made good in the next."""
    totals: Counter[int] = Counter()
    for r, blocks in prompts.items():
        totals[life[r]] += blocks
    room = {f: limits.get(f, sum(totals.values())) for f in shares.forms if f.on_gpu}
    owed = dict.fromkeys(shares.forms, 0.0)
    found: dict[int, dict[CacheForm, int]] = {}
    for g, total in totals.items():
        exact = {f: share * total for f, share in shares.at(g, 0).items()}
        found[g] = _whole_numbers({f: max(x + owed[f], 0.0) for f, x in exact.items()}, total, room)
        for f, number in found[g].items():
            owed[f] += exact[f] - number
            if f.on_gpu:
                room[f] -= number
    return found


def _whole_numbers(exact: dict[CacheForm, float], total: int, room: dict[CacheForm, int]) -> dict[CacheForm, int]:
    """Integers that sum to `total`, near `exact`, GPU forms within their room."""
    whole: dict[CacheForm, int] = {}
    for f, x in exact.items():
        whole[f] = min(floor(x + SLACK), total - sum(whole.values()), room.get(f, total))
    while sum(whole.values()) < total:
        free = [f for f in exact if not f.on_gpu or whole[f] < room[f]]
        form = max(free or exact, key=lambda f: exact[f] - whole[f])
        whole[form] += 1
    return whole


def _held_by_epoch(order: Sequence[int], requests: Sequence[Request], epochs: Sequence[Epoch]) -> Floats:
    """[members, epochs] blocks of each in the middle of an epoch, 0 once it has ended; prompts where none decodes."""
    prompt = np.array([[requests[r].prompt_len] for r in order])
    gen = np.array([[requests[r].gen_len] for r in order])
    middle = np.array(_middles(epochs))
    tokens = prompt + np.maximum(middle - 1, 0)
    return np.where((middle < gen) | (middle == 0), -(-tokens // BLOCK_TOKENS), 0).astype(float)


def _middles(epochs: Sequence[Epoch]) -> list[int]:
    """The middle step of every epoch; the end of prefill where none decodes."""
    return [(epoch.first + epoch.last) // 2 for epoch in epochs] or [0]


def _deal_requests(held: Floats, middles: Sequence[int], shares: _Shares) -> list[CacheForm]:
    """A form for each request, whole, so that in every epoch the living ones hold about the shares.

    From the longest-lived on, each takes the form that lacks most in the epochs in which it lives, each epoch counted
    in parts of what lives then.
    """
    living = held.sum(axis=0)
    weight = held / np.maximum(living, 1.0)
    wanted = np.array([[shares.at(0, step)[f] for step in middles] for f in shares.forms])
    lacking = wanted * living
    found: list[CacheForm] = []
    for r in range(len(held) - 1, -1, -1):
        form = int((lacking @ (weight[r] / np.maximum(living, 1.0))).argmax())
        lacking[form] -= held[r]
        found.append(shares.forms[form])
    return found[::-1]


def _spread(
    prompts: dict[int, int], life: dict[int, int], wanted: dict[int, dict[CacheForm, int]]
) -> dict[int, dict[CacheForm, int]]:
    """Prompt blocks of each request by form, `wanted` of each lifetime, so that any of its requests hold about the
    same mix."""
    left = {g: dict(numbers) for g, numbers in wanted.items()}
    of: dict[int, dict[CacheForm, int]] = {}
    for r, blocks in prompts.items():
        rest = left[life[r]]
        total = sum(rest.values())
        of[r] = _whole_numbers({f: n * blocks / total for f, n in rest.items()}, blocks, rest)
        for f, n in of[r].items():
            rest[f] -= n
    return of


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
        self, order: Sequence[int], requests: Sequence[Request], shares: _Shares, life: dict[int, int],
        limits: dict[CacheForm, int], blocks: dict[int, list[CacheForm]], stick: float,
    ) -> None:  # fmt: skip
        self._requests, self._shares, self._life, self._stick = requests, shares, life, stick
        self._limits, self._blocks = limits, blocks
        self._ending = list(reversed(order))
        self._placed: Counter[CacheForm] = Counter(form for r in order for form in blocks[r])
        self._column = {form: i for i, form in enumerate(shares.forms)}
        self._row = {g: i for i, g in enumerate(sorted(set(life.values())))}
        self._alive = np.zeros((len(self._row), len(shares.forms)))
        """[lifetimes, forms] blocks of requests that still generate."""
        for r in order:
            np.add.at(self._alive[self._row[life[r]]], [self._column[form] for form in blocks[r]], 1.0)
        self._totals, self._held = self._alive.sum(axis=1), self._alive.sum(axis=0)
        self._alike = list(_alike(order, requests, blocks).items())
        # Where all requests begin their blocks together, what is held changes only then, so it must suit what follows.
        together = len({requests[r].prompt_len % BLOCK_TOKENS for r in order}) == 1
        self._ahead = BLOCK_TOKENS // 2 if together else 0
        steps = max(requests[r].gen_len for r in order) + self._ahead + 1
        self._wanted = np.stack([shares.table(g, steps) for g in self._row], axis=1)
        """[steps, lifetimes, forms] shares."""

    def run(self) -> None:
        """Alike requests stay alike, to be attended in one call."""
        for (step, mine), begun in groupby(sorted(self._begun()), key=lambda one: one[:2]):
            self._end_before(step + 1)
            # A block begun at step t is read from step t + 1 on.
            wanted, lacking = self._lacking(mine, step + 1 + self._ahead)
            begins = (self._wanted[step + 1 + self._ahead].max(axis=0) > SLACK).tolist()
            for _, _, n in begun:
                self._place(self._alike[n][1], mine, wanted, lacking, begins)

    def _place(
        self, group: Sequence[int], mine: int, wanted: Sequence[float], lacking: list[float], begins: Sequence[bool]
    ) -> None:
        """The next block of each of `group`; `lacking` is kept up to date."""
        more = len(group)
        counted = more * (2 if len(self._totals) > 1 else 1)
        for column, share in enumerate(wanted):
            lacking[column] += counted * share
        own = self._column[self._blocks[group[0]][-1]]
        column = self._next_column(own, more, self._totals[mine] + more, lacking, begins)
        form = self._shares.forms[column]
        lacking[column] -= counted
        self._placed[form] += more
        self._alive[mine, column] += more
        self._totals[mine] += more
        self._held[column] += more
        for request in group:
            self._blocks[request].append(form)

    def _begun(self) -> Iterator[tuple[int, int, int]]:
        """(step, lifetime, number of the alike requests) of every block: step t stores token prompt + t - 1."""
        for n, ((prompt, gen, _), members) in enumerate(self._alike):
            mine = self._row[self._life[members[0]]]
            for block in range(blocks_for(prompt), blocks_for(prompt + gen - 1)):
                yield block * BLOCK_TOKENS - prompt + 1, mine, n

    def _end_before(self, step: int) -> None:
        """Forget the blocks of requests that are not read in `step` any more."""
        while self._ending and self._requests[self._ending[-1]].gen_len - 1 < step:
            ended = self._ending.pop()
            columns = [self._column[form] for form in self._blocks[ended]]
            row, counts = self._row[self._life[ended]], np.bincount(columns, minlength=len(self._held))
            self._alive[row] -= counts
            self._totals[row] -= len(columns)
            self._held -= counts

    def _lacking(self, mine: int, step: int) -> tuple[list[float], list[float]]:
        """By form: the share wanted of one lifetime's blocks, and how many it lacks of that and of all together."""
        wanted = self._wanted[step]
        lacking = wanted[mine] * self._totals[mine] - self._alive[mine]
        if len(self._totals) > 1:
            lacking = lacking + self._totals @ wanted - self._held
        return wanted[mine].tolist(), lacking.tolist()

    def _next_column(self, own: int, more: int, total: float, lacking: Sequence[float], begins: Sequence[bool]) -> int:
        """The form for the next block of each of `more` alike requests: what is lacking most.

        They keep to that of their blocks so far, `own`, unless another falls too far below its share. A form that no
        lifetime wants yet (`begins`) is not begun for what rounding owes: its first block costs most.
        """
        forms = self._shares.forms
        fitting = [i for i, f in enumerate(forms) if not f.on_gpu or self._placed[f] + more <= self._limits.get(f, 0)]
        allowed = [i for i in fitting if begins[i]] or fitting or range(len(forms))
        neediest = max(allowed, key=lacking.__getitem__)
        slack = more + self._stick * total if self._stick else 0.0
        return own if own in allowed and lacking[neediest] - lacking[own] <= slack else neediest


_Alike = tuple[int, int, tuple[CacheForm, ...]]
"""Prompt and generation lengths, and the form of every block so far."""


def _alike(
    order: Sequence[int], requests: Sequence[Request], blocks: dict[int, list[CacheForm]]
) -> dict[_Alike, list[int]]:
    """Requests that one call attends."""
    found: dict[_Alike, list[int]] = defaultdict(list)
    for r in order:
        found[requests[r].prompt_len, requests[r].gen_len, tuple(blocks[r])].append(r)
    return found
