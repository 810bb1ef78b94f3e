"""The fastest of several ways to plan one wave of requests, as the simulator sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from planner.estimate import estimated_s
from planner.few import Chosen, are_few, with_any_composition, with_one_ratio, with_whole_forms
from planner.forms import CacheForm
from planner.search import MAX_NODES, MOST_CACHE_SLOTS, Found, Search
from planner.simulator import simulate

DOMINANCE_GAP = 0.0007
"""Plans whose estimate is proven this close to the best are not worth a second look: a thousandth, less its errors."""
EVERY_WAY_GAP = 0.02
"""Jobs that are not proven to be this near the best are tried in more ways, those of a few requests in every way."""
WORTH_TRYING = 5e-4
"""Relative: what promises no more than this beyond the best so far is not tried."""


@dataclass(frozen=True)
class _Tried:
    """A plan, and how long it takes by an estimate."""

    found: Found
    seconds: float
    search: Search


def best_of(search: Search, below_s: float = inf) -> Chosen | None:
    """The search's choice and what else is tried where that is not proven to be near the best. None where there is no
    plan, or none that takes less than `below_s`."""
    tried = list(_each(search, below_s, MAX_NODES))
    bound_s = tried[0].found.bound_s if tried else search.floor_s()
    if bound_s is None or bound_s >= below_s:  # where no real numbers fit, no whole ones do
        return None
    for narrower in _narrower(search):
        if tried and _gap(bound_s, _fastest(tried).seconds) <= DOMINANCE_GAP:
            break
        if _found_by_more(tried, narrower):
            continue
        least_s = _fastest(tried).seconds * (1 - WORTH_TRYING) if tried else below_s
        near = tried and _gap(bound_s, _fastest(tried).seconds) <= EVERY_WAY_GAP
        tried += _each(narrower, least_s, 0, tried[0].seconds if near else inf)
    if not tried:
        return None
    fastest = _fastest(tried)
    chosen, by = (fastest.found, simulate(search.costs, fastest.found.decisions)), fastest.search
    if _gap(bound_s, chosen[1].total_s) > EVERY_WAY_GAP:
        chosen = with_one_ratio(search, chosen)
    if are_few(search) and _gap(bound_s, chosen[1].total_s) > EVERY_WAY_GAP:
        chosen = with_whole_forms(search, with_any_composition(by, chosen))
    return replace(chosen[0], bound_s=bound_s), chosen[1]


def _gap(bound_s: float, seconds: float) -> float:
    """How much less, relative, any plan could take at most."""
    return 1 - bound_s / seconds


def _fastest(tried: list[_Tried]) -> _Tried:
    return min(tried, key=lambda one: one.seconds)


def _narrower(search: Search) -> Iterator[Search]:
    """Fewer choices, of which one may beat a mixed plan: where rounding that costs something, and where buffers for the
    host, which a mixed plan is always charged, are all that keeps the cache from the GPU."""
    if search.options.act_share is not None:
        return
    every: list[tuple[CacheForm, ...]] = [search.forms]
    contents = sorted({form.content for form in search.forms})
    every += [tuple(form for form in search.forms if form.content == content) for content in contents]
    every += [tuple(form for form in forms if form.on_gpu) for forms in every]
    for forms in dict.fromkeys(every):
        if forms and forms != search.forms:
            yield Search(search.costs, search.workload, forms, search.options, like=search)


def _found_by_more(tried: list[_Tried], narrower: Search) -> bool:
    """Whether a search that allowed more has come to a plan of `narrower`'s forms alone: then so would that. Not where
    buffers for the host are smaller for fewer forms."""
    forms = set(narrower.forms)
    for search in {one.search.forms: one.search for one in tried}.values():
        best = _fastest([one for one in tried if one.search.forms == search.forms])
        if (
            set(best.found.decisions.forms) <= forms < set(search.forms)
            and search.store_elements == narrower.store_elements
        ):
            return True
    return False


def _each(search: Search, below_s: float, nodes: int, first_s: float = inf) -> Iterator[_Tried]:
    """The search's choice, another number of mini-batches, and more cache slots, as far as they may take less than what
    was found before and `below_s`. Only the choice where that takes no less than that of more forms, `first_s`."""
    found = search.run(below_s, nodes)
    if found is None:
        return
    best = _tried(found, search)
    yield best
    if best.seconds > first_s * (1 - WORTH_TRYING):
        return
    seen = [found.decisions]
    for by in _variations(search):
        if _gap(found.bound_s, best.seconds) <= DOMINANCE_GAP:
            break
        if by.options.cache_slots > search.options.cache_slots and all(
            form.on_gpu for form in best.found.decisions.forms
        ):
            continue
        count = len(best.found.decisions.mini_batches)
        near = {count // 2, count - count // 4, count + count // 2, 2 * count} - {count}
        counts = near if by is search else {count}
        # Objectives may be above what is simulated: then they rule out only what is still further above.
        enough_s = max(best.seconds * (1 - WORTH_TRYING), best.found.objective_s * (1 + WORTH_TRYING))
        for other in by.near(counts, enough_s):
            if other.decisions not in seen:
                seen.append(other.decisions)
                tried = _tried(replace(other, bound_s=found.bound_s), by)
                yield tried
                best = min(best, tried, key=lambda one: one.seconds)


def _tried(found: Found, search: Search) -> _Tried:
    """As estimated, or as simulated where the estimate is below what nothing beats."""
    seconds = estimated_s(search.costs, found.decisions)
    if seconds < found.bound_s:
        seconds = simulate(search.costs, found.decisions).total_s
    return _Tried(found, seconds, search)


def _variations(search: Search) -> Iterator[Search]:
    """The search itself first."""
    if len(search.requests) > 1:
        yield search
    for slots in range(search.options.cache_slots + 1, MOST_CACHE_SLOTS + 1 if search.options.vary_slots else 0):
        yield search.varied(cache_slots=slots)
