"""What a little more of each resource is worth: dual prices of the split problem's LP, checked by solving it again.

The LP is the relaxation of the plan's number of mini-batches, with weight slots as in the plan. The dual y of every row
says how fast the optimum moves with the row's right-hand side. By the envelope theorem, with x the optimal point, the
optimum moves with any parameter p of the data as the Lagrangian does at the fixed (x, y):

    dV/dp = d/dp [ objective(x; p) - sum_rows y (row(x; p) - right-hand side(p)) ]

so one rule prices memory, which is a right-hand side, and rates, which are coefficients of many rows. The change of the
Lagrangian is taken between two built models, so it covers every row that a rate appears in. Where several duals are
optimal (the LP is degenerate) they say only what *some* small change is worth. So every price is compared with the
optimum after one percent more, which is also what stands in its place where the two disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pulp

from planner.decisions import Decisions
from planner.errors import HybridserveError
from planner.ilp import TIE_BREAK, build
from planner.plan import WhatIf
from planner.sampled_timeline import middles
from planner.search import Search
from planner.solver import Highs
from planner.split_problem import SplitProblem
from planner.what_if import RATES, Resource, Step, steps, with_more

SMALL_STEP = 0.01
"""More of a resource that a price is checked with: enough to stand out from the solver's tolerance of 1e-7."""
PRICE_HOLDS_UP_TO = 0.02
"""Steps up to this share are predicted by the price; larger ones are solved, since prices fall."""
AGREE = 0.05
"""Relative: a dual price that is off by more from what one percent more brings is one of several."""
DUAL_STEP = 1e-5
"""Share at which the Lagrangian's derivative is taken: it is smooth there, and digits are left."""
MOST_PRICED = 6
"""Waves that differ; of more, so many are priced."""
_Part = tuple[Search, Decisions]


@dataclass(frozen=True)
class Price:
    """Seconds that the job's LP gains per share of one resource, at first."""

    seconds_per_share: float
    how: str
    """`duals`, `re-solved` where they are not unique, or `not binding` where more changes nothing at all."""


class PricedProblem:
    """One split problem solved as an LP, and what more of each resource does to its optimum."""

    def __init__(self, problem: SplitProblem) -> None:
        self.problem = problem
        self._model, self.optimum_s = self._solved(problem)
        self._duals = [row.pi or 0.0 for row in self._model.problem.constraints()]
        self._at_optimum_s = self._lagrangian_s(self._model)

    def price(self, resource: Resource) -> Price:
        """What the first percent of `resource` brings, at least 0."""
        if self._slack(resource):
            return Price(0.0, "not binding")
        found = self.gain_s(resource, SMALL_STEP) / SMALL_STEP
        dual = self.dual_seconds(resource)
        nothing = 2 * TIE_BREAK * self.optimum_s  # the terms that only break ties would count as much
        if max(abs(found), abs(dual)) <= nothing:
            return Price(0.0, "not binding")
        if abs(dual - found) <= AGREE * abs(found):
            return Price(max(dual, 0.0), "duals")  # below 0: a faster link takes more of compute's speed
        return Price(max(found, 0.0), "re-solved")

    def gain_s(self, resource: Resource, share: float) -> float:
        """Seconds by which the optimum falls with `share` more of `resource`: the LP, solved again."""
        return self.optimum_s - self._solved(more_of(self.problem, resource, share))[1]

    def dual_seconds(self, resource: Resource) -> float:
        """Seconds per share of `resource`, from the duals alone."""
        changed = self._build(more_of(self.problem, resource, DUAL_STEP))
        optimal = {variable.name: variable.varValue for variable in self._model.problem.variables()}
        for variable in changed.problem.variables():
            variable.varValue = optimal[variable.name]
        return (self._at_optimum_s - self._lagrangian_s(changed)) / DUAL_STEP

    def _lagrangian_s(self, model: Any) -> float:
        """objective - sum of dual x (left-hand side - right-hand side), which PuLP keeps as one expression."""
        rows = model.problem.constraints()
        paid = sum(y * row.value() for y, row in zip(self._duals, rows, strict=True) if y)
        return float(pulp.value(model.problem.objective) - paid) * self.problem.unit_s

    def _slack(self, resource: Resource) -> bool:
        """True for memory that is not full: by convexity, then no amount more changes anything."""
        row = self._model.problem.get_constraint_by_name(resource)
        return row is not None and abs(row.value()) > 1e-6

    def _build(self, problem: SplitProblem) -> Any:
        # In the units of the first problem: points and duals of one are laid into the other.
        vars(problem)["unit_s"] = self.problem.unit_s
        return build(problem, relax=True)

    def _solved(self, problem: SplitProblem) -> tuple[Any, float]:
        model = self._build(problem)
        model.problem.solve(Highs())
        if model.problem.status != pulp.LpStatusOptimal:
            said = pulp.LpStatus[model.problem.status]
            raise HybridserveError(f"the relaxation of a plan that was found has no optimum: {said}")
        return model, float(pulp.value(model.problem.objective)) * self.problem.unit_s


