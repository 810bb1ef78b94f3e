"""Bins of the split problem: exact ones for chosen mini-batches, and an average one that bounds every choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import inf

import numpy as np
import numpy.typing as npt

from planner.best_rates import BestRates
from planner.costs import CostModel
from planner.curve import Surface
from planner.epochs import Classes, Epoch, demand_of, demands_of, total
from planner.forms import BLOCK_TOKENS
from planner.split_problem import Bin, Floats
from planner.workload import Request

MAX_BINS = 4
"""More different mini-batches than these are taken as one bin of average ones, and any that differ where more
generation lengths than these multiply the variables: mini-batches are levelled, and deal alike."""
FINE = 64
"""Classes up to which rates are looked up at every context as it is; of more, at ones rounded up by a few percent."""
STEP = 1.05
REBUILT = (4, 8, 16, 32)
"""Blocks whose rebuilding is priced, beside all: fewer take about as long as the first, more are as fast as all."""


def exact_bins(
    costs: CostModel, requests: Sequence[Request], epochs: Sequence[Epoch], batches: Sequence[Sequence[int]]
) -> tuple[tuple[Bin, ...], list[list[int]]]:
    """Bins of the given mini-batches, and which mini-batches each bin stands for."""
    alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for index, members in enumerate(batches):
        alike[tuple(sorted((requests[r].prompt_len, requests[r].gen_len) for r in members))].append(index)
    found = [(_exact_bin(costs, lengths, epochs, len(indices)), indices) for lengths, indices in alike.items()]
    if len(found) > (MAX_BINS if len({gen for lengths in alike for _, gen in lengths}) <= MAX_BINS else 1):
        return (_together([one for one, _ in found]),), [list(range(len(batches)))]
    return tuple(one for one, _ in found), [indices for _, indices in found]


def _exact_bin(costs: CostModel, lengths: Sequence[tuple[int, int]], epochs: Sequence[Epoch], count: int) -> Bin:
    """`count` mini-batches of requests of these lengths."""
    classes, layers = Classes.of(lengths), costs.model.layers
    demands, attention = demands_of(classes, epochs), Attention(costs, classes, epochs)
    one = total(demands)
    alive = np.minimum(one.rows, 1.0)
    beside = np.array([_between_rows(costs, rows) for rows in one.rows])
    call_s = layers * costs.hardware.gpu.achieved.attention_call_s.value
    blocks = max(round(one.final_blocks), 1)
    return Bin(
        count=count,
        demands=tuple(demand.scaled(count) for demand in demands),
        compute_s=count * (beside + layers * (attention.seconds() + attention.further_s(1))),
        rebuild_s_per_block=layers * costs.rebuild(blocks).seconds / blocks,
        rebuild_floors=tuple((count * fixed, slope) for fixed, slope in _rebuild_floors(costs, blocks)),
        link_s_per_block=layers * costs.hardware.link.latency_s.value / blocks,
        largest=one.final_blocks,
        call_s=count * alive * call_s,
        peak=_peak(classes, epochs, one.blocks),
    )


def _rebuild_floors(costs: CostModel, blocks: int) -> list[tuple[float, float]]:
    """(seconds, seconds per block), all layers: lines through the lower hull of what rebuilding some of the `blocks` of
    a mini-batch takes."""
    sizes = [*(n for n in REBUILT if n < blocks), blocks]
    hull = _lower_hull([(float(n), costs.model.layers * costs.rebuild(n).seconds) for n in sizes])
    slopes = [((y2 - y1) / (x2 - x1), x1, y1) for (x1, y1), (x2, y2) in pairwise(hull)]
    return [(y - slope * x, slope) for slope, x, y in slopes]


def _peak(classes: Classes, epochs: Sequence[Epoch], mean: Floats) -> Floats:
    """[epochs] blocks in the first or last step of an epoch, whichever has more, over the mean; at least 1."""
    at = [max(_blocks_in(classes, step) for step in (epoch.first, epoch.last)) for epoch in epochs]
    return np.array([max(most / some, 1.0) if some else 1.0 for most, some in zip(at, mean, strict=True)])


def _blocks_in(classes: Classes, step: int) -> float:
    """Blocks of the requests that are still generating in a decode step."""
    return float((classes.count * -(-(classes.prompt + step - 1) // BLOCK_TOKENS)) @ (classes.gen > step))


def _together(bins: Sequence[Bin]) -> Bin:
    """One bin of all of them: sums, and means weighted by blocks."""
    blocks = np.array([part.demand.final_blocks for part in bins])
    fullest = max(bins, key=lambda part: part.largest)
    count = sum(part.count for part in bins)
    return Bin(
        count=count,
        demands=tuple(total(alike) for alike in zip(*(part.demands for part in bins), strict=True)),
        compute_s=np.sum([part.compute_s for part in bins], axis=0),
        rebuild_s_per_block=float(blocks @ [part.rebuild_s_per_block for part in bins] / blocks.sum()),
        link_s_per_block=float(blocks @ [part.link_s_per_block for part in bins] / blocks.sum()),
        rebuild_floors=tuple((count / fullest.count * fixed, slope) for fixed, slope in fullest.rebuild_floors),
        largest=max(part.largest for part in bins),
        call_s=np.sum([part.call_s for part in bins], axis=0),
        peak=np.max([part.peak for part in bins], axis=0),
    )


def _between_rows(costs: CostModel, rows: float) -> float:
    """Seconds of a step beside attention and rebuilding for a mean number of rows, all layers."""
    low = int(rows)
    at_low = _beside_attention(costs, low) if low else 0.0
    share = rows - low
    return at_low + share * (_beside_attention(costs, low + 1) - at_low) if share else at_low


def _beside_attention(costs: CostModel, rows: int) -> float:
    step = costs.model.layers * costs.decode_forward(rows, 0).seconds
    return step + costs.embed(rows).seconds + costs.sample(rows).seconds


@dataclass(frozen=True)
class Attention:
    """Decode attention of classes of requests, one layer. What it costs per step, as a mean over each epoch."""

    costs: CostModel
    classes: Classes
    epochs: Sequence[Epoch]

    def seconds(self, most: float | None = None, tokens: float = inf) -> Floats:
        """[epochs] one call, or one for each class where calls take only equal requests; with `most`, no less than any
        calls of at most so many requests and cached tokens each."""
        return self._ragged_s(most, tokens) if self.costs.ragged else self._by_class_s(most)

    @property
    def _table(self) -> Surface:
        return self.costs.hardware.gpu.achieved.decode_attention_bytes_per_s_by_context

    @property
    def _per_token(self) -> float:
        """Bytes per second and byte per second: what a token takes at a rate of 1."""
        achieved = self.costs.hardware.gpu.achieved
        shared = achieved.shared_attention(self.costs.model.gqa_group)
        return achieved.engine_slowdown.forward.value * shared * self.costs.model.kv_bytes_per_token_layer

    @cached_property
    def _best(self) -> BestRates:
        return BestRates(self._table, float((self.classes.prompt + self.classes.gen).max()), self.classes.count.sum())

    def _ragged_s(self, most: float | None, most_tokens: float) -> Floats:
        """All requests in one call."""
        found = np.zeros(len(self.epochs))
        for e, epoch in enumerate(self.epochs):
            alive = self.classes.during(epoch)
            tokens = float(self.classes.count @ alive.token_steps) / epoch.steps
            if not tokens:
                continue
            rows = float(self.classes.count @ alive.steps) / epoch.steps
            if most is None:
                rate = self._table.at(tokens / rows, rows)
            else:
                longest, begun = float(alive.longest.max()), float(self.classes.count @ (alive.steps > 0))
                all_tokens = float(self.classes.count @ np.where(alive.steps > 0, alive.longest, 0))
                rate = self._best.up_to(longest, min(most, begun), min(most_tokens, all_tokens))
            found[e] = self._per_token * tokens / rate
        return found

    def _by_class_s(self, most: float | None) -> Floats:
        """A call for each class."""
        c, table, per_byte = self.classes, self._table, self._per_token
        together = c.count if most is None else np.minimum(c.count, max(most, 1.0))
        found = np.zeros(len(self.epochs))
        for e, epoch in enumerate(self.epochs):
            alive = c.during(epoch)
            on = alive.steps > 0
            tokens = (c.count * alive.token_steps)[on]
            # Rates may fall with the context, so a bound takes the best of any shorter one, too.
            context = (alive.token_steps[on] / alive.steps[on]) if most is None else alive.longest[on].astype(float)
            rates = _rates(table.at if most is None else table.best_up_to, context, together[on], len(c.count) > FINE)
            found[e] = per_byte * float((tokens / rates).sum()) / epoch.steps
        return found

    def further_s(self, most_batches: int) -> Floats:
        """[epochs] what the calls beyond the first of `most_batches` mini-batches cost, at least: requests of
        different lengths are attended in calls of their own where calls take only equal ones."""
        if self.costs.ragged:
            return np.zeros(len(self.epochs))
        achieved = self.costs.hardware.gpu.achieved
        each = achieved.attention_group_s.value + achieved.attention_call_s.value
        return each * np.clip(self._alive - most_batches, 0.0, None)

    @cached_property
    def _alive(self) -> Floats:
        """[epochs] mean number of classes still generating."""
        return np.array([float(self.classes.during(epoch).steps.sum()) / epoch.steps for epoch in self.epochs])


def _rates(
    rate: Callable[[float, float], float], context: Floats, together: npt.NDArray[np.generic], coarse: bool
) -> Floats:
    """[classes] bytes per second by (context, requests in a call)."""
    if coarse:
        context = STEP ** np.ceil(np.log(np.maximum(context, 1.0)) / np.log(STEP))
    pairs, where = np.unique(np.stack([context, together.astype(float)]), axis=1, return_inverse=True)
    return np.array([rate(size, second) for size, second in pairs.T])[where.ravel()]


class AverageBin:
    """The relaxation: one bin of average mini-batches, at the cheapest compute that any composition allows."""

    def __init__(
        self, costs: CostModel, classes: Classes, epochs: Sequence[Epoch], like: AverageBin | None = None
    ) -> None:
        """`like`: one of the same requests in other epochs."""
        self.costs = costs
        # As if all had one lifetime: a bound hardly rises with more of them, and is found in a third of the time.
        self.whole = demand_of(classes, epochs)
        positions = classes.prompt + classes.gen - 1
        final = -(-positions // BLOCK_TOKENS)
        self.largest, self.smallest = int(final.max()), int(final.min())
        self._requests = int(classes.count.sum())
        alive = [classes.during(epoch).steps / epoch.steps for epoch in epochs]
        self._living = [float((classes.count * final) @ share) for share in alive]
        self.envelope: tuple[Floats, Floats]
        self._rebuild_s: float
        self.envelope = like.envelope if like else lower_envelope(costs, 1, self._requests)
        self._rebuild_s = like._rebuild_s if like else _cheapest_rebuild(costs, int(self.whole.final_blocks) + 1)
        self._attention = Attention(costs, classes, epochs)
        self._attention_s = lru_cache(maxsize=None)(self._attention.seconds)

    def at(self, fewest: int, most: int) -> Bin:
        """A bin no dearer, and needing no larger slots, than any composition of `fewest` to `most` mini-batches."""
        layers = self.costs.model.layers
        # No mini-batch, and so no transfer or rebuild of one, is larger than the mean by more than one request.
        carried = self.whole.final_blocks / fewest + self.largest
        attention_s = self._attention_s(self._most_in_a_call(fewest), carried * BLOCK_TOKENS)
        compute = layers * (attention_s + self._attention.further_s(most))
        for e, rows in enumerate(self.whole.rows):
            if rows > 0:
                # Where requests have ended, so may have whole mini-batches, but no more than held those that ended.
                least = fewest if rows >= self._requests else max(1.0, min(fewest, self._living[e] / carried))
                compute[e] += self._cheapest_cut(rows, least, most)
        hardware = self.costs.hardware
        return Bin(
            count=most,
            demands=(self.whole,),
            compute_s=compute,
            rebuild_s_per_block=layers * (self._rebuild_s + hardware.gpu.achieved.op_overhead_s.value / carried),
            link_s_per_block=layers * hardware.link.latency_s.value / carried,
            largest=self.whole.final_blocks / most,
            free_forms=most,
            peak=np.ones(len(compute)),
            call_s=np.full(len(compute), layers * hardware.gpu.achieved.attention_call_s.value),
        )

    def _most_in_a_call(self, fewest: int) -> float:
        """Requests: no composition gathers more blocks in a call than the mean, in the end, and one request more."""
        return min((self.whole.final_blocks / fewest + self.largest) / self.smallest, float(self._requests))

    def _cheapest_cut(self, rows: float, least: float, most: int) -> float:
        """min over k in [least, most] of k envelope(rows / k): linear in k between the corners of the envelope."""
        largest = min(float(most), max(rows, least))
        corners = [rows / x for x in self.envelope[0] if least < rows / x < largest]
        cuts = np.array([least, *corners, largest])
        return float((cuts * np.interp(rows / cuts, *self.envelope)).min())


def lower_envelope(costs: CostModel, fewest: int, most: int) -> tuple[Floats, Floats]:
    """Lower convex hull of the step time beside attention and rebuilding over rows fewest .. most.

    Convex, so the sum over mini-batches is least when rows are spread evenly. Every number of rows up to 512 is priced,
    of more a geometric sample.
    """
    sampled = sorted({*range(fewest, min(most, 512) + 1), *np.geomspace(fewest, most, 200).astype(int).tolist()})
    xs, ys = zip(*_lower_hull([(float(rows), _beside_attention(costs, rows)) for rows in sampled]), strict=True)
    return np.array(xs), np.array(ys)


def _lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the lower convex hull of points in ascending order."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) >= 2 and (hull[-1][1] - hull[-2][1]) * (x - hull[-1][0]) >= (y - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull


def _cheapest_rebuild(costs: CostModel, blocks: int) -> float:
    """Seconds per block and layer at the best row count up to `blocks`."""
    table = costs.hardware.gpu.gemm_rates(costs.model.dtype)
    sizes = {max(int(size) // BLOCK_TOKENS, 1) for size in table.sizes} | {blocks}
    overhead = costs.hardware.gpu.achieved.op_overhead_s.value
    return min((costs.rebuild(n).seconds - overhead) / n for n in sizes if n <= blocks)
