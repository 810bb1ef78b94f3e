"""Solves a split problem: PuLP hands it to HiGHS, and whether each form is in use is decided after the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Any

import pulp

from planner.decisions import kept_layers, spread_parts
from planner.errors import HybridserveError
from planner.ilp import TIE_BREAK, SplitModel, alive_shares, build
from planner.modelling import Variable
from planner.solver import Kept, Unsolved
from planner.split_problem import Split, SplitProblem

SOLVER_SLACK = 1e-6
"""Taken off bounds: solvers keep constraints to 1e-7 of their scale."""
QUICK: dict[str, Any] = {"presolve": "off", "mip_heuristic_effort": 0.0, "mip_allow_restart": False}
"""Problems this small are solved before what these save would pay."""
FEW, SOME = 0.03, 0.2
"""Shares of the blocks: below the first a form may not be worth its calls, below the second those that are rebuilt may
not be worth the products of few rows that they cost."""
CLEARLY = 1e-3
"""Relative: a form that holds more than very few blocks is left out for more than this: less says little."""


def solve(data: SplitProblem, relax: bool = False, gap: float = 1e-4, limit_s: float = 10.0) -> Split | None:
    """The best split, or None when the constraints cannot be met together. `relax`: how many parts are
    resident of every layer and the size of prefill may be real numbers, too, as far as `data` does not decide them."""
    m = build(data, relax, ties=data.decided)
    kept = _solved(m, gap, limit_s)
    if kept is None:
        return None
    bound = float(pulp.value(m.problem.objective)) * data.unit_s * (1 if relax else 1 - gap)
    if data.decided and not relax:
        _decide_forms(m, kept)
    final = {key: max(float(v.varValue), 0.0) for key, v in m.final.items()}
    alive = {(b, g): alive_shares(data.bins[b].demands[g]) for b, g in m.lives}
    return Split(
        begun={(b, g, f, e): max(float(v.varValue), 0.0) / alive[b, g][e] for (b, g, f, e), v in m.n.items()},
        final=final,
        prefill=max(range(len(data.prefill)), key=lambda k: m.chosen[k].varValue or 0.0),
        resident_layers=float(m.resident.varValue),
        least_parts=_least_parts(m),
        objective_s=float(pulp.value(m.job_t)) * data.unit_s,
        # link_use and host_use <= job time, so the least job time is at least the least objective / (1 + 2 TIE_BREAK).
        bound_s=bound * (1 - SOLVER_SLACK) / (1 + 2 * TIE_BREAK if data.decided else 1),
    )


class Relaxation:
    """The bounds of a relaxation for each number of parts that may be resident of every layer at least."""

    def __init__(self, data: SplitProblem) -> None:
        self.data = data
        self._model: tuple[SplitModel, Kept] | None = None

    def bound_s(self, least_parts: int) -> float | None:
        """None where it has no solution. Built for the first, and solved on from there for the others."""
        if self._model is None:
            m = build(replace(self.data, least_parts=least_parts), relax=True, ties=False)
            self._model = m, Kept(m.problem, **QUICK)
        m, kept = self._model
        try:
            least = kept.least(m.keep(least_parts))
        except Unsolved:
            split = solve(replace(self.data, least_parts=least_parts), relax=True)
            return split.bound_s if split else None
        return None if least is None else least * self.data.unit_s * (1 - SOLVER_SLACK)


def _least_parts(m: SplitModel) -> int:
    if m.data.least_parts is not None:
        return m.data.least_parts
    return max(range(len(m.kept_parts)), key=lambda k: m.kept_parts[k].varValue or 0.0)


def _solved(m: SplitModel, gap: float, limit_s: float) -> Kept | None:
    """Its first solution, which the variables then hold; None where there is none."""
    for settings in (QUICK, {}):  # without presolving, a badly scaled problem may be given up
        kept = Kept(m.problem, gapRel=gap, timeLimit=limit_s, **settings)
        try:
            if kept.least(()) is None:
                return None
        except Unsolved as error:
            said = str(error)
            continue
        kept.take(kept.values())
        return kept
    raise HybridserveError(f"the solver stopped without a plan: {said}")


def _decide_forms(m: SplitModel, kept: Kept) -> None:
    """Solve again with whole parts resident, then with the integers as found and every form in use or not: without the
    forms that hold few blocks where that is faster. What only breaks ties is then less than the gap that integers are
    accepted at. Parts come first: what room their rounding leaves may be worth another size of prefill, or a form.

    Where the solver's tolerances leave nothing feasible, the solution before stands.
    """
    model = m.data.model
    resident = kept_layers(model, spread_parts(model, max(float(m.resident.varValue), 0.0)))
    if resident >= m.data.min_resident_layers * (1 - SOLVER_SLACK):
        m.resident.bounds(resident, resident)
        if _least(kept, [m.resident]) < inf:
            kept.take(kept.values())
        else:
            m.resident.bounds(m.resident.varValue, m.resident.varValue)
    whole = kept.whole_numbers
    for variable in whole:
        variable.bounds(round(variable.varValue), round(variable.varValue))
    kept.decide_integers()
    # Not as `used` says, of which as much as calls are free may be in use for nothing.
    stretch_of = m.stretch_of()
    in_use = {(form, stretch_of[e]) for (_, _, form, e), n in m.n.items() if n.varValue > SOLVER_SLACK}
    read = {form for form, _ in in_use}
    # What no step reads need not be in a form of its own.
    unread = {f.name for f in m.data.forms} - read if read else set()
    values, best_t = None, inf
    for names, worth in _few(m):
        left_out = names | unread
        for key, used in m.used.items():
            whether = float(key in in_use and key[0] not in left_out)
            used.bounds(whether, whether)
        for (_, _, form), final in m.final.items():
            final.bounds(0, 0.0 if form in left_out else None)
        changed = [m.resident, *whole, *m.used.values(), *m.final.values()]
        if (found_t := _least(kept, changed)) < best_t * (1 - worth):
            values, best_t = kept.values(), found_t
    if values is not None:
        kept.take(values)


def _least(kept: Kept, changed: Iterable[Variable]) -> float:
    """Infinite where there is no solution."""
    try:
        found = kept.least(changed)
    except Unsolved:
        return inf
    return inf if found is None else found


def _few(m: SplitModel) -> list[tuple[set[str], float]]:
    """(names of forms to do without, for how much less time): none, those that hold very few blocks, all that are
    rebuilt if they hold few, and each that holds few."""
    held = {f: sum(m.final[b, g, f.name].varValue for b, g in m.lives) for f in m.data.forms}
    blocks = sum(held.values())
    few = {f.name for f, n in held.items() if 0 < n < FEW * blocks}
    rebuilt = sum(n for f, n in held.items() if f.rebuilt)
    every = {f.name for f in held if f.rebuilt} if 0 < rebuilt < SOME * blocks else set()
    some = [{f.name} for f, n in held.items() if FEW * blocks <= n < SOME * blocks]
    return [(set(), 0.0), *((names, 0.0) for names in (few, every) if names), *((one, CLEARLY) for one in some)]
