"""The fastest of several ways to plan one wave of requests, as the simulator sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from planner.few import FEW_REQUESTS, Chosen, with_any_composition, with_whole_forms
from planner.search import WORTH_SIMULATING, Found, Search
from planner.simulator import simulate

DOMINANCE_GAP = 0.001
"""Plans proven this close to the best are not worth a second look."""

EVERY_WAY_GAP = 0.02
"""Jobs of a few requests that are not proven to be this near the best are tried in every way."""


def best_of(search: Search, below_s: float = inf) -> Chosen | None:
    """The search's choice and what else is tried where that is not proven to be near the best. None where there is no
    plan, or none that takes less than `below_s`."""
    best = _best_of_forms(search, below_s)
    bound_s = best[0].bound_s if best else search.floor_s()
    if bound_s is None or bound_s >= below_s:  # where no real numbers fit, no whole ones do
        return None
    by = search
    for narrower in _narrower(search):
        if best and 1 - bound_s / best[1].total_s <= DOMINANCE_GAP:
            break
        # In full, so that no policy with fewer choices ever finds more.
        other = best_of(narrower, best[1].total_s if best else below_s)
        if other and (best is None or other[1].total_s < best[1].total_s):
            best, by = other, narrower
    if best and len(search.requests) <= FEW_REQUESTS and 1 - bound_s / best[1].total_s > EVERY_WAY_GAP:
        best = with_whole_forms(search, with_any_composition(by, best))
    return (replace(best[0], bound_s=bound_s), best[1]) if best else None


def _narrower(search: Search) -> Iterator[Search]:
    """Fewer choices, of which one may beat a mixed plan: where rounding that costs something, and where buffers for the
    host, which a mixed plan is always charged, are all that keeps the cache from the GPU."""
    if search.options.act_share is not None:
        return
    gpu = tuple(form for form in search.forms if form.on_gpu)
    contents = sorted({form.content for form in search.forms})
    alone = (tuple(form for form in search.forms if form.content == content) for content in contents)
    for forms in (gpu, *(alone if len(contents) > 1 else ())):
        if forms and forms != search.forms:
            yield Search(search.costs, search.workload, forms, search.options)


def _best_of_forms(search: Search, below_s: float) -> Chosen | None:
    """What simulates fastest of the search's choice, other numbers of mini-batches, and mini-batches of requests that
    end together. None where there is no plan, or none that takes less than `below_s`."""
    found = search.run(below_s)
    if found is None:
        return None
    best, timeline = found, simulate(search.costs, found.decisions)
    for other in _others(search, len(found.decisions.mini_batches)):
        if other.objective_s < timeline.total_s * (1 + WORTH_SIMULATING):
            simulated = simulate(search.costs, other.decisions)
            if simulated.total_s < timeline.total_s:
                best, timeline = replace(other, bound_s=found.bound_s), simulated
        if 1 - found.bound_s / timeline.total_s <= DOMINANCE_GAP:
            break
    return best, timeline


def _others(search: Search, count: int) -> Iterator[Found]:
    if len(search.requests) > 1:
        yield from search.near(count)
    if len({r.gen_len for r in search.requests}) > 1:
        options = replace(search.options, end_together=True)
        yield from Search(search.costs, search.workload, search.forms, options).near(count)
