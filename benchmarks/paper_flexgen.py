"""FlexGen with one of its losses taken away after the other: the way from it to a plan that only keeps K and V."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.clocks import run_clocks
from planner.columns import columns_of
from planner.contention import Contention
from planner.costs import CostModel
from planner.operation import STREAM_OF, Operation
from planner.peers.flexgen import FlexGen, Setting, Stage, speeds
from planner.peers.job import Job, Phases

BUFFERS = 2
"""Of weights and of the cache of one batch, as FlexGen has."""


def best_setting(costs: CostModel, job: Job, relay: bool) -> Setting:
    """The fastest setting that runs all of `job` together, K and V in ordinary memory (`relay`) or pinned."""
    found = speeds(costs, job, relay)
    return max(found, key=lambda setting: found[setting])


def without_barriers(one: FlexGen, job: Job, pieces: bool) -> Phases:
    """`one` with nothing but data and buffers to wait for. `pieces`: the next weights cross a part after each batch,
    not all of them before the first one's cache."""
    cached = Job(one.setting.gpu_batch, job.prompt_len, job.gen_len).mean_cached
    return Phases(_pass_s(one, job.prompt_len, 0.0, pieces), _pass_s(one, 1, cached, pieces))


def _pass_s(one: FlexGen, new: int, cached: float, pieces: bool) -> float:
    """Seconds of a pass over all layers, of many alike: the middle one of three, by when each has computed. The first
    begins with an idle link, and during the last nothing is fetched ahead."""
    embed, attention, mlp, head = one.stages(new, cached)
    stages = [embed, *[attention, mlp] * one.costs.model.layers, head]
    issuer = _Issuer(one, stages * 3, new, pieces)
    issuer.run()
    contention = Contention(one.costs.hardware.link)
    _, ends = run_clocks(columns_of(issuer.operations), np.array(issuer.seconds), contention)
    each = len(stages) * one.setting.batches
    first, second = (ends[issuer.computed[passes * each - 1]] for passes in (1, 2))
    return float(second - first)


class _Issuer:
    """Operations in FlexGen's order, and the seconds that each takes alone."""

    def __init__(self, one: FlexGen, stages: Sequence[Stage], new: int, pieces: bool) -> None:
        self.costs, self.stages, self.pieces = one.costs, stages, pieces
        self.batches = one.setting.batches
        self.hidden = one.setting.gpu_batch * new * one.costs.model.hidden * one.costs.model.element_bytes
        self.operations: list[Operation] = []
        self.seconds: list[float] = []
        self.computed: list[int] = []
        """By stage and batch."""
        self._arrived: list[int] = []
        """The newest transfer of weights and hidden state, if any."""
        self._cached = [stage.cache for stage in stages for _ in range(self.batches) if stage.cache]
        self._loads: list[int] = []
        self._readers: list[int] = []
        """What computes on the cache that each of `_loads` brings."""

    def run(self) -> None:
        """Issue everything."""
        for number, stage in enumerate(self.stages):
            for batch in range(self.batches):
                self._batch(number, batch, stage)

    def _batch(self, number: int, batch: int, stage: Stage) -> None:
        needs = self._arrived
        share = 1 / self.batches if self.pieces else float(batch == 0)
        if self.pieces:
            self._load_cache()
            self._load_next(number, share)
        else:
            self._load_next(number, share)
            self._load_cache()
        if stage.cache:
            needs = [*needs, self._loads[len(self._readers)]]
        self.computed.append(self._issue("forward", stage.compute, needs))
        if stage.cache:
            self._readers.append(self.computed[-1])
        link = self.costs.hardware.link
        stored_s = stage.store / link.pageable_d2h_bytes_per_s.value + self.costs.d2h(self.hidden)
        self._issue("store", stored_s, self.computed[-1:], stage.store + self.hidden)

    def _load_next(self, number: int, share: float) -> None:
        """The next batch's hidden state, and with it a share of the next stage's weights, into the buffer that the
        stage before this one has left."""
        free = [self.computed[number * self.batches - 1]] if share and number else []
        weights = self.stages[number + 1].weights if number + 1 < len(self.stages) else 0.0
        nbytes = share * weights + self.hidden
        self._arrived = [self._issue("load_weights", self.costs.h2d(nbytes), free, nbytes)]

    def _load_cache(self) -> None:
        """As far ahead as there are buffers."""
        while len(self._loads) < min(len(self._readers) + BUFFERS, len(self._cached)):
            number = len(self._loads)
            free = [self._readers[number - BUFFERS]] if number >= BUFFERS else []
            nbytes = self._cached[number]
            self._loads.append(self._issue("load_kv", self.costs.h2d(nbytes), free, nbytes))

    def _issue(self, kind: str, seconds: float, waits: Sequence[int], nbytes: float = 0.0) -> int:
        number = len(self.operations)
        self.operations.append(Operation(number, kind, STREAM_OF[kind], 0, 0, 0, tuple(waits), nbytes=round(nbytes)))
        self.seconds.append(seconds)
        return number
