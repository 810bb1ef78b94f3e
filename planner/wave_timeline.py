"""The timeline of a job in waves: the timelines of its waves, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from planner.columns import Columns
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.sampled_timeline import joined_many, middles, simulate_sampled
from planner.simulator import simulate
from planner.timeline import Spans, Timeline

FEW, MOST_OPERATIONS = 4, 1_000_000
"""Different waves, and operations of more of them, up to which all are simulated: about a second's worth."""
PER_MINI_BATCH = 6
"""Operations of one mini-batch in a layer, about."""
SAMPLED_OF_MANY = 12
"""Decode steps that are walked of each of more, and waves of very many that are walked at least."""
WALKED_REQUESTS = 10_000
"""Requests whose waves are all walked: the fewer a wave has, the more it differs from the next."""


@dataclass(frozen=True)
class WavesTimeline(Timeline):
    """Spans of all waves on one clock. Steps count from 0 in every wave.

    A wave begins when the last operation of the one before has ended, its last stores included. Prefill and decode are
    the sums over the waves; the stores between two waves count as decode.
    """

    first_spans: tuple[int, ...] = (0,)
    """Where in `spans` each wave begins."""

    @cached_property
    def wave_spans(self) -> list[Spans]:
        """Of each wave, on the clock of all."""
        return [self.rows.part(a, b) for a, b in pairwise((*self.first_spans, len(self.rows)))]

    @cached_property
    def wave_begins_s(self) -> list[float]:
        """When each wave begins."""
        return [0.0] + [float(spans.end_s.max()) for spans in self.wave_spans[:-1]]

    @cached_property
    def _wave_ends_s(self) -> list[list[float]]:
        return [Timeline(spans, 0).step_ends_s for spans in self.wave_spans]

    @cached_property
    def step_ends_s(self) -> list[float]:
        """When the last token of each step was chosen, wave after wave; each begins with the end of its prefill."""
        return [end for ends in self._wave_ends_s for end in ends]

    @property
    def prefill_s(self) -> float:
        """Of all waves."""
        begun = zip(self._wave_ends_s, self.wave_begins_s, strict=True)
        return sum(ends[0] - begin_s for ends, begin_s in begun)

    @property
    def decode_steps(self) -> int:
        """Of all waves."""
        return len(self.step_ends_s) - len(self.first_spans)


def joined(waves: Sequence[Timeline]) -> Timeline:
    """`waves`, each on a clock of its own, one after the other; a single one is returned as it is."""
    if len(waves) == 1:
        return waves[0]
    rows = [wave.rows for wave in waves]
    lengths_s = [float(one.end_s.max()) for one in rows]
    begins_s = [0.0, *accumulate(lengths_s[:-1])]
    spans = Spans(
        Columns.joined([one.columns for one in rows]),
        np.concatenate([one.start_s + begin_s for one, begin_s in zip(rows, begins_s, strict=True)]),
        np.concatenate([one.end_s + begin_s for one, begin_s in zip(rows, begins_s, strict=True)]),
    )
    first = [0, *accumulate(len(one) for one in rows[:-1])]
    return WavesTimeline(spans, sum(wave.generated_tokens for wave in waves), tuple(first))


def simulate_waves(costs: CostModel, waves: Sequence[Decisions]) -> Timeline:
    """The predicted timeline of a whole job; waves that differ in nothing but request numbers are simulated once.

    Of more than a `FEW` different ones with more than `MOST_OPERATIONS` together, only some decode steps are walked; of
    very many requests, only some waves: in a job sorted by length each hardly differs from the next.
    """
    shapes = {wave.shape: wave for wave in waves}
    layers = PER_MINI_BATCH * costs.model.layers
    operations = sum(layers * wave.decode_steps * len(wave.mini_batches) for wave in shapes.values())
    if len(shapes) > FEW and operations > MOST_OPERATIONS:
        alike = [waves[i] for i in _stand_ins(waves)]
        many = {shape: simulate_sampled(costs, shapes[shape], SAMPLED_OF_MANY) for shape in {w.shape for w in alike}}
        return joined_many([many[wave.shape] for wave in alike], sum(wave.generated_tokens for wave in waves))
    known = {shape: simulate(costs, wave) for shape, wave in shapes.items()}
    return joined([known[wave.shape] for wave in waves])


def _stand_ins(waves: Sequence[Decisions]) -> list[int]:
    """[waves] the wave that each is taken to be like: the middle one of its stretch of all."""
    requests = sum(len(batch.requests) for wave in waves for batch in wave.mini_batches)
    walked = max(SAMPLED_OF_MANY, len(waves) * WALKED_REQUESTS // requests)
    return [place for place, of in middles(len(waves), min(walked, len(waves))) for _ in range(of)]
