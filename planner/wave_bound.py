"""A lower bound on the time of a job over every way to cut it into waves: a linear program over averages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import ceil, floor, inf

import numpy as np

from planner.bins import lower_envelope
from planner.epochs import Epoch
from planner.forms import BLOCK_TOKENS
from planner.memory import TOKEN_BYTES
from planner.search import Search
from planner.split_problem import Floats
from planner.split_solver import solve
from planner.wave_program import Bound, Kind, Load, Program, Step
from planner.workload import Workload

MAX_LINES = 24
"""Supporting lines of the compute envelope; fewer weaken the bound a little and never invalidate it."""
SMALLEST_RANGE = 16
"""Requests of a wave up to which it is of one kind."""
COARSE_EPOCHS = 6
"""Of a bound that only says which cuts to try."""


class WaveBound:
    """Bounds for one job. Proof that `of` is a lower bound for every partition of the requests into waves:

    Take any plan in waves, and for decode step s the waves that still decode then. Sum each of its quantities (waves,
    requests, blocks by form, resident and streamed layers, bytes of slots, seconds) over those waves, and average over
    the steps of an epoch. These sums are a point of the program:

    1. What requests need in step s (rows, blocks, context) depends on no partition: a request is in its own step s
       whichever wave it runs in. So the totals are data, and the sums meet the equalities.
    2. Memory, slots and step times bind every wave and step by constraints that are linear in the wave's quantities
       and its number, 1, of waves. Sums of linear constraints hold for the sums: "outer + W r + ... <= capacity"
       becomes "outer a + W r + ... <= capacity a", with a the number of waves. Convex costs (compute by rows) enter by
       their supporting lines, linear too. Weights cross the link once per wave and step: the term L a - r.
    3. Where no request can have ended (`full` epochs), the waves alive are all waves: a, residents and memory are the
       same variables there. In later epochs they are at most those, and at least one is left.
    4. Waves are sorted into kinds by their number of mini-batches, [lo, hi], where that is 1 by their number of
       requests, too, and by whether any layer streams; each kind has its own sums, and only the totals over kinds are
       data. Within a kind a slot holds at least n / hi,
       compute costs at least lo calls, and a weight slot holds what streams of a layer, in the mean at least.
    5. Prefill: the sum over waves of max(compute, link) is at least either sum; every wave loads what it streams
       at least once. Early transfers: at most what the weight slots hold, once in each wave.
    6. Requests do not come in parts: with `together` the most equal requests that one wave holds, no wave holds more,
       so there are at least requests / `together` waves, rounded up.

    The number of waves is a variable in [fewest, most], so a bound holds for a whole range; resident layers are
    relaxed to real numbers. For equal requests every epoch is full and the program is exact but for the rounding of
    blocks, layers and mini-batches, and for waves of different kinds, which it mixes freely.
    """

    def __init__(self, search: Search, coarse: bool = False) -> None:
        """`coarse`: in fewer epochs and kinds of waves: a few thousandths weaker, and found several times sooner."""
        search = search.coarser(COARSE_EPOCHS) if coarse else search
        self.search, self.costs, self.forms, self.options = search, search.costs, search.forms, search.options
        self.problem = search.relaxed(1, len(search.requests))
        self.epochs: Sequence[Epoch] = search.epochs
        first_end = int(search.classes.gen.min()) - 1
        self.full = [epoch.last <= first_end for epoch in self.epochs]
        most = min(self.together, int(self.most_blocks) + 1)
        # Of requests that differ, programs are large: few kinds of waves with many mini-batches are enough.
        doubled = inf if len(search.classes.count) == 1 else 2 if coarse else 4
        ranges = _ranges(most, search.options.mini_batches, doubled)
        self._envelopes: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        self.kinds = [
            Kind(low, high, requests, streams) for streams in (True, False) for low, high in ranges
            for requests in (_sizes(self.together) if high == 1 and not coarse else [(low, self.together)])
            if low <= self.together
        ]  # fmt: skip
        bins = {pair: search.relaxed(*pair).bins[0] for pair in ranges}
        self.bins = [bins[kind.fewest, kind.most] for kind in self.kinds]

    @cached_property
    def most_blocks(self) -> float:
        """Blocks that a wave can hold at most."""
        hardware, model = self.costs.hardware, self.costs.model
        rooms = {True: hardware.gpu.budget_bytes - model.outer_bytes, False: hardware.host.budget_bytes}
        fits = 0.0
        for on_gpu, room in rooms.items():
            sizes = [form.block_bytes(model) for form in self.forms if form.on_gpu == on_gpu]
            fits += max(room, 0) / min(sizes) if sizes else 0.0
        return min(fits, self.search.average.whole.final_blocks)

    @cached_property
    def together(self) -> int:
        """Requests that one wave holds at most, where all are equal; all of them where they differ."""
        low, high = 0, len(self.search.requests)
        if len(self.search.classes.count) > 1 or self._holds(high):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._holds(middle) else (low, middle)
        return low

    def _holds(self, count: int) -> bool:
        job = Workload(self.search.requests[:count])
        part = Search(self.costs, job, self.forms, self.options)
        return solve(part.relaxed(1, count)) is not None

    @property
    def fewest_waves(self) -> int:
        """No cut has fewer."""
        return -(-len(self.search.requests) // self.together)

    @property
    def fewest_by_blocks(self) -> int:
        """No cut has fewer, since none of its waves holds more blocks than both memories."""
        return ceil(self.search.average.whole.final_blocks / max(self.most_blocks, 1.0))

    def of(self, fewest: int, most: int) -> Bound | None:
        """The bound for `fewest` to `most` waves; None when memory does not hold any such cut."""
        least = max(fewest, self.fewest_waves) if self.together else most + 1
        return self._program.least(least, most) if least <= most else None

    def of_whole(self, fewest: int, most: int) -> Bound | None:
        """The same for whole numbers of waves, the two on either side of where the relaxation is best."""
        best = self.of(fewest, most)
        if best is None or best.waves % 1 == 0:
            return best
        sides = (self.of(fewest, floor(best.waves)), self.of(ceil(best.waves), most))
        found = min((side for side in sides if side), key=lambda side: side.total_s, default=best)
        return max(best, found, key=lambda one: one.total_s)  # where the solver gave one of them up

    @cached_property
    def _program(self) -> Program:
        return Program(self)

    # ---- data of the program ---------------------------------------------------------------------

    def load(self, epoch: Epoch | None) -> Load:
        """Of the requests alive in `epoch`; of all where it is None."""
        c = self.search.classes
        share = c.during(epoch).steps / epoch.steps if epoch else np.ones(len(c.count))
        on = share > 0
        final = -(-(c.prompt + c.gen - 1) // BLOCK_TOKENS)
        return Load(
            requests=float(c.count @ share),
            final=float((c.count * share) @ final),
            final_each=(float(final[on].min()), float(final[on].max())),
            token_ids_each=float(TOKEN_BYTES * (c.prompt + c.gen)[on].min()),
            prompt_least=int(c.prompt[on].min()),
        )

    def step(self, epoch: Epoch, index: int) -> Step:
        """Of the requests alive in `epoch`, averaged over its steps."""
        c = self.search.classes
        alive = c.during(epoch)
        on = alive.steps > 0
        blocks: tuple[Floats, Floats]
        context: tuple[Floats, Floats]
        if self.full[index]:  # all are alive throughout: the average over the steps is a number for each request
            blocks = (alive.block_steps[on] / alive.steps[on],) * 2
            context = (alive.token_steps[on] / alive.steps[on],) * 2
        else:
            context = (alive.shortest[on].astype(float), alive.longest[on].astype(float))
            blocks = (np.ceil(context[0] / BLOCK_TOKENS), np.ceil(context[1] / BLOCK_TOKENS))
        demand = self.search.average.whole
        return Step(
            blocks=float(demand.blocks[index]),
            blocks_each=(float(blocks[0].min()), float(blocks[1].max())),
            context=float(demand.cached_tokens[index]),
            context_each=(float(context[0].min()), float(context[1].max())),
            prompt_blocks=float((c.count * alive.steps) @ -(-c.prompt // BLOCK_TOKENS)) / epoch.steps,
        )

    def compute_lines(self, fewest: int, most: int) -> list[tuple[float, float]]:
        """(per mini-batch, per request) seconds of a step beside attention and rebuilding: all are lower bounds for
        mini-batches of `fewest` to `most` requests."""
        if (fewest, most) not in self._envelopes:
            known = (fewest, most) == (1, len(self.search.requests))
            found = self.search.average.envelope if known else lower_envelope(self.costs, fewest, most)
            self._envelopes[fewest, most] = found
        rows, seconds = self._envelopes[fewest, most]
        if len(rows) == 1:
            return [(0.0, float(seconds[0] / rows[0]))]
        stride = -(-(len(rows) - 1) // MAX_LINES)
        lines = []
        for i in range(0, len(rows) - 1, stride):
            slope = float((seconds[i + 1] - seconds[i]) / (rows[i + 1] - rows[i]))
            lines.append((float(seconds[i] - slope * rows[i]), slope))
        return lines

    def attention_s_per_token(self, kind: Kind) -> float:
        """All layers, at the best rate of any call on a mini-batch of such a wave."""
        achieved, model = self.costs.hardware.gpu.achieved, self.costs.model
        average = self.search.average
        most = (self.most_blocks / kind.fewest + average.largest) / average.smallest
        best = achieved.decode_attention_bytes_per_s_by_context.best_within(min(most, kind.requests[1]))
        shared = 1 + (model.gqa_group - 1) * achieved.attention_group_cost.value
        layer = achieved.engine_slowdown.forward.value * model.kv_bytes_per_token_layer / best * shared
        return model.layers * layer


def _ranges(most: int, fixed: int | None, doubled: float) -> list[tuple[int, int]]:
    """Ranges of the number of mini-batches in a wave: 1, 2, each up to twice the one before as far as `doubled`, then
    up to four times that."""
    if fixed is not None:
        return [(1, fixed - 1), (fixed, fixed)] if fixed > 1 else [(1, 1)]
    ranges = [(1, 1)]
    while ranges[-1][1] < most:
        last = ranges[-1][1]
        ranges.append((last + 1, min((2 if last < doubled else 4) * last, most)))
    return ranges


def _sizes(most: int) -> list[tuple[int, int]]:
    """Ranges of the number of requests in a wave of one mini-batch, each up to twice the one before: compute
    of few rows is all latency and of many none, which a line from one to all would take for a mean of both."""
    ends = [0, min(SMALLEST_RANGE, most)]
    while ends[-1] < most:
        ends.append(min(2 * ends[-1], most))
    return [(low + 1, high) for low, high in pairwise(ends)]
