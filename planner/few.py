"""More ways for jobs that are far from their bound, where whole blocks and buffers weigh more than averages say, all
simulated: the paper's heuristic, and of a few requests every way to combine them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product

from planner.composition import compositions
from planner.decisions import Decisions, spread_parts, streams
from planner.forms import CacheForm
from planner.greedy import Greedy
from planner.memory import resident_layers
from planner.placement import MiniBatch, RequestGroup
from planner.search import Found, Search
from planner.simulator import simulate
from planner.timeline import Timeline

FEW_REQUESTS, FEW_ALIKE = 3, 6
"""Requests, and equal ones, for which every way is tried: equal ones have fewer ways."""
FEW_BATCHES, MOST_COMPOSITIONS = 3, 5
"""Mini-batches, and ways to form them, up to which all are tried."""
MOST_OF_ONE_RATIO = 16
"""Requests up to which the paper's heuristic is asked: of more it takes seconds."""
MOST_OPERATIONS = 400_000
"""Simulated for one job, about a second's worth: large models have many in each plan."""

Chosen = tuple[Found, Timeline]


def with_one_ratio(search: Search, best: Chosen) -> Chosen:
    """The plan of the paper's heuristic, whose choices are some of those of a search of all forms."""
    options = search.options
    free = not options.min_resident_layers and options.act_share is None and set(Greedy.FORMS) <= set(search.forms)
    decisions = Greedy(search).best() if free and len(search.requests) <= MOST_OF_ONE_RATIO else None
    timeline = simulate(search.costs, decisions) if decisions else None
    if decisions and timeline and timeline.total_s < best[1].total_s:
        return Found(decisions, timeline.total_s, 0.0, 1), timeline
    return best


def are_few(search: Search) -> bool:
    """Whether every way is tried for its requests."""
    return len(search.requests) <= (FEW_ALIKE if len(search.workload.classes()) == 1 else FEW_REQUESTS)


def with_any_composition(search: Search, best: Chosen) -> Chosen:
    """Every way to form mini-batches: levelled ones are not always best where memory is tight."""
    fixed = search.options.mini_batches
    kinds = [(r.prompt_len, r.gen_len) for r in search.requests]
    for batches in islice(compositions(kinds, fixed or FEW_BATCHES), MOST_COMPOSITIONS):
        if fixed and len(batches) != min(fixed, len(kinds)):
            continue
        found = search.composed(batches, best[1].total_s)
        timeline = simulate(search.costs, found.decisions) if found else None
        if found and timeline and timeline.total_s < best[1].total_s:
            best = found, timeline
    return best


def with_whole_forms(search: Search, best: Chosen) -> Chosen:
    """Every request in a single form, in the mini-batches that are best so far."""
    if search.options.act_share is not None:
        return best
    left = MOST_OPERATIONS // max(len(best[1].spans), 1)
    for decisions in _whole(search, best[0].decisions):
        if not left:
            break
        left -= 1
        timeline = simulate(search.costs, decisions)
        if timeline.total_s < best[1].total_s:
            best = Found(decisions, timeline.total_s, 0.0, 1), timeline
    return best


def _whole(search: Search, like: Decisions) -> Iterator[Decisions]:
    """What fits of all such choices; requests of one mini-batch that are alike are interchangeable."""
    model, most = search.costs.model, search.options.max_resident_layers
    resident = {like.resident_parts, (), spread_parts(model, model.layers if most is None else min(most, model.layers))}
    members = [
        (m, g, r) for m, b in enumerate(like.mini_batches) for g, group in enumerate(b.groups) for r in group.requests
    ]
    seen = set()
    for forms in product(search.forms, repeat=len(members)):
        alike = sorted(zip(((m, *_lengths(like, m, g)) for m, g, _ in members), (f.name for f in forms), strict=True))
        if tuple(alike) in seen:
            continue
        seen.add(tuple(alike))
        of = {r: form for (_, _, r), form in zip(members, forms, strict=True)}
        batches = tuple(_in_forms(batch, of) for batch in like.mini_batches)
        for parts in sorted(resident, reverse=True):
            if found := _fitting(search, replace(like, mini_batches=batches, resident_parts=parts)):
                yield found


def _lengths(like: Decisions, m: int, g: int) -> tuple[int, int]:
    group = like.mini_batches[m].groups[g]
    return group.prompt_len, group.gen_len


def _in_forms(batch: MiniBatch, of: dict[int, CacheForm]) -> MiniBatch:
    return MiniBatch(tuple(
        RequestGroup((r,), group.prompt_len, group.gen_len, (of[r],) * len(group.blocks))
        for group in batch.groups for r in group.requests
    ))  # fmt: skip


def _fitting(search: Search, decisions: Decisions) -> Decisions | None:
    """With the longest passes of prefill that fit."""
    model, options = search.costs.model, search.options
    if resident_layers(model, decisions) < options.min_resident_layers:
        return None
    slots = options.weight_slots if streams(model, decisions.resident_parts) else 0
    decisions = replace(decisions, weight_slots=slots)
    for sized in reversed(search.prefill_sizes):
        passes = search.prefill.passes(decisions.mini_batches, sized.chunk, sized.passed)
        found = replace(decisions, prefill_passes=passes)
        if max(search.overshoot(found)) <= 0:
            return found
    return None
