"""The fastest of several ways to plan one wave of requests, as the simulator sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from planner.search import Found, Search
from planner.simulator import simulate
from planner.timeline import Timeline

DOMINANCE_GAP = 0.003
"""Plans proven this close to the best are not worth a second look."""
WORTH_SIMULATING = 0.01
"""What promises no more than this beyond the best simulation so far may yet simulate faster."""

Chosen = tuple[Found, Timeline]


def best_of(search: Search) -> Chosen | None:
    """The search's choice and what else is tried where that is not proven to be near the best; None where there is no
    plan. One kind of content alone may beat a mixed plan where rounding that costs something."""
    best = _best_of_forms(search, inf)
    if best is None:
        return None
    found, timeline = best
    contents = {form.content for form in search.forms}
    for content in sorted(contents) if len(contents) > 1 and search.options.act_share is None else ():
        if 1 - found.bound_s / timeline.total_s <= DOMINANCE_GAP:
            break
        forms = tuple(form for form in search.forms if form.content == content)
        alone = _best_of_forms(Search(search.costs, search.workload, forms, search.options), timeline.total_s)
        if alone and alone[1].total_s < timeline.total_s:
            found, timeline = replace(alone[0], bound_s=found.bound_s), alone[1]
    return found, timeline


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
