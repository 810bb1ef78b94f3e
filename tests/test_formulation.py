"""docs/formulation.md is what the code of the split problem says, and its rows are the rows that are solved."""

from __future__ import annotations

import re

import pulp
import pytest

from benchmarks import shadow_prices
from benchmarks.formulation import (
    DOCUMENT,
    FAMILY_WORDS,
    VARIABLES,
    document,
    example,
    in_symbols,
    price_record,
    rows_text,
    variables_table,
)
from planner.ilp import FAMILIES, build
from planner.modelling import sum_of


def test_the_document_is_what_the_code_says() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python -m benchmarks.formulation"


def test_every_family_has_words_and_its_algebra() -> None:
    assert list(FAMILY_WORDS) == [family.__name__ for family in FAMILIES]
    text = DOCUMENT.read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"### `{family.__name__}`" in text
        assert re.search(r"<=|>=|=", family.__doc__ or ""), f"{family.__name__} has no algebra"


def test_every_row_belongs_to_one_family() -> None:
    for problem in example():
        model = build(problem)
        assert [row for rows in model.rows.values() for row in rows] == model.problem.constraints()
        assert list(model.rows) == [family.__name__ for family in FAMILIES]


def test_a_variable_without_words_is_an_error() -> None:
    model, exact = map(build, example())
    model.problem += model.problem.add_variable("another", 0) >= 1
    with pytest.raises(KeyError, match="another"):
        variables_table(exact, model)


def test_the_rows_that_are_shown_hold_at_the_optimum_and_bound_it() -> None:
    """What is printed, read back with four digits: true of the solution within that rounding."""
    problem = example()[0]
    forms = [form.name for form in problem.forms]
    model = build(problem, relax=True)
    model.problem.solve(pulp.HiGHS(msg=False, threads=1))
    values = {in_symbols(sum_of([variable]), forms): variable.varValue for variable in model.problem.variables()}
    rows = [row.strip() for row in rows_text(model, forms).splitlines() if row.startswith("    ")]
    assert len(rows) == len(model.problem.constraints())
    for row in rows:
        left, sense, right = re.fullmatch(r"(.*) (<=|>=|=) (.*)", row).groups()  # type: ignore[union-attr]
        terms = [(sign, float(factor or 1), name) for sign, factor, name in TERM.findall(left)]
        assert terms, row
        total = sum((-factor if sign == "-" else factor) * values[name] for sign, factor, name in terms)
        slack = 2e-3 * (sum(abs(factor * values[name]) for _, factor, name in terms) + abs(float(right))) + 1e-6
        assert total <= float(right) + slack or sense == ">=", row
        assert total >= float(right) - slack or sense == "<=", row


TERM = re.compile(r"(-?) ?(?:(\d[\d.e+-]*) )?([a-z_]+(?:\[[^\]]*\])?)")


def test_symbols_are_unique() -> None:
    symbols = [symbol for symbol, _, _ in VARIABLES.values()]
    assert len(set(symbols)) == len(symbols)


def test_the_record_of_shadow_prices_keeps_the_promise() -> None:
    """Within 10 % of the LP solved again, always; of bound and objective, which choose among whole parts, mostly."""
    record = price_record()
    found = record["summary"]
    assert found == shadow_prices.summary(record["cases"])
    assert found["cases"] >= 40
    assert found["lp"]["within_10_percent"] == found["lp"]["n"]
    assert found["bound"]["within_10_percent"] >= 0.9 * found["bound"]["n"]
    assert found["objective"]["within_10_percent"] >= 0.85 * found["objective"]["n"]
    assert found["worth_nothing_gained_at_most"] < 1e-4
