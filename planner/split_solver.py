"""Solves a split problem: PuLP hands it to HiGHS, and whether each form is in use is decided after the rest."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pulp

from planner.decisions import kept_layers, spread_parts
from planner.errors import HybridserveError
from planner.ilp import TIE_BREAK, SplitModel, alive_shares, build
from planner.solver import Highs, Kept, Unsolved
from planner.split_problem import Split, SplitProblem

SOLVER_SLACK = 1e-6
"""Taken off bounds: solvers keep constraints to 1e-7 of their scale."""
QUICK: dict[str, Any] = {"presolve": "off", "mip_heuristic_effort": 0.0, "mip_allow_restart": False}
"""Problems this small are solved before what these save would pay."""
FEW = 0.03
"""Share of the blocks below which a form may not be worth its calls."""


def solve(data: SplitProblem, relax: bool = False, gap: float = 1e-4, limit_s: float = 10.0) -> Split | None:
    """The best split, or None when the constraints cannot be met together. `relax`: how many parts are
    resident of every layer and the size of prefill may be real numbers, too, as far as `data` does not decide them."""
    m = build(data, relax, ties=data.decided)
    if not _solved(m, gapRel=gap, timeLimit=limit_s):
        return None
    bound = float(pulp.value(m.problem.objective)) * data.unit_s * (1 if relax else 1 - gap)
    if data.decided:
        _decide_forms(m, gap)
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


def _solved(m: SplitModel, **options: float) -> bool:
    """Whether there is a solution, which the variables then hold."""
    for settings in (QUICK, {}):  # without presolving, a badly scaled problem may be given up
        m.problem.solve(Highs(**settings, **options))
        status = pulp.LpStatus[m.problem.status]
        if status in ("Infeasible", "Undefined"):
            return False
        if status == "Optimal":
            break
    if status != "Optimal" or m.resident.varValue is None:
        raise HybridserveError(f"the solver stopped without a plan: {status}")
    return True


def _decide_forms(m: SplitModel, gap: float) -> None:
    """Solve again with whole parts resident, then with the integers as found and every form in use or not: without the
    forms that hold few blocks where that is faster. What only breaks ties is then less than the gap that integers are
    accepted at. Parts come first: what room their rounding leaves may be worth another size of prefill, or a form.

    Where the solver's tolerances leave nothing feasible, the solution before stands.
    """
    values = _values(m)
    model = m.data.model
    resident = kept_layers(model, spread_parts(model, max(float(m.resident.varValue), 0.0)))
    if resident >= m.data.min_resident_layers * (1 - SOLVER_SLACK):
        m.resident.bounds(resident, resident)
        if _solved(m, gapRel=gap):
            values = _values(m)
    for variable, value in values.items():
        variable.varValue = value
        if variable.cat == pulp.LpInteger:
            variable.bounds(round(value), round(value))
    held = {f.name: sum(m.final[b, g, f.name].varValue for b, g in m.lives) for f in m.data.forms}
    blocks, best_t = sum(held.values()), inf
    for least in sorted({0.0, *(FEW if 0 < n < FEW * blocks else 0.0 for n in held.values())}):
        for (form, _), used in m.used.items():
            in_use = float(held[form] > least * blocks + 1e-6)
            used.bounds(in_use, in_use)
        if _solved(m) and (found_t := float(pulp.value(m.problem.objective))) < best_t:
            values, best_t = _values(m), found_t
    for variable, value in values.items():
        variable.varValue = value


def _values(m: SplitModel) -> dict[Any, float]:
    """Of every variable, in the last solution."""
    return {variable: variable.varValue for variable in m.problem.variables()}