def more_of(problem: SplitProblem, resource: Resource, share: float) -> SplitProblem:
    """`problem` on a machine with (1 + share) times as much of `resource`: what `Search.relaxed` would say there."""
    hardware = with_more(problem.hardware, resource, share)
    if resource != "compute":
        return replace(problem, hardware=hardware)
    part_of = 1 / (1 + share)
    bins = tuple(
        replace(
            part, compute_s=part.compute_s * part_of, call_s=part.call_s * part_of,
            rebuild_s_per_block=part.rebuild_s_per_block * part_of,
        )
        for part in problem.bins
    )  # fmt: skip
    prefill = tuple(replace(size, compute_s=size.compute_s * part_of) for size in problem.prefill)
    sample_s = problem.sample_s * part_of
    return replace(problem, hardware=hardware, bins=bins, prefill=prefill, sample_s=sample_s)


def priced(search: Search, decisions: Decisions) -> PricedProblem:
    """The LP of a plan's decisions."""
    count = len(decisions.mini_batches)
    return PricedProblem(search.relaxed(count, count, min(decisions.resident_parts, default=0)))


def what_if(parts: Sequence[_Part], total_s: float, tokens: int) -> list[WhatIf]:
    """What a step of each resource would bring to a job of `tokens` generated in `total_s`.

    `parts` run one after the other, all with that step: seconds gained add up. Equal ones are priced once; of many
    that differ some stand for the others.
    """
    problems = [(priced(*part), times) for part, times in _unlike(parts)]
    return [_answer(problems, step, total_s, tokens) for step in steps(parts[0][0].costs.hardware)]


def _unlike(parts: Sequence[_Part]) -> list[tuple[_Part, float]]:
    """(one of equal parts, how many it stands for), at most `MOST_PRICED`, evenly spaced."""
    known: dict[object, list[_Part]] = {}
    for search, decisions in parts:
        key = id(search), len(decisions.mini_batches), min(decisions.resident_parts, default=0)
        known.setdefault(key, []).append((search, decisions))
    alike = list(known.values())
    if len(alike) <= MOST_PRICED:
        return [(some[0], len(some)) for some in alike]
    return [(parts[place], of) for place, of in middles(len(parts), MOST_PRICED)]


def _answer(problems: Sequence[tuple[PricedProblem, float]], step: Step, total_s: float, tokens: int) -> WhatIf:
    prices = [(problem.price(step.resource), times) for problem, times in problems]
    first_s = sum(price.seconds_per_share * times for price, times in prices) * step.share
    hows = {price.how for price, _ in prices}
    how = next(one for one in ("re-solved", "duals", "not binding") if one in hows)
    saved_s = first_s
    if step.share > PRICE_HOLDS_UP_TO and how != "not binding":
        saved_s = sum(problem.gain_s(step.resource, step.share) * times for problem, times in problems)
    saved_s = max(saved_s, 0.0)
    if step.resource in RATES:  # in tiny jobs the LP's optimum may be a little above the simulated total
        first_s, saved_s = min(first_s, step.share * total_s), min(saved_s, total_s * step.share / (1 + step.share))
    return WhatIf.model_validate({
        "change": step.change,
        "tokens_per_s": tokens / (total_s - saved_s) - tokens / total_s,
        "at_first_tokens_per_s": tokens * first_s / total_s**2,
        "how": how,
    })  # fmt: skip
