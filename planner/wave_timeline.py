"""The timeline of a job in waves: the timelines of its waves, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from planner.costs import CostModel
from planner.decisions import Decisions
from planner.sampled_timeline import joined_many, simulate_sampled
from planner.simulator import simulate
from planner.timeline import Span, Timeline

MANY = 4
"""Different waves up to which every operation is simulated: each takes a second or more where requests are many."""
SAMPLED_OF_MANY = 12
"""Decode steps that are walked of each of more."""


@dataclass(frozen=True)
class WavesTimeline(Timeline):
    """Spans of all waves on one clock. Steps count from 0 in every wave.

    A wave begins when the last operation of the one before has ended, its last stores included. Prefill and decode are
    the sums over the waves; the stores between two waves count as decode.
    """

    first_spans: tuple[int, ...] = (0,)
    """Where in `spans` each wave begins."""

    @cached_property
    def _waves(self) -> list[Sequence[Span]]:
        return [self.spans[a:b] for a, b in pairwise((*self.first_spans, len(self.spans)))]

    @cached_property
    def wave_begins_s(self) -> list[float]:
        """When each wave begins."""
        return [0.0] + [max(span.end_s for span in spans) for spans in self._waves[:-1]]

    @cached_property
    def _wave_ends_s(self) -> list[list[float]]:
        return [Timeline(spans, 0).step_ends_s for spans in self._waves]

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
    spans: list[Span] = []
    first: list[int] = []
    begin_s = 0.0
    for wave in waves:
        first.append(len(spans))
        at = len(spans)
        spans += [
            span._replace(id=span.id + at, start_s=span.start_s + begin_s, end_s=span.end_s + begin_s)
            for span in wave.spans
        ]
        begin_s += max(span.end_s for span in wave.spans)
    return WavesTimeline(spans, sum(wave.generated_tokens for wave in waves), tuple(first))


def simulate_waves(costs: CostModel, waves: Sequence[Decisions]) -> Timeline:
    """The predicted timeline of a whole job; waves that differ in nothing but request numbers are simulated once.

    Of more different waves than `MANY`, only some decode steps are walked.
    """
    shapes = {wave.shape: wave for wave in waves}
    if len(shapes) > MANY:
        many = {shape: simulate_sampled(costs, wave, SAMPLED_OF_MANY) for shape, wave in shapes.items()}
        return joined_many([many[wave.shape] for wave in waves])
    known = {shape: simulate(costs, wave) for shape, wave in shapes.items()}
    return joined([known[wave.shape] for wave in waves])
