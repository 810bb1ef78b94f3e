"""Which requests form each mini-batch: tokens spread evenly, since the largest one sizes the slots."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pulp

from planner.modelling import Problem, sum_of
from planner.solver import Highs

Lengths = tuple[int, int]
"""(peak blocks, generation length) of one request."""
GOOD_ENOUGH = 0.002
MAX_CLASSES = 24
SOLVE_LIMIT_S = 1.0


def compose(sizes: Sequence[int], count: int, lives: Sequence[int] = ()) -> list[list[int]]:
    """Request numbers of each of `count` mini-batches, for requests of `sizes` peak blocks and numbered lifetimes.

    Equal requests are dealt evenly. So are those of each lifetime, so that mini-batches stay alike as requests end.
    Requests that all end together go longest first into the emptiest mini-batch; when that leaves the fullest above the
    mean, an ILP over interchangeable requests tries to level it.
    """
    if len(set(lives)) > 1:
        return [sorted(members) for members in _dealt_by_life(sizes, count, lives)]
    if len(set(sizes)) == 1:
        cuts = [i * len(sizes) // count for i in range(count + 1)]
        return [list(range(a, b)) for a, b in pairwise(cuts)]
    bins = _longest_first(sizes, count)
    fullest = max(sum(sizes[r] for r in members) for members in bins)
    floor = max(-(-sum(sizes) // count), *sizes)
    classes = len(set(sizes))
    if fullest > floor * (1 + GOOD_ENOUGH) and classes <= MAX_CLASSES:
        better = _level(sizes, count, bins)
        if better and max(sum(sizes[r] for r in members) for members in better) < fullest:
            bins = better
    return [sorted(members) for members in bins]


def compositions(kinds: Sequence[object], most: int) -> Iterator[list[list[int]]]:
    """Every way to form up to `most` mini-batches of requests of these kinds, those of one kind interchangeable."""
    seen: set[tuple[object, ...]] = set()

    def extended(members: list[list[int]], request: int) -> Iterator[list[list[int]]]:
        if request == len(kinds):
            yield [list(one) for one in members]
            return
        for one in members:
            one.append(request)
            yield from extended(members, request + 1)
            one.pop()
        if len(members) < most:
            members.append([request])
            yield from extended(members, request + 1)
            members.pop()

    for found in extended([], 0):
        key = tuple(sorted(tuple(sorted(repr(kinds[r]) for r in members)) for members in found))
        if key not in seen:
            seen.add(key)
            yield found


def _dealt_by_life(sizes: Sequence[int], count: int, lives: Sequence[int]) -> list[list[int]]:
    """Longest-lived first, each to the mini-batch with fewest of its lifetime, of those to the emptiest.

    None comes to hold more than the mean and one request.
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    load, alike = [0] * count, [0] * count
    enough = sum(sizes) / count
    order = sorted(range(len(sizes)), key=lambda r: (-lives[r], -sizes[r], r))
    for place, r in enumerate(order):
        if place and lives[r] != lives[order[place - 1]]:
            alike = [0] * count
        # Those without a member come first once there are only as many requests left.
        short = len(order) - place <= sum(not members for members in bins)
        b = min(range(count), key=lambda b: (short and bool(bins[b]), load[b] > enough, alike[b], load[b], b))
        bins[b].append(r)
        load[b] += sizes[r]
        alike[b] += 1
    return bins


def _longest_first(sizes: Sequence[int], count: int) -> list[list[int]]:
    heap: list[tuple[int, int, int]] = [(0, 0, b) for b in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for request in sorted(range(len(sizes)), key=lambda r: (-sizes[r], r)):
        load, members, b = heapq.heappop(heap)
        bins[b].append(request)
        heapq.heappush(heap, (load + sizes[request], members + 1, b))
    return bins


def _level(sizes: Sequence[int], count: int, start: list[list[int]]) -> list[list[int]] | None:
    """min z; z >= load[b]; sum_b y[c,b] = requests of class c; load[b] >= load[b+1] (mini-batches are alike)."""
    members: dict[int, list[int]] = defaultdict(list)
    for request, size in enumerate(sizes):
        members[size].append(request)
    problem = Problem("composition")
    y = {
        (c, b): problem.add_variable(f"y_{c}_{b}", 0, len(group), pulp.LpInteger)
        for c, group in members.items() for b in range(count)
    }  # fmt: skip
    fullest = problem.add_variable("fullest", 0)
    problem += fullest
    loads = [sum_of(y[c, b] * c for c in members) for b in range(count)]
    for c, group in members.items():
        problem += sum_of(y[c, b] for b in range(count)) == len(group)
    for b in range(count):
        problem += fullest >= loads[b]
        problem += sum_of(y[c, b] for c in members) >= 1
        if b:
            problem += loads[b - 1] >= loads[b]
    ordered = sorted(start, key=lambda bin_: -sum(sizes[r] for r in bin_))
    for b, bin_ in enumerate(ordered):
        for c in members:
            y[c, b].setInitialValue(sum(sizes[r] == c for r in bin_))
    problem.solve(Highs(gapRel=GOOD_ENOUGH, timeLimit=SOLVE_LIMIT_S))
    values = {key: variable.varValue for key, variable in y.items()}
    if any(v is None for v in values.values()):
        return None
    left = {c: list(group) for c, group in members.items()}
    bins = [[left[c].pop(0) for c in members for _ in range(round(values[c, b] or 0))] for b in range(count)]
    return bins if not any(left.values()) and all(bins) else None
