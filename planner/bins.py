"""Bins of the split problem: exact ones for chosen mini-batches, and an average one that bounds every choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from planner.costs import CostModel
from planner.epochs import Classes, Epoch, demand_of
from planner.forms import BLOCK_TOKENS, blocks_for
from planner.ilp import Bin, Floats
from planner.workload import Request

MAX_BINS = 4
"""More different mini-batches than these are taken as one bin of average ones: they are levelled, and deal alike."""
FINE = 64
"""Classes up to which rates are looked up at every context as it is; of more, at ones rounded up by a few percent."""
STEP = 1.05


def exact_bins(
    costs: CostModel, requests: Sequence[Request], epochs: Sequence[Epoch], batches: Sequence[Sequence[int]], forms: int
) -> tuple[tuple[Bin, ...], list[list[int]]]:
    """Bins of the given mini-batches whose blocks take `forms` forms, and which mini-batches each bin stands for."""
    alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for index, members in enumerate(batches):
        alike[tuple(sorted((requests[r].prompt_len, requests[r].gen_len) for r in members))].append(index)
    found = [(_exact_bin(costs, lengths, epochs, len(indices), forms), indices) for lengths, indices in alike.items()]
    if len(found) > MAX_BINS:
        return (_together([one for one, _ in found]),), [list(range(len(batches)))]
    return tuple(one for one, _ in found), [indices for _, indices in found]


def _exact_bin(
    costs: CostModel, lengths: Sequence[tuple[int, int]], epochs: Sequence[Epoch], count: int, forms: int
) -> Bin:
    """`count` mini-batches of requests of these lengths, a call for each class and a further one for each form."""
    classes, layers = Classes.of(lengths), costs.model.layers
    one, attention = demand_of(classes, epochs), Attention(costs, classes, epochs)
    alive = np.minimum(one.rows, 1.0)
    beside = np.array([_between_rows(costs, rows) for rows in one.rows])
    calls = attention.further_s(1) + alive * (forms - 1) * costs.hardware.gpu.achieved.attention_call_s.value
    blocks = max(round(one.final_blocks), 1)
    return Bin(
        count=count,
        demand=one.scaled(count),
        compute_s=count * (beside + layers * (attention.seconds() + calls)),
        rebuild_s_per_block=layers * costs.rebuild(blocks).seconds / blocks,
        link_s_per_block=layers * costs.hardware.link.latency_s.value / blocks,
        largest=one.final_blocks,
    )


def _together(bins: Sequence[Bin]) -> Bin:
    """One bin of all of them: sums, and means weighted by blocks."""
    blocks = np.array([part.demand.final_blocks for part in bins])
    demand = bins[0].demand
    for part in bins[1:]:
        demand = demand + part.demand
    return Bin(
        count=sum(part.count for part in bins),
        demand=demand,
        compute_s=np.sum([part.compute_s for part in bins], axis=0),
        rebuild_s_per_block=float(blocks @ [part.rebuild_s_per_block for part in bins] / blocks.sum()),
        link_s_per_block=float(blocks @ [part.link_s_per_block for part in bins] / blocks.sum()),
        largest=max(part.largest for part in bins),
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

    def seconds(self, most: float | None = None) -> Floats:
        """[epochs] a call for each class; with `most`, no less than any calls of at most so many requests each."""
        costs, c = self.costs, self.classes
        achieved = costs.hardware.gpu.achieved
        table = achieved.decode_attention_bytes_per_s_by_context
        together = c.count if most is None else np.minimum(c.count, max(most, 1.0))
        shared = 1 + (costs.model.gqa_group - 1) * achieved.attention_group_cost.value
        per_byte = achieved.engine_slowdown.forward.value * shared * costs.model.kv_bytes_per_token_layer
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
        different lengths are attended in calls of their own."""
        achieved = self.costs.hardware.gpu.achieved
        each = achieved.attention_group_s.value + achieved.attention_call_s.value
        alive = [float(self.classes.during(epoch).steps.sum()) / epoch.steps for epoch in self.epochs]
        return np.array([each * max(classes - most_batches, 0.0) for classes in alive])


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

    def __init__(self, costs: CostModel, classes: Classes, epochs: Sequence[Epoch]) -> None:
        self.costs = costs
        self.whole = demand_of(classes, epochs)
        positions = classes.prompt + classes.gen - 1
        self._largest, self._smallest = blocks_for(int(positions.max())), blocks_for(int(positions.min()))
        self._requests = int(classes.count.sum())
        self._envelope = _lower_envelope(costs, self._requests)
        self._rebuild_s = _cheapest_rebuild(costs, int(self.whole.final_blocks) + 1)
        self._attention = Attention(costs, classes, epochs)
        self._attention_s = lru_cache(maxsize=None)(self._attention.seconds)

    def at(self, fewest: int, most: int) -> Bin:
        """A bin no dearer, and needing no larger slots, than any composition of `fewest` to `most` mini-batches."""
        layers = self.costs.model.layers
        compute = layers * (self._attention_s(self._most_in_a_call(fewest)) + self._attention.further_s(most))
        for e, rows in enumerate(self.whole.rows):
            if rows > 0:
                # Where requests have ended, so may have whole mini-batches.
                least = fewest if rows >= self._requests else 1
                compute[e] += self._cheapest_cut(rows, least, most)
        # No transfer or rebuild carries more blocks than the largest mini-batch holds.
        carried = self.whole.final_blocks / fewest + self._largest
        hardware = self.costs.hardware
        return Bin(
            count=most,
            demand=self.whole,
            compute_s=compute,
            rebuild_s_per_block=layers * (self._rebuild_s + hardware.gpu.achieved.op_overhead_s.value / carried),
            link_s_per_block=layers * hardware.link.latency_s.value / carried,
            largest=self.whole.final_blocks / most,
        )

    def _most_in_a_call(self, fewest: int) -> float:
        """Requests: no composition gathers more blocks in a call than the mean, in the end, and one request more."""
        return min((self.whole.final_blocks / fewest + self._largest) / self._smallest, float(self._requests))

    def _cheapest_cut(self, rows: float, least: int, most: int) -> float:
        """min over k in [least, most] of k envelope(rows / k): linear in k between the corners of the envelope."""
        largest = min(float(most), max(rows, least))
        corners = [rows / x for x in self._envelope[0] if least < rows / x < largest]
        cuts = np.array([least, *corners, largest])
        return float((cuts * np.interp(rows / cuts, *self._envelope)).min())


