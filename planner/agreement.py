"""How far the simulated time of a plan is from the solver's objective, and what the difference is made of.

Between the two stand times that are each computed, not guessed; their differences add up to the whole:

1. the objective: blocks in real numbers, mean steps, a call for every class of lengths and one for each usual form;
2. the same formula with the decided blocks, step by step, and the decided prefill chunks;
3. the same with the attention calls that each step really makes: see `CostModel.decode_segments`;
4. the simulation: operations in order, which also wait for each other, first of all for the first weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.attribution import fill_seconds
from planner.columns import STREAM_CODE
from planner.costs import Attended, CostModel
from planner.decisions import Decisions
from planner.forms import FORMS
from planner.placement import MiniBatch
from planner.split_problem import Floats
from planner.tables import seconds
from planner.timeline import Timeline

EXPLAINED_FROM = 0.01
"""Difference that a plan explains, relative to the objective."""
DIFFERENCE = "The simulation takes "
"""Begins the sentence that explains it."""
WORTH_A_WORD = 0.1
"""Part of the difference below which a part of it is not named."""
_ACT = [i for i, form in enumerate(FORMS) if form.rebuilt]


@dataclass(frozen=True)
class Agreement:
    """Seconds, in the order in which they turn the objective into the simulated total."""

    objective_s: float
    whole_blocks_s: float
    """Whole blocks, single steps and decided prefill chunks, against real numbers and means."""
    attention_calls_s: float
    waits_s: float
    """Streams that wait for each other, `ramp_s` of it before the first layer of prefill and of decoding."""
    ramp_s: float

    @property
    def total_s(self) -> float:
        return self.objective_s + self.whole_blocks_s + self.attention_calls_s + self.waits_s


def disagreement(costs: CostModel, waves: Sequence[Decisions], timeline: Timeline, objective_s: float) -> list[str]:
    """A sentence where the simulated total and the objective differ by more than 1 %, else none.

    Of several waves, in each of which the parts are others, it names what comes between them.
    """
    said = difference_in_words(timeline.total_s, objective_s)
    if not said:
        return []
    if len(waves) == 1:
        return [f"{said}: {parts_in_words(agreement(costs, waves[0], timeline, objective_s))}"]
    return [f"{said}: {len(waves)} waves, each of which begins with the first weights and ends with the last stores"]


def unproven(total_s: float, bound_s: float) -> list[str]:
    """A sentence where what is said to be unbeatable is clearly above the prediction, else none."""
    beyond = bound_s / total_s - 1
    if beyond <= EXPLAINED_FROM:
        return []
    return [f"The bound is {beyond:.1%} above this prediction, so the gap of 0 proves nothing: one of them is off"]


def difference_in_words(total_s: float, objective_s: float) -> str:
    """How much more or less the simulation takes; "" where no plan need speak of it."""
    if abs(total_s - objective_s) <= EXPLAINED_FROM * objective_s:
        return ""
    share = f"{abs(total_s - objective_s) / objective_s:.1%}" if objective_s else "infinitely"
    return f"{DIFFERENCE}{share} {'more' if total_s > objective_s else 'less'} than the solver's {seconds(objective_s)}"


def parts_in_words(found: Agreement) -> str:
    """What the difference is made of, the largest first."""
    difference = found.total_s - found.objective_s
    named = {
        "whole blocks, prompts and steps instead of means": found.whole_blocks_s,
        "attention calls other than those that the solver counts on": found.attention_calls_s,
        "streams that wait for each other": found.waits_s,
    }
    parts = []
    for name, value in sorted(named.items(), key=lambda one: -abs(one[1])):
        if abs(value) < WORTH_A_WORD * abs(difference):
            continue
        ramp = f" ({seconds(found.ramp_s)} of it for the first layer of a phase)"
        said = ramp if value == found.waits_s and found.ramp_s >= WORTH_A_WORD * abs(value) else ""
        parts.append(f"{'-' if value < 0 else '+'}{seconds(abs(value))} {name}{said}")
    return ", ".join(parts)


def agreement(costs: CostModel, decisions: Decisions, timeline: Timeline, objective_s: float) -> Agreement:
    """The parts of the difference. `forms` as in `disagreement`."""
    weights_s, moved_s = _link_seconds(costs, decisions, timeline)
    prefill_s = _prefill_s(costs, decisions, timeline)
    counted, real = _compute_seconds(costs, decisions)
    as_counted = prefill_s + _decode_s(costs, weights_s, moved_s, counted)
    as_called = prefill_s + _decode_s(costs, weights_s, moved_s, real)
    fills = fill_seconds(timeline)
    return Agreement(
        objective_s=objective_s,
        whole_blocks_s=as_counted - objective_s,
        attention_calls_s=as_called - as_counted,
        waits_s=timeline.total_s - as_called,
        ramp_s=sum(fills[:2]),
    )


def _link_seconds(costs: CostModel, decisions: Decisions, timeline: Timeline) -> tuple[Floats, Floats]:
    """Of the link, alone: weights by decode step [steps], cache by step and mini-batch [steps, mini-batches]."""
    steps = timeline.decode_steps
    weights, moved = np.zeros(steps), np.zeros((steps, len(decisions.mini_batches)))
    columns = timeline.rows.columns
    is_weights = columns.is_kind("load_weights")
    for chosen, sums in ((is_weights, weights), (~is_weights, moved)):
        rows = np.flatnonzero(chosen & (columns.stream == STREAM_CODE["h2d"]) & (columns.step > 0))
        sizes, at = np.unique(columns.nbytes[rows], return_inverse=True)
        took_s = np.array([costs.h2d(nbytes) for nbytes in sizes.tolist()])[at]
        place = columns.step[rows] - 1
        np.add.at(sums, place if sums is weights else (place, columns.part[rows]), took_s)
    return weights, moved


def _compute_seconds(costs: CostModel, decisions: Decisions) -> tuple[Floats, Floats]:
    """[steps, mini-batches] of compute, alone: with attention calls as the solver counts them, and as they are."""
    shape = (decisions.decode_steps, len(decisions.mini_batches))
    counted, real = np.zeros(shape), np.zeros(shape)
    layers, call_s = costs.model.layers, costs.hardware.gpu.achieved.attention_call_s.value
    for m, batch in enumerate(decisions.mini_batches):
        shapes, forms = batch.shapes, sum(batch.blocks(form) > 0 for form in FORMS)
        for t, rows in enumerate(shapes.rows.tolist()):
            rebuild = layers * costs.rebuild(int(shapes.blocks[t, _ACT].sum())).seconds
            beside = rebuild + costs.embed(rows).seconds + costs.sample(rows).seconds
            layer = costs.decode_segments(rows, _as_counted(costs, batch, t)).seconds + (forms - 1) * call_s
            counted[t, m] = beside + layers * layer
            real[t, m] = beside + layers * costs.decode_segments(rows, batch.attended(t, costs.ragged)).seconds
    return counted, real


def _as_counted(costs: CostModel, batch: MiniBatch, step: int) -> Attended:
    """What the solver counts: one call for all requests, or for those of the same lengths where calls take only equal
    ones, whatever their blocks are kept as."""
    if costs.ragged:
        shapes = batch.shapes
        return ((int(shapes.rows[step]), (float(shapes.cached_tokens[step] / shapes.rows[step]),)),)
    alike: Counter[tuple[int, int]] = Counter()
    for group in batch.groups:
        if step < group.decode_steps:
            alike[group.prompt_len, group.gen_len] += len(group.requests)
    return tuple((count, (float(prompt + step),)) for (prompt, _), count in alike.items())


def _decode_s(costs: CostModel, weights_s: Floats, moved_s: Floats, compute_s: Floats) -> float:
    """`step_time` of the split problem, for each step by itself: weights go first where they cost compute least.

    Until the link of a mini-batch takes as long as its compute, a second of weights costs `lost` seconds, then a whole.
    """
    link = costs.hardware.link
    lost, slowed = link.compute_lost_to_h2d, 1 - min(1.0, link.during_compute.value)
    least = np.maximum(moved_s + slowed * compute_s, compute_s + lost * moved_s).sum(axis=1)
    gaps = np.maximum(compute_s * (1 - slowed) / (1 - lost) - moved_s, 0.0).sum(axis=1)
    hidden = np.minimum(weights_s, gaps)
    return float((least + lost * hidden + (weights_s - hidden)).sum())


def _prefill_s(costs: CostModel, decisions: Decisions, timeline: Timeline) -> float:
    """`prefill_time` of the split problem, for the decided chunks and what they load and store."""
    layers, link = costs.model.layers, costs.hardware.link
    prompts = {r: g.prompt_len for batch in decisions.mini_batches for g in batch.groups for r in g.requests}
    compute = 0.0
    for chunk in (chunk for chunks in decisions.prefill_passes for chunk in chunks):
        layer = costs.prefill_forward(tuple(prompts[r] for r in chunk.requests)).seconds
        compute += layers * layer + costs.embed(chunk.tokens).seconds + costs.sample(len(chunk.requests)).seconds
    columns = timeline.rows.columns
    crossed = {
        stream: columns.nbytes[(columns.stream == STREAM_CODE[stream]) & (columns.step == 0)].tolist()
        for stream in ("h2d", "d2h")
    }
    weights, stored = sum(map(costs.h2d, crossed["h2d"])), sum(map(costs.d2h, crossed["d2h"]))
    return max(
        compute + link.compute_lost_to_h2d * weights + link.compute_lost_to_d2h * stored,
        weights + (1 - link.beside_d2h) * stored,
        stored + (1 - link.beside_h2d) * weights,
    )
