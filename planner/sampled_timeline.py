"""The timeline of a job of which only some decode steps were walked: what simulates thousands of requests in waves.

Steps change slowly, so the others are taken to last as long as a straight line between their walked neighbours says.
Everything that a timeline adds up is added up with that: each walked step stands for its share of all.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from planner.columns import Floats, schedule_columns
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.forms import FORMS
from planner.operation import KINDS, STREAMS
from planner.schedule import Schedule
from planner.simulator import Durations, timeline_of
from planner.timeline import StreamUse, Timeline

STRAIGHT = 1e-6
"""Shares of what is held, summed, that are no distance from a straight line but rounding."""


def sampled_steps(decisions: Decisions, most: int) -> list[int]:
    """At most `most` of the decode steps: the first, which follows prefill, the second, the last, and others where
    straight lines between them would be furthest, summed over a stretch, from what each step holds."""
    count = decisions.decode_steps
    if count <= most:
        return list(range(1, count + 1))
    steps, held = np.arange(count), _held(decisions)
    walked = [0, 1, count - 1]
    while len(walked) < most:
        lines = [np.interp(steps, walked, column[walked]) for column in held.T]
        off = np.abs(held - np.stack(lines, axis=1)).sum(axis=1)
        stretches = np.add.reduceat(off, walked[:-1])
        if stretches.max() <= STRAIGHT:
            stretches = np.diff(walked)
        begin, end = walked[stretches.argmax()], walked[stretches.argmax() + 1]
        furthest = begin + 1 + int(off[begin + 1 : end].argmax())
        insort(walked, furthest if off[furthest] > STRAIGHT else (begin + end) // 2)
    return [step + 1 for step in walked]


def _held(decisions: Decisions) -> Floats:
    """[steps, forms + 1] what time depends on: blocks by form, and requests, each as a share of the most there are."""
    found = np.zeros((decisions.decode_steps, len(FORMS) + 1))
    for batch in decisions.mini_batches:
        found[: batch.decode_steps, :-1] += batch.shapes.blocks
        found[: batch.decode_steps, -1] += batch.shapes.rows
    found[:, :-1] /= found[:, :-1].sum(axis=1).max()
    found[:, -1] /= found[:, -1].max()
    return found


def middles(count: int, stretches: int) -> list[tuple[int, int]]:
    """(the middle one, how many it stands for) of some about equal stretches of `count` things in a row; of two in the
    middle in turn the one and the other."""
    ends = pairwise(stretch * count // stretches for stretch in range(stretches + 1))
    return [((begin + end - 1 + turn % 2) // 2, end - begin) for turn, (begin, end) in enumerate(ends)]


@dataclass(frozen=True)
class SampledTimeline(Timeline):
    """Spans of prefill and of the decode steps `walked`, of `steps` in all."""

    walked: tuple[int, ...] = ()
    steps: int = 0

    @cached_property
    def step_ends_s(self) -> list[float]:
        """When the last token of each step was chosen, those not walked included; entry 0 is the end of prefill."""
        ends = np.array(Timeline(self.spans, 0).step_ends_s)
        took_s = np.interp(np.arange(1, self.steps + 1), self.walked, np.diff(ends)) if self.steps else np.array([])
        return [float(end) for end in ends[0] + np.concatenate(([0.0], np.cumsum(took_s)))]

    @cached_property
    def _stands_for(self) -> Floats:
        """[steps + 1] by step how many it stands for; 1 for prefill, 0 for what was not walked."""
        found = np.zeros(self.steps + 1)
        found[0] = 1.0
        each = np.eye(len(self.walked))
        for k, step in enumerate(self.walked):
            found[step] = np.interp(np.arange(1, self.steps + 1), self.walked, each[k]).sum()
        return found

    @cached_property
    def _weights(self) -> Floats:
        """[spans] how many operations each stands for."""
        return self._stands_for[self.rows.columns.step]

    def use(self, phase: str = "all") -> dict[str, StreamUse]:
        """Busy time and bytes of each stream in `prefill`, `decode` or `all`."""
        span_s = {"prefill": self.prefill_s, "decode": self.decode_s, "all": self.total_s}[phase]
        columns, chosen = self.rows.columns, self.in_phase(phase)
        found = {}
        for stream, queue in zip(STREAMS, columns.queues, strict=True):
            mine = queue[chosen[queue]]
            weights = self._weights[mine]
            busy_s, nbytes = float(self.rows.seconds[mine] @ weights), round(float(columns.nbytes[mine] @ weights))
            found[stream] = StreamUse(busy_s, nbytes, span_s)
        return found

    def by_kind(self, phase: str = "all") -> dict[str, float]:
        """Seconds spent in each kind of operation."""
        chosen = self.in_phase(phase)
        kind = self.rows.columns.kind[chosen]
        seconds = np.bincount(kind, self.rows.seconds[chosen] * self._weights[chosen], len(KINDS))
        return {KINDS[code]: float(seconds[code]) for code in np.unique(kind)}


def simulate_sampled(costs: CostModel, decisions: Decisions, most: int) -> Timeline:
    """The predicted timeline of `decisions`, with at most about `most` decode steps walked."""
    walked = sampled_steps(decisions, most)
    columns = schedule_columns(Schedule(costs.model, decisions, walked))
    whole = timeline_of(columns, Durations(costs, decisions).all(columns), costs, decisions)
    if len(walked) == decisions.decode_steps:
        return whole
    return SampledTimeline(whole.spans, whole.generated_tokens, tuple(walked), decisions.decode_steps)


@dataclass(frozen=True)
class ManyWaves(Timeline):
    """Waves one after the other, each on a clock of its own; `spans` are those of the first."""

    waves: tuple[Timeline, ...] = ()

    @property
    def _lengths_s(self) -> list[float]:
        """Of each wave, its last stores included, which hold up the next one."""
        found = []
        for wave in self.waves:
            last_s = Timeline(wave.spans, 0).step_ends_s[-1]
            found.append(wave.total_s + max(float(wave.rows.end_s.max()) - last_s, 0.0))
        return found

    @cached_property
    def step_ends_s(self) -> list[float]:
        """When the last token of each step was chosen, wave after wave; each begins with the end of its prefill."""
        begin_s, found = 0.0, list[float]()
        for wave, length_s in zip(self.waves, self._lengths_s, strict=True):
            found += [begin_s + end for end in wave.step_ends_s]
            begin_s += length_s
        return found

    @property
    def prefill_s(self) -> float:
        """Of all waves."""
        return sum(wave.prefill_s for wave in self.waves)

    @property
    def decode_steps(self) -> int:
        """Of all waves."""
        return sum(wave.decode_steps for wave in self.waves)

    def use(self, phase: str = "all") -> dict[str, StreamUse]:
        """Busy time and bytes of each stream in `prefill`, `decode` or `all`."""
        span_s = {"prefill": self.prefill_s, "decode": self.decode_s, "all": self.total_s}[phase]
        each = [wave.use(phase) for wave in self.waves]
        return {
            stream: StreamUse(sum(one[stream].busy_s for one in each), sum(one[stream].nbytes for one in each), span_s)
            for stream in STREAMS
        }

    def by_kind(self, phase: str = "all") -> dict[str, float]:
        """Seconds spent in each kind of operation."""
        found: dict[str, float] = {}
        for wave in self.waves:
            for kind, seconds in wave.by_kind(phase).items():
                found[kind] = found.get(kind, 0.0) + seconds
        return found


def joined_many(waves: Sequence[Timeline], generated_tokens: int) -> ManyWaves:
    """`waves` one after the other, which generate so many tokens together."""
    return ManyWaves(waves[0].spans, generated_tokens, tuple(waves))
