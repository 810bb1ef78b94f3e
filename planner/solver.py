"""HiGHS as PuLP hands problems to it, whole instead of row by row: what most of PuLP's time goes into."""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np
import pulp


class Highs(pulp.HiGHS):  # type: ignore[misc]
    """`pulp.HiGHS` on one thread, silent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(msg=False, threads=1, **options)

    def buildSolverModel(self, lp: Any) -> None:
        """All columns and rows at once, of a problem to minimise."""
        variables, rows = lp.variables(), list(lp.constraints.values())
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
