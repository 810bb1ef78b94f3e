"""The linear program that bounds the time of a job over every way to cut it into waves, for one range of wave counts.

What its rows say, and why they hold for every such cut, is told where its data come from: `planner.wave_bound`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.epochs import Epoch
from planner.forms import BLOCK_TOKENS, CacheForm
from planner.ilp import GIB
from planner.memory import workspace_elements
from planner.modelling import Problem, Variable, sum_of
from planner.solver import Kept, Unsolved

if TYPE_CHECKING:
    from planner.wave_bound import WaveBound

SLACK = 1e-5
"""Taken off every bound: solvers keep constraints to 1e-7 of their scale."""
LATEST = 10.0
"""Seconds for one linear program; it takes a fraction of one."""


@dataclass(frozen=True)
class Bound:
    """No cut into a number of waves within the range asked for takes less; `waves` is where the relaxation is best."""

    total_s: float
    waves: float


@dataclass(frozen=True)
class Load:
    """What alive requests need in one stretch: totals, averaged over its steps, and the least and most of one request.

    Pairs are (least, most) of a single request.
    """

    requests: float
    final: float
    final_each: tuple[float, float]
    token_ids_each: float
    prompt_least: int


@dataclass(frozen=True)
class Step:
    """The same for what grows from step to step."""

    blocks: float
    blocks_each: tuple[float, float]
    context: float
    context_each: tuple[float, float]
    prompt_blocks: float


@dataclass(frozen=True)
class Kind:
    """Waves with `fewest` to `most` mini-batches and `requests` (fewest, most) in all, whose weights stream, in part at
    least, or are all resident."""

    fewest: int
    most: int
    requests: tuple[int, int]
    streams: bool


class _Level:
    """Variables of the waves of one kind that are alive in one stretch, or of all of them."""

    def __init__(self, problem: Problem, name: str, forms: Sequence[CacheForm]) -> None:
        def var(what: str) -> Variable:
            return problem.add_variable(f"{what}_{name}", 0)

        self.waves, self.requests, self.batches = var("waves"), var("requests"), var("batches")
        self.resident, self.slot_share = var("resident"), var("slot_share")
        self.final = {form.name: var(f"final_{i}") for i, form in enumerate(forms)}
        self.kv_slot, self.act_slot, self.rebuilt = var("kv_slot"), var("act_slot"), var("rebuilt")
        self.overlay, self.base_t = var("overlay"), var("base_t")


class Program:
    """The program, built once for all ranges of wave counts. Times in the unit of the split problem, memory in GiB."""

    def __init__(self, data: WaveBound) -> None:
        self.data, self.model, self.hardware = data, data.costs.model, data.costs.hardware
        self.problem = Problem("waves")
        self.unit_s = data.problem.unit_s
        self.all = [self._level(kind, f"{k}", None) for k, kind in enumerate(data.kinds)]
        self.most_each = [
            level.requests <= kind.requests[1] * level.waves for kind, level in zip(data.kinds, self.all, strict=True)
        ]
        for row, kind, level in zip(self.most_each, data.kinds, self.all, strict=True):
            self.problem += row
            self.problem += level.requests >= kind.requests[0] * level.waves
        self.waves = self.problem.add_variable("waves", 1, len(data.search.requests))
        self.problem += sum_of(level.waves for level in self.all) == self.waves
        self._distribute(self.all, data.load(None))
        self.decode_t: list[Any] = []
        self.early: list[list[Any]] = [[] for _ in data.kinds]
        self.first_on_host: list[Any] = []
        self._previous: list[dict[str, Variable]] | None = None
        for index, epoch in enumerate(data.epochs):
            self._epoch(index, epoch)
        head_s = data.problem.head_start * self.model.layer_bytes / self.hardware.link.h2d_bytes_per_s.value
        for early, level in zip(self.early, self.all, strict=True):
            self.problem += sum_of(early) <= level.slot_share * (head_s / self.unit_s)
        self.prefill_t = self.problem.add_variable("prefill_t", 0)
        self._prefill()
        self.problem += sum_of(self.decode_t) + self.prefill_t
        self._kept = Kept(self.problem, timeLimit=LATEST)

    def least(self, fewest: int, most: int) -> Bound | None:
        """For `fewest` to `most` waves; None where memory holds no such cut. Nothing is known if the solver fails."""
        self.waves.bounds(fewest, most)
        for row, kind, level in zip(self.most_each, self.data.kinds, self.all, strict=True):
            # Every other wave has a request at least.
            each = min(len(self.data.search.requests) - fewest + 1, kind.requests[1])
            self._kept.change(row, level.waves, -each)
        try:
            total_t = self._kept.least([self.waves])
        except Unsolved:
            return Bound(0.0, fewest)
        return None if total_t is None else Bound(total_t * self.unit_s * (1 - SLACK), self._kept.value(self.waves))

    # ---- waves and their memory ------------------------------------------------------------------

    def _level(self, kind: Kind, name: str, whole: _Level | None) -> _Level:
        """Waves of one kind; those alive of the ones in `whole`, where that is given."""
        level = _Level(self.problem, name, self.data.forms)
        self.problem += level.batches <= kind.most * level.waves
        # Where requests have ended, so may have whole mini-batches.
        self.problem += level.batches >= (kind.fewest if whole is None else 1) * level.waves
        self.problem += level.batches <= level.requests
        # No mini-batch has more than what the others of its wave leave.
        rows = 1 if whole or kind.most > 1 else kind.requests[0], kind.requests[1] - kind.fewest + 1
        for per_batch, per_request in self.data.compute_lines(*rows):
            costs = level.batches * (per_batch / self.unit_s) + level.requests * (per_request / self.unit_s)
            self.problem += level.base_t >= costs
        if whole is not None:
            self.problem += level.requests <= kind.requests[1] * level.waves
            for mine, most in (
                (level.waves, whole.waves), (level.requests, whole.requests), (level.batches, whole.batches),
                (level.resident, whole.resident), (self._streamed(level), self._streamed(whole)),
                *((level.final[f.name], whole.final[f.name]) for f in self.data.forms),
            ):  # fmt: skip
                self.problem += mine <= most
        return level

    def _streamed(self, level: _Level) -> Any:
        """Layers that stream, summed over waves."""
        return self.model.layers * level.waves - level.resident

    def _distribute(self, levels: Sequence[_Level], load: Load) -> None:
        """Every request runs in a wave of some kind, and memory holds each wave."""
        self.problem += sum_of(level.requests for level in levels) == load.requests
        self.problem += sum_of(n for level in levels for n in level.final.values()) == load.final
        for level, kind in zip(levels, self.data.kinds, strict=True):
            final = sum_of(level.final.values())
            self.problem += final >= load.final_each[0] * level.requests
            self.problem += final <= load.final_each[1] * level.requests
            self._memory(level, load, kind)

    def _memory(self, level: _Level, load: Load, kind: Kind) -> None:
        model, options, e = self.model, self.data.options, self.model.element_bytes
        row = model.hidden + workspace_elements(model, 1, 1) / kind.most
        ids = level.requests * (load.token_ids_each / GIB)
        slots = options.cache_slots * (level.kv_slot + level.act_slot) + level.rebuilt
        self.problem += level.overlay >= slots + level.requests * (e * row / GIB) + ids
        passed = load.prompt_least * model.hidden + workspace_elements(model, load.prompt_least, 1)
        self.problem += level.overlay >= level.waves * (e * passed / GIB) + ids
        if not kind.streams:
            self.problem += self._streamed(level) == 0
        most = model.layers if options.max_resident_layers is None else options.max_resident_layers
        self.problem += level.resident <= most * level.waves
        self.problem += level.resident >= options.min_resident_layers * level.waves
        w = model.layer_bytes / GIB
        room = (self.hardware.gpu.budget_bytes - model.outer_bytes) / GIB
        # A slot holds what streams of any layer, so no less than the mean of all.
        self.problem += level.slot_share >= self._streamed(level) * (1 / model.layers)
        weights = w * level.resident + (options.weight_slots * w) * level.slot_share
        self.problem += weights + level.overlay + self._held(level, on_gpu=True) <= room * level.waves
        room = self.hardware.host.budget_bytes / GIB
        self.problem += w * self._streamed(level) + self._held(level, on_gpu=False) <= room * level.waves

    def _held(self, level: _Level, on_gpu: bool) -> Any:
        forms = [f for f in self.data.forms if f.on_gpu == on_gpu]
        return sum_of(level.final[f.name] * (f.block_bytes(self.model) / GIB) for f in forms)

    # ---- decode ----------------------------------------------------------------------------------

    def _epoch(self, index: int, epoch: Epoch) -> None:
        data, full = self.data, self.data.full[index]
        if full:
            levels = self.all
        else:
            whole = zip(data.kinds, self.all, strict=True)
            levels = [self._level(kind, f"{k}_{index}", of) for k, (kind, of) in enumerate(whole)]
            self._distribute(levels, data.load(epoch))
            self.problem += sum_of(level.waves for level in levels) >= 1
        step = data.step(epoch, index)
        blocks = [self._blocks(f"{k}_{index}", level, step, kind.most)
                  for k, (level, kind) in enumerate(zip(levels, data.kinds, strict=True))]  # fmt: skip
        context = [self.problem.add_variable(f"context_{k}_{index}", 0) for k in range(len(levels))]
        self.problem += sum_of(n for one in blocks for n in one.values()) == step.blocks
        self.problem += sum_of(context) == step.context
        for k, level in enumerate(levels):
            self.problem += context[k] >= step.context_each[0] * level.requests
            self.problem += context[k] <= step.context_each[1] * level.requests
            if full and self._previous:  # a block never changes its form
                for name, n in blocks[k].items():
                    self.problem += n >= self._previous[k][name]
            self._step_time(f"{k}_{index}", k, epoch, level, blocks[k], context[k])
        self._previous = blocks
        if index == 0:
            host = [f for f in data.forms if not f.on_gpu]
            largest = max((f.block_bytes(self.model) for f in host), default=0)
            stored = sum_of(one[f.name] * (f.block_bytes(self.model) / GIB) for one in blocks for f in host)
            # Blocks begun after prefill may be the ones on the host.
            self.first_on_host = [stored - max(step.blocks - step.prompt_blocks, 0.0) * largest / GIB]

    def _blocks(self, name: str, level: _Level, step: Step, most_batches: int) -> dict[str, Variable]:
        """Blocks by form in a step of the waves of one kind, within what they end up with and what slots hold."""
        data = self.data
        blocks = {f.name: self.problem.add_variable(f"n_{i}_{name}", 0) for i, f in enumerate(data.forms)}
        total = sum_of(blocks.values())
        self.problem += total >= step.blocks_each[0] * level.requests
        self.problem += total <= step.blocks_each[1] * level.requests
        for form in data.forms:
            self.problem += level.final[form.name] >= blocks[form.name]
            if not form.on_gpu:
                slot = level.act_slot if form.rebuilt else level.kv_slot
                size = BLOCK_TOKENS * form.token_bytes(self.model) / GIB
                self.problem += slot >= blocks[form.name] * (size / most_batches)
        rebuilt = sum_of(blocks[f.name] for f in data.forms if f.rebuilt)
        size = BLOCK_TOKENS * self.model.kv_bytes_per_token_layer / GIB
        self.problem += level.rebuilt >= rebuilt * (size / most_batches)
        if data.options.act_share is not None:
            self.problem += rebuilt == data.options.act_share * total
        return blocks

    def _step_time(
        self, name: str, k: int, epoch: Epoch, level: _Level, blocks: dict[str, Variable], context: Any
    ) -> None:
        """As the split problem has it: both streams of a step, and what each loses to the other."""
        data, link = self.data, self.hardware.link
        t, early = self.problem.add_variable(f"t_{name}", 0), self.problem.add_variable(f"early_{name}", 0)
        per_bin = data.bins[k]
        layer_s = self.model.layer_bytes / link.h2d_bytes_per_s.value + link.latency_s.value
        moved = self._streamed(level) * (layer_s / self.unit_s) - early
        for form in data.forms:
            if not form.on_gpu:
                nbytes = BLOCK_TOKENS * self.model.layers * form.h2d_bytes(self.model)
                each_s = nbytes / link.h2d_bytes_per_s.value + per_bin.link_s_per_block
                moved = moved + blocks[form.name] * (each_s / self.unit_s)
        rebuilt = sum_of(blocks[f.name] for f in data.forms if f.rebuilt)
        compute = level.base_t + context * (data.attention_s_per_token(data.kinds[k]) / self.unit_s)
        compute = compute + rebuilt * (per_bin.rebuild_s_per_block / self.unit_s)
        slowed = 1 - min(1.0, link.during_compute.value)
        self.problem += t >= moved + slowed * compute
        self.problem += t >= compute + link.compute_lost_to_h2d * moved
        self.decode_t.append(epoch.steps * t)
        self.early[k].append(epoch.steps * early)

    # ---- prefill ---------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """As the split problem has it, with a load of what streams for each wave."""
        link = self.hardware.link
        layer_t = self.model.layer_bytes / (link.h2d_bytes_per_s.value * self.unit_s)
        weights_t = sum_of(self._streamed(level) for level in self.all) * layer_t
        stored_t = self.problem.add_variable("stored_t", 0)
        for stored in self.first_on_host:
            self.problem += stored_t >= stored * (GIB / (link.d2h_bytes_per_s.value * self.unit_s))
        busy_t = link.compute_lost_to_h2d * weights_t + link.compute_lost_to_d2h * stored_t
        self.problem += self.prefill_t >= busy_t + self.data.problem.least_prefill_s / self.unit_s
        self.problem += self.prefill_t >= weights_t + (1 - link.beside_d2h) * stored_t
        self.problem += self.prefill_t >= stored_t + (1 - link.beside_h2d) * weights_t
