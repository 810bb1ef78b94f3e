"""More ways for jobs that are far from their bound, where whole blocks and buffers weigh more than averages say, all
simulated: the paper's heuristic, and of a few requests every way to combine them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product

from planner.composition import compositions
from planner.decisions import EXACT, Decisions, PrefillPass, kept_layers, spreads, streams
from planner.forms import CacheForm
from planner.greedy import Greedy
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
    """Every request in a single form, or as it is, in the mini-batches that are best so far; and in every way to share
    the GPU between prefill's buffers and weights, which the split has weighed by averages."""
    if search.options.act_share is not None:
        return best
    left = MOST_OPERATIONS // max(len(best[1].spans), 1)
    for decisions in islice(_whole(search, best[0].decisions), left):
        timeline = simulate(search.costs, decisions)
        if timeline.total_s < best[1].total_s:
            best = Found(decisions, timeline.total_s, 0.0, 1), timeline
    return best


def _whole(search: Search, like: Decisions) -> Iterator[Decisions]:
    """What fits of all such choices; requests of one mini-batch that are alike are interchangeable."""
    amounts = _amounts(search)
    # Whatever the forms: these are of prompts, the largest buffers first.
    sizes = ((sized.chunk, sized.passed) for sized in reversed(search.prefill_sizes))
    passes = list(dict.fromkeys(search.prefill.passes(like.mini_batches, *size) for size in sizes))
    members = [
        (m, g, r) for m, b in enumerate(like.mini_batches) for g, group in enumerate(b.groups) for r in group.requests
    ]
    yield from _shared(search, like, passes, amounts)
    seen = set()
    for forms in product(search.forms, repeat=len(members)):
        alike = sorted(zip(((m, *_lengths(like, m, g)) for m, g, _ in members), (f.name for f in forms), strict=True))
        if tuple(alike) in seen:
            continue
        seen.add(tuple(alike))
        of = {r: form for (_, _, r), form in zip(members, forms, strict=True)}
        batches = tuple(_in_forms(batch, of) for batch in like.mini_batches)
        yield from _shared(search, replace(like, mini_batches=batches), passes, amounts)


def _amounts(search: Search) -> list[tuple[int, ...]]:
    """Every amount of weights on the GPU within the options, the least first."""
    model, options = search.costs.model, search.options
    least = options.min_resident_layers * (1 - EXACT)
    most = (model.layers if options.max_resident_layers is None else options.max_resident_layers) * (1 + EXACT)
    return [parts for parts in spreads(model) if least <= kept_layers(model, parts) <= most]


def _lengths(like: Decisions, m: int, g: int) -> tuple[int, int]:
    group = like.mini_batches[m].groups[g]
    return group.prompt_len, group.gen_len


def _in_forms(batch: MiniBatch, of: dict[int, CacheForm]) -> MiniBatch:
    return MiniBatch(tuple(
        RequestGroup((r,), group.prompt_len, group.gen_len, (of[r],) * len(group.blocks))
        for group in batch.groups for r in group.requests
    ))  # fmt: skip


def _shared(
    search: Search, like: Decisions, passes: Sequence[tuple[PrefillPass, ...]], amounts: Sequence[tuple[int, ...]]
) -> Iterator[Decisions]:
    """`like` with each of `passes`, and the most of `amounts` that fit beside their buffers."""
    kept = None
    for one in passes:
        found = _most_resident(search, replace(like, prefill_passes=one), amounts)
        if found and found.resident_parts != kept:  # no smaller buffers for the same weights
            kept = found.resident_parts
            yield found


def _most_resident(search: Search, like: Decisions, amounts: Sequence[tuple[int, ...]]) -> Decisions | None:
    """`like` with the most of `amounts` that fit."""

    def with_parts(parts: tuple[int, ...]) -> Decisions:
        slots = search.options.weight_slots if streams(search.costs.model, parts) else 0
        return replace(like, resident_parts=parts, weight_slots=slots)

    def over(parts: tuple[int, ...]) -> bool:
        return max(search.overshoot(with_parts(parts))) > 0

    if amounts and not over(amounts[-1]):  # with nothing that streams there are no slots either
        return with_parts(amounts[-1])
    fitting = bisect_left(amounts, True, key=over)
    return with_parts(amounts[fitting - 1]) if fitting else None
