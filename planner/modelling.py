"""PuLP's notation for linear programs, with the arithmetic of PuLP 3 done in one step for each operator.

Building problems is what planning takes most of its time for: PuLP 3 copies an expression up to three times for each
operator and looks at what it was given in six ways. These are its own classes, and what they make is what they would
make, as far as `planner.ilp` and its like ask for it. PuLP 4 computes in compiled code and needs none of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pulp

Term = Any
"""A variable, an expression or a number."""


class Expression(pulp.LpAffineExpression):  # type: ignore[misc]
    """Factors by variable, and a constant."""

    def __init__(self, terms: Any = (), constant: float = 0.0) -> None:
        dict.__init__(self, terms)
        self.constant = constant

    name = None

    def _plus(self, other: Term, sign: float) -> Expression:
        found = Expression(self, self.constant)
        found.add(other, sign)
        return found

    def add(self, other: Term, sign: float = 1.0) -> None:
        """`sign` times another term, in place."""
        kind = type(other)
        if kind is Variable:
            self[other] = self[other] + sign if other in self else sign
        elif kind is Expression:
            self.constant += sign * other.constant
            for variable, factor in other.items():
                self[variable] = self[variable] + sign * factor if variable in self else sign * factor
        else:
            self.constant += sign * other

    def __add__(self, other: Term) -> Expression:
        return self._plus(other, 1.0)

    __radd__ = __add__

    def __iadd__(self, other: Term) -> Expression:
        self.add(other)
        return self

    def __sub__(self, other: Term) -> Expression:
        return self._plus(other, -1.0)

    def __rsub__(self, other: Term) -> Expression:
        return (self * -1.0)._plus(other, 1.0)

    def __neg__(self) -> Expression:
        return self * -1.0

    def __mul__(self, factor: float) -> Expression:
        if not factor:
            return Expression()
        return Expression([(variable, factor * of) for variable, of in self.items()], factor * self.constant)

    __rmul__ = __mul__

    def __le__(self, other: Term) -> pulp.LpConstraint:
        return pulp.LpConstraint(self._plus(other, -1.0), pulp.LpConstraintLE)

    def __ge__(self, other: Term) -> pulp.LpConstraint:
        return pulp.LpConstraint(self._plus(other, -1.0), pulp.LpConstraintGE)

    def __eq__(self, other: Term) -> pulp.LpConstraint:
        return pulp.LpConstraint(self._plus(other, -1.0), pulp.LpConstraintEQ)

    __hash__ = None  # type: ignore[assignment]


class Variable(pulp.LpVariable):  # type: ignore[misc]
    """Made by `Problem.add_variable`."""

    __hash__ = object.__hash__
    """Of the variable itself: dictionaries never ask whether two that differ are equal, which would be a constraint."""

    def _alone(self) -> Expression:
        return Expression(((self, 1.0),))

    def __add__(self, other: Term) -> Expression:
        found = self._alone()
        found.add(other)
        return found

    __radd__ = __add__

    def __sub__(self, other: Term) -> Expression:
        found = self._alone()
        found.add(other, -1.0)
        return found

    def __rsub__(self, other: Term) -> Expression:
        found = Expression(((self, -1.0),))
        found.add(other)
        return found

    def __neg__(self) -> Expression:
        return Expression(((self, -1.0),))

    def __mul__(self, factor: float) -> Expression:
        return Expression(((self, factor),)) if factor else Expression()

    __rmul__ = __mul__

    def __le__(self, other: Term) -> pulp.LpConstraint:
        return pulp.LpConstraint(self - other, pulp.LpConstraintLE)

    def __ge__(self, other: Term) -> pulp.LpConstraint:
        return pulp.LpConstraint(self - other, pulp.LpConstraintGE)

    def __eq__(self, other: Term) -> pulp.LpConstraint:
        return pulp.LpConstraint(self - other, pulp.LpConstraintEQ)


class Problem(pulp.LpProblem):  # type: ignore[misc]
    """A problem to minimise."""

    def __init__(self, name: str) -> None:
        super().__init__(name, pulp.LpMinimize)

    def add_variable(
        self, name: str, lowBound: float | None = None, upBound: float | None = None, cat: str = pulp.LpContinuous
    ) -> Variable:  # fmt: skip
        """With bounds, and whole if `cat` says so. It belongs to the problem from now on, as in PuLP 4."""
        variable = Variable(name, lowBound, upBound, cat, _skip_v4_deprecation=True)
        self._register_variable(variable)
        return variable

    def _add_variables(self, variables: object) -> None:
        """Every one is there since it was made."""


def sum_of(terms: Iterable[Term]) -> Expression:
    """All of them together."""
    found = Expression()
    for term in terms:
        found.add(term)
    return found
