"""HiGHS as PuLP hands problems to it, whole instead of row by row: what most of PuLP's time goes into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import highspy
import numpy as np
import pulp

from planner.modelling import Variable


class Highs(pulp.HiGHS):  # type: ignore[misc]
    """`pulp.HiGHS` on one thread, silent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(msg=False, threads=1, **options)

    def actualSolve(self, lp: Any) -> int:
        with _sorted_once(lp):
            return int(super().actualSolve(lp))

    def buildSolverModel(self, lp: Any) -> None:
        """All columns and rows at once, of a problem to minimise."""
        variables, rows = lp.variables(), lp.constraints()
        for i, variable in enumerate(variables):
            variable.index = i
        for i, row in enumerate(rows):
            row.index = i
        entries = [[(v.index, x) for v, x in row.items() if x] for row in rows]
        model, inf = highspy.HighsLp(), highspy.kHighsInf
        model.num_col_, model.num_row_ = len(variables), len(rows)
        model.col_cost_ = np.array([lp.objective.get(v, 0.0) for v in variables])
        model.col_lower_ = np.array([-inf if v.lowBound is None else v.lowBound for v in variables])
        model.col_upper_ = np.array([inf if v.upBound is None else v.upBound for v in variables])
        model.row_lower_ = np.array([-inf if row.sense == pulp.LpConstraintLE else -row.constant for row in rows])
        model.row_upper_ = np.array([inf if row.sense == pulp.LpConstraintGE else -row.constant for row in rows])
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.cumsum([0, *map(len, entries)])
        model.a_matrix_.index_ = np.array([i for row in entries for i, _ in row])
        model.a_matrix_.value_ = np.array([x for row in entries for _, x in row])
        if any(v.cat == pulp.LpInteger for v in variables):
            kinds = highspy.HighsVarType
            model.integrality_ = [kinds.kInteger if v.cat == pulp.LpInteger else kinds.kContinuous for v in variables]
        lp.solverModel.passModel(model)


@contextmanager
def _sorted_once(lp: Any) -> Iterator[list[Variable]]:
    """PuLP collects and sorts the variables anew for each look at them: once is enough."""
    variables = lp.variables()
    lp.variables = lambda: variables
    try:
        yield variables
    finally:
        del lp.variables


class Unsolved(Exception):
    """HiGHS gave up."""


class Kept:
    """A program to minimise that HiGHS keeps: solved again for other bounds, from the last solution on."""

    def __init__(self, lp: Any, **options: Any) -> None:
        self._lp = lp
        solver = Highs(**options)
        solver.createAndConfigureSolver(lp)
        with _sorted_once(lp) as self._variables:
            solver.buildSolverModel(lp)

    @property
    def whole_numbers(self) -> list[Variable]:
        """The variables that are."""
        return [variable for variable in self._variables if variable.cat == pulp.LpInteger]

    def change(self, row: Any, variable: Variable, factor: float) -> None:
        """That of a variable in one row, brought to the left side of it."""
        self._lp.solverModel.changeCoeff(row.index, variable.index, factor)

    def decide_integers(self) -> None:
        """What is left is linear: the bounds of every whole number leave a single one."""
        count = self._lp.solverModel.getNumCol()
        kinds = np.full(count, highspy.HighsVarType.kContinuous)
        self._lp.solverModel.changeColsIntegrality(count, np.arange(count, dtype=np.int32), kinds)

    def values(self) -> list[float]:
        """Of every variable, in the last solution."""
        return list(self._lp.solverModel.getSolution().col_value)

    def take(self, values: list[float]) -> None:
        """Into the variables."""
        for variable in self._variables:
            variable.varValue = values[variable.index]

    def value(self, variable: Variable) -> float:
        """Of a variable in the last solution."""
        return float(self._lp.solverModel.getSolution().col_value[variable.index])

    def least(self, changed: Iterable[Variable]) -> float | None:
        """The least objective with these variables' bounds as they now are; None where nothing is feasible. Raises
        Unsolved where HiGHS stops for any other reason."""
        solver = self._lp.solverModel
        for variable in changed:
            low, high = variable.lowBound, variable.upBound
            solver.changeColBounds(variable.index, low, highspy.kHighsInf if high is None else high)
        solver.run()
        status, of = solver.getModelStatus(), highspy.HighsModelStatus
        if status == of.kOptimal:
            return float(solver.getObjectiveValue() + self._lp.objective.constant)
        if status in (of.kInfeasible, of.kUnboundedOrInfeasible):
            return None
        raise Unsolved(str(status))