def _lower_envelope(costs: CostModel, requests: int) -> tuple[Floats, Floats]:
    """Lower convex hull of the step time beside attention and rebuilding over rows 1 .. requests.

    Convex, so the sum over mini-batches is least when rows are spread evenly. Only rows at which the slope changes are
    priced: those near the sizes of the table, and a geometric sample.
    """
    sampled = sorted({*range(1, min(requests, 64) + 1), *np.geomspace(1, requests, 100).astype(int).tolist()})
    hull: list[tuple[float, float]] = []
    for x, y in ((float(rows), _beside_attention(costs, rows)) for rows in sampled):
        while len(hull) >= 2 and (hull[-1][1] - hull[-2][1]) * (x - hull[-1][0]) >= (y - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    xs, ys = zip(*hull, strict=True)
    return np.array(xs), np.array(ys)


def _cheapest_rebuild(costs: CostModel, blocks: int) -> float:
    """Seconds per block and layer at the best row count up to `blocks`."""
    table = costs.hardware.gpu.gemm_rates(costs.model.dtype)
    sizes = {max(int(size) // BLOCK_TOKENS, 1) for size in table.sizes} | {blocks}
    overhead = costs.hardware.gpu.achieved.op_overhead_s.value
    return min((costs.rebuild(n).seconds - overhead) / n for n in sizes if n <= blocks)
