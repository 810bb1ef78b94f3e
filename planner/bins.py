"""Bins of the split problem: exact ones for chosen mini-batches, and an average one that bounds every choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from planner.costs import CostModel
from planner.epochs import Epoch, demand_of
from planner.forms import BLOCK_TOKENS, blocks_for
from planner.ilp import Bin, Floats
from planner.workload import Request


def exact_bins(
    costs: CostModel, requests: Sequence[Request], epochs: Sequence[Epoch], batches: Sequence[Sequence[int]], forms: int
) -> tuple[tuple[Bin, ...], list[list[int]]]:
    """Bins of the given mini-batches whose blocks take `forms` forms, and which mini-batches each bin stands for."""
    alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for index, members in enumerate(batches):
        alike[tuple(sorted((requests[r].prompt_len, requests[r].gen_len) for r in members))].append(index)
    bins = []
    layers, latency = costs.model.layers, costs.hardware.link.latency_s.value
    for lengths, indices in alike.items():
        one = demand_of(lengths, epochs)
        compute = np.array(
            [mean_compute_s(costs, r, c, forms) for r, c in zip(one.rows, one.cached_tokens, strict=True)]
        )
        blocks = max(round(one.final_blocks), 1)
        count = len(indices)
        bins.append(
            Bin(
                count=count,
                demand=one.scaled(count),
                compute_s=compute * count,
                rebuild_s_per_block=layers * costs.rebuild(blocks).seconds / blocks,
                link_s_per_block=layers * latency / blocks,
            )
        )
    return tuple(bins), list(alike.values())


def mean_compute_s(costs: CostModel, rows: float, cached_tokens: float, forms: int) -> float:
    """Seconds of one mini-batch and step beside rebuilding, all layers; each form is attended by itself."""
    whole = max(round(rows), 1) if rows > 0 else 0
    if not whole:
        return 0.0
    context = max(round(cached_tokens), 1) / whole
    layer = costs.decode_segments(whole, ((whole, (context / forms,) * forms),)).seconds
    return costs.model.layers * layer + costs.embed(whole).seconds + costs.sample(whole).seconds


class AverageBin:
    """The relaxation: one bin of average mini-batches, at the cheapest compute that any composition allows."""

    def __init__(self, costs: CostModel, requests: Sequence[Request], epochs: Sequence[Epoch]) -> None:
        self.costs = costs
        self.whole = demand_of([(r.prompt_len, r.gen_len) for r in requests], epochs)
        self.largest, self.smallest = (pick(r.positions for r in requests) for pick in (max, min))
        self._requests = len(requests)
        self._envelope = _lower_envelope(costs, len(requests))
        self._rebuild_s = _cheapest_rebuild(costs, int(self.whole.final_blocks) + 1)

    def at(self, fewest: int, most: int) -> Bin:
        """A bin no dearer, and needing no larger slots, than any composition of `fewest` to `most` mini-batches."""
        layers = self.costs.model.layers
        compute = np.zeros_like(self.whole.rows)
        for e, (rows, tokens) in enumerate(zip(self.whole.rows, self.whole.cached_tokens, strict=True)):
            if rows <= 0:
                continue
            # Where requests have ended, so may have whole mini-batches.
            least = fewest if rows >= self._requests else 1
            compute[e] = self._cheapest_cut(rows, least, most) + layers * self._attention_floor(tokens, fewest)
        # No transfer or rebuild carries more blocks than the largest mini-batch holds.
        carried = self.whole.final_blocks / fewest + blocks_for(self.largest)
        hardware = self.costs.hardware
        return Bin(
            count=most,
            demand=self.whole,
            compute_s=compute,
            rebuild_s_per_block=layers * (self._rebuild_s + hardware.gpu.achieved.op_overhead_s.value / carried),
            link_s_per_block=layers * hardware.link.latency_s.value / carried,
        )

    def _cheapest_cut(self, rows: float, least: int, most: int) -> float:
        """min over k in [least, most] of k envelope(rows / k): linear in k between the corners of the envelope."""
        largest = min(float(most), max(rows, least))
        corners = [rows / x for x in self._envelope[0] if least < rows / x < largest]
        cuts = np.array([least, *corners, largest])
        return float((cuts * np.interp(rows / cuts, *self._envelope)).min())

    def _attention_floor(self, tokens: float, fewest: int) -> float:
        """No composition gathers more blocks in a call than the mean, in the end, and one request more."""
        achieved, model = self.costs.hardware.gpu.achieved, self.costs.model
        most = (self.whole.final_blocks / fewest + blocks_for(self.largest)) / blocks_for(self.smallest)
        best = achieved.decode_attention_bytes_per_s_by_context.best_within(min(most, self._requests))
        seconds = tokens * model.kv_bytes_per_token_layer / best
        shared = 1 + (model.gqa_group - 1) * achieved.attention_group_cost.value
        return achieved.engine_slowdown.forward.value * seconds * shared


def _lower_envelope(costs: CostModel, requests: int) -> tuple[Floats, Floats]:
    """Lower convex hull of the step time beside attention and rebuilding over rows 0 .. requests.

    Convex, so the sum over mini-batches is least when rows are spread evenly.
    """
    sampled = sorted({*range(1, min(requests, 512) + 1), *np.geomspace(1, requests, 200).astype(int).tolist()})
    layers = costs.model.layers
    points = [(0.0, 0.0)]
    for rows in sampled:
        layer = (costs.decode_forward(rows, 0)).seconds
        points.append((float(rows), layers * layer + costs.embed(rows).seconds + costs.sample(rows).seconds))
    # An empty mini-batch does not exist: the hull starts at one request.
    hull: list[tuple[float, float]] = []
    for x, y in points[1:]:
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
