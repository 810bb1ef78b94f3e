"""One way to cut a job into waves, planned: each wave's decisions, and what ways promise before they are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import numpy as np

from planner.best import best_of
from planner.costs import CostModel
from planner.cutting import Cut, cut
from planner.decisions import Decisions
from planner.estimate import estimated_waves_s
from planner.forms import CacheForm
from planner.memory import resident_layers
from planner.search import Found, Options, Search
from planner.timeline import Timeline
from planner.wave_timeline import simulate_waves
from planner.workload import Workload

MANY_REQUESTS = 1000
"""In waves, beyond which only the first number of waves that has a plan is planned, and none of them in every way."""
MANY_WAVES = 4
"""Beyond so many different waves only one is planned by a search; the others take over its number of mini-batches."""
MOST_PROMISED, SMALL_WAVE = 8, 8
"""Different waves whose relaxations are asked what they promise; of very many requests only `MANY_WAVES`, and twice as
many where waves have fewer requests than `SMALL_WAVE`, since then each differs from the next."""
COARSE_EPOCHS = 8
"""Epochs of the relaxations that say which number of waves to plan: they are asked of many, and prove nothing."""
FEW_KINDS = 2
"""Different waves up to which each is worth a second look."""


@dataclass(frozen=True)
class Wave:
    """One wave, its requests numbered from 0."""

    search: Search
    found: Found
    margins: tuple[float, float]
    """Bytes of GPU and host that rounding took."""

    @property
    def layers(self) -> float:
        """Whole layers that its resident weights come to."""
        return resident_layers(self.search.costs.model, self.found.decisions)


@dataclass(frozen=True)
class Planned:
    """A whole job, cut in one way."""

    costs: CostModel
    waves: tuple[Decisions, ...]
    parts: tuple[Wave, ...]
    cut: Cut
    simulated: Timeline | None = None
    """Where that has been done already."""

    @cached_property
    def timeline(self) -> Timeline:
        """As simulated."""
        return self.simulated or simulate_waves(self.costs, self.waves)

    @property
    def estimated_s(self) -> float:
        """As simulated where that has been done, else from some of its steps: enough to tell which cut is faster."""
        if self.simulated or "timeline" in vars(self):
            return self.timeline.total_s
        return self._sampled_s

    @cached_property
    def _sampled_s(self) -> float:
        return estimated_waves_s(self.costs, self.waves)

    def could_be_of(self, search: Search) -> bool:
        """Whether it chooses from what `search` may choose from, with buffers of the same size."""
        if any(part.layers < search.options.min_resident_layers for part in self.parts):
            return False
        same = self.parts[0].search.store_elements == search.store_elements
        return same and all(set(wave.forms) <= set(search.forms) for wave in self.waves)

    @property
    def kinds(self) -> int:
        """Different waves."""
        return len({wave.shape for wave in self.waves})


class WavePlanner:
    """Plans one job in waves, and says what ways to cut it promise."""

    def __init__(self, costs: CostModel, workload: Workload, forms: tuple[CacheForm, ...], options: Options) -> None:
        self.costs, self.requests, self.forms, self.options = costs, workload.requests, forms, options
        self._known: dict[tuple[object, ...], Wave | None] = {}
        self._searches: dict[tuple[object, ...], Search] = {}
        self._promised: dict[Cut, float] = {}
        self._relaxations: dict[tuple[tuple[int, int], ...], dict[int, float]] = {}

    def plan(self, how: Cut, thorough: bool = True) -> Planned | None:
        """None where one of the waves has no plan. `thorough`: each in every way.

        Weights are loaded once, so all waves keep the same layers: as many as the wave with least room for them.
        """
        members = cut(self.requests, how)
        kinds = self._kinds(members)
        thorough = thorough and kinds <= FEW_KINDS and len(self.requests) <= MANY_REQUESTS
        most = self.options.max_resident_layers
        while True:
            parts: list[Wave] = []
            for wave in reversed(members):  # where memory is short, the last is the first not to fit
                like = parts[0] if parts and kinds > MANY_WAVES else None
                found = self._wave(wave, most, thorough, like)
                if found is None:
                    return None
                parts.insert(0, found)
            layers = [part.layers for part in parts]
            if len(set(layers)) == 1:
                break
            most = min(layers)
            if not thorough and (levelled := self._levelled(parts, most)):
                parts = levelled
                break
        pairs = zip(parts, members, strict=True)
        planned = tuple(part.found.decisions.renumbered(numbers) for part, numbers in pairs)
        return Planned(self.costs, planned, tuple(parts), how)

    def promise_s(self, how: Cut) -> float:
        """What the relaxations of the waves add up to; where many differ, about that, from some of them."""
        if how not in self._promised:
            self._promised[how] = self._promise_of(how)
        return self._promised[how]

    def promising(self, below_s: float) -> list[Cut]:
        """Those that were asked for and promise less, the most promising first."""
        return sorted((how for how, promise_s in self._promised.items() if promise_s < below_s), key=self.promise_s)

    def _promise_of(self, how: Cut) -> float:
        members, count = cut(self.requests, how), how.waves
        most = MANY_WAVES if len(self.requests) > MANY_REQUESTS else MOST_PROMISED
        if len(self.requests) < SMALL_WAVE * count:
            most = 2 * MOST_PROMISED
        asked = np.linspace(0, count - 1, most).round().astype(int) if self._kinds(members) > most else np.arange(count)
        waves = [self._relaxed_s(members[i]) for i in asked]
        # All keep the same weights. Those between take as long as a straight line says.
        levels, places = set(waves[0]).intersection(*waves), np.arange(count)
        sums = (float(np.interp(places, asked, [wave[level] for wave in waves]).sum()) for level in levels)
        return min(sums, default=inf)

    def _relaxed_s(self, wave: Sequence[int]) -> dict[int, float]:
        """What the relaxation of one wave says, by parts of every layer on the GPU; asked once of equal waves."""
        lengths = self._lengths(wave)
        if lengths not in self._relaxations:
            search = Search(self.costs, self._job(wave), self.forms, self._options(), most_epochs=COARSE_EPOCHS)
            self._relaxations[lengths] = search.promises_s()
        return self._relaxations[lengths]

    def _levelled(self, parts: Sequence[Wave], layers: float) -> list[Wave] | None:
        """The same waves with so many layers on the GPU; None where one of them then has no plan."""
        found = [part if part.layers == layers else self._like(part.search, part, layers) for part in parts]
        whole = [part for part in found if part]
        return whole if len(whole) == len(parts) else None

    def _kinds(self, waves: Sequence[Sequence[int]]) -> int:
        """How many of them differ."""
        return len(set(map(self._lengths, waves)))

    def _search(self, members: Sequence[int], most_resident: float | None) -> Search:
        """That of one wave: one for equal waves."""
        key = (self._lengths(members), most_resident)
        if key not in self._searches:
            options = replace(self._options(), max_resident_layers=most_resident)
            self._searches[key] = Search(self.costs, self._job(members), self.forms, options)
        return self._searches[key]

    def _options(self) -> Options:
        return replace(self.options, vary_slots=False)

    def _job(self, wave: Sequence[int]) -> Workload:
        return Workload(tuple(self.requests[r] for r in wave))

    def _lengths(self, wave: Sequence[int]) -> tuple[tuple[int, int], ...]:
        return tuple((self.requests[r].prompt_len, self.requests[r].gen_len) for r in wave)

    def _wave(
        self, members: Sequence[int], most_resident: float | None, thorough: bool, like: Wave | None
    ) -> Wave | None:
        """The plan of one wave; equal waves are planned once. `like`: one that hardly differs."""
        key = (self._lengths(members), most_resident, thorough)
        if key not in self._known:
            search = self._search(members, most_resident)
            self._known[key] = self._like(search, like, like.layers) if like else None
            if self._known[key] is None:
                chosen = best_of(search) if thorough else None
                found = chosen[0] if chosen else search.run(nodes=0)
                self._known[key] = Wave(search, found, search.margins) if found else None
        return self._known[key]

    @staticmethod
    def _like(search: Search, like: Wave, layers: float) -> Wave | None:
        """The plan with `layers` on the GPU and as many mini-batches as `like`, or as were asked for."""
        fixed = search.varied(min_resident_layers=layers, max_resident_layers=layers)
        count = search.options.mini_batches or len(like.found.decisions.mini_batches)
        found = fixed.like_another(count, like.margins)
        return Wave(search, found, fixed.margins) if found else None
