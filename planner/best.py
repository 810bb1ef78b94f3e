"""The fastest of several ways to plan one wave of requests, as the simulator sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from planner.search import Found, Search
from planner.simulator import simulate
from planner.timeline import Timeline

DOMINANCE_GAP = 0.001
"""Plans proven this close to the best are not worth a second look."""
WORTH_SIMULATING = 0.01
"""What promises no more than this beyond the best simulation so far may yet simulate faster."""

Chosen = tuple[Found, Timeline]


def best_of(search: Search) -> Chosen | None:
    """The search's choice and what else is tried where that is not proven to be near the best; None where there is no
    plan."""
    best = _best_of_forms(search, inf)
    bound_s = best[0].bound_s if best else search.floor_s()
    if bound_s is None:  # no real numbers fit, so no whole ones do
        return None
    for narrower in _narrower(search):
        if best and 1 - bound_s / best[1].total_s <= DOMINANCE_GAP:
            break
        other = _best_of_forms(narrower, best[1].total_s if best else inf)
        if other and (best is None or other[1].total_s < best[1].total_s):
            best = replace(other[0], bound_s=bound_s), other[1]
    return best


def _narrower(search: Search) -> Iterator[Search]:
    """Fewer choices, of which one may beat a mixed plan where rounding that costs something: one kind of content, and
    everything on the GPU."""
    if search.options.act_share is not None:
        return
    contents = {form.content for form in search.forms}
    for content in sorted(contents) if len(contents) > 1 else ():
        forms = tuple(form for form in search.forms if form.content == content)
        yield Search(search.costs, search.workload, forms, search.options)
    resident, layers = (
        tuple(form for form in search.forms if form.on_gpu and not form.rebuilt),
        search.costs.model.layers,
    )
    if resident and resident != search.forms and search.options.max_resident_layers is None:
        yield Search(search.costs, search.workload, resident, replace(search.options, min_resident_layers=layers))


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
