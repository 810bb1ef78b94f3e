"""The rows of a sweep as a table, as CSV and as plain data, and where what binds changes along a key."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from planner.explain import balanced
from planner.sweep import FIGURES, Row
from planner.sweep_axes import Axis, Value
from planner.tables import bullets, digits, new_table, seconds

BOTH, NO_PLAN = "both", "no plan"
MOST_FLIPS, MOST_REASONS = 20, 6
"""Sentences of one list; JSON has every one."""
WIDE_GAP, ROUNDING = 0.05, 1e-6
"""A gap worth a word; a gap below zero that is no more than a sum's last digits."""
FULL = 0.99
"""Of a memory: what whole blocks and layers leave of a budget that binds is less than the rest."""
INFEASIBLE = "infeasible"


@dataclass(frozen=True)
class Flip:
    """Between two neighbouring values of `key`, all else alike, something else begins to bind."""

    policy: str
    key: str
    before: Value
    after: Value
    was: str
    becomes: str
    others: dict[str, Value]


def binds(row: Row) -> str:
    """`link`, `compute`, `both` where they finish together, or `no plan`."""
    if row.figures is None:
        return NO_PLAN
    if balanced(row.figures["link_busy_fraction"], row.figures["compute_busy_fraction"]):
        return BOTH
    return str(row.figures["binding"])


def flips(axes: Sequence[Axis], rows: Sequence[Row]) -> list[Flip]:
    """Every change of what binds between neighbours along one key, the last key first."""
    found = []
    for axis in reversed(axes):
        lines: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            others = tuple(value for key, value in row.settings.items() if key != axis.key.name)
            lines.setdefault((row.policy, *others), []).append(row)
        for line in lines.values():
            found += [_flip(axis.key.name, a, b) for a, b in pairwise(line) if binds(a) != binds(b)]
    return found


def _flip(key: str, a: Row, b: Row) -> Flip:
    others = {name: value for name, value in a.settings.items() if name != key}
    return Flip(a.policy, key, a.settings[key], b.settings[key], binds(a), binds(b), others)


def sweep_report(axes: Sequence[Axis], rows: Sequence[Row]) -> list[RenderableType]:
    """The table, then where what binds changes, then why some points have no plan."""
    parts: list[RenderableType] = [_table(axes, rows)]
    if changes := flips(axes, rows):
        parts.append(
            bullets("Where the binding resource changes", _shortened([_said(axes, one) for one in changes], MOST_FLIPS))
        )
    if words := doubts(rows):
        parts.append(bullets("How sure", words))
    if refused := [row for row in rows if row.figures is None]:
        parts.append(
            bullets(
                "Not feasible", _shortened([f"{_place(axes, row)}: {row.infeasible}" for row in refused], MOST_REASONS)
            )
        )
    return parts


def doubts(rows: Sequence[Row]) -> list[str]:
    """What the gaps say of comparing points: no plan is better than its own proof."""
    gaps = [row.figures["gap"] for row in rows if row.figures is not None and row.figures["gap"] is not None]
    wide, beaten = [gap for gap in gaps if gap > WIDE_GAP], [-gap for gap in gaps if gap < -ROUNDING]
    found = []
    if wide:
        found.append(
            f"{len(wide)} of {len(gaps)} plans are proven only to within {max(wide):.0%} of the best: "
            "smaller differences between points may be the planner's"
        )
    if beaten:
        found.append(
            f"{len(beaten)} of {len(gaps)} plans are up to {max(beaten):.1%} below their bound: it does not hold"
        )
    return found


def reasons(axes: Sequence[Axis], rows: Sequence[Row]) -> dict[str, str]:
    """Why points have no plan, by point and policy, for as many as a person reads."""
    refused = [row for row in rows if row.infeasible is not None]
    return {_place(axes, row): str(row.infeasible) for row in refused[:MOST_REASONS]}


def _table(axes: Sequence[Axis], rows: Sequence[Row]) -> Table:
    heads = [f"{axis.key.name} ({axis.unit})" if axis.unit not in ("", "x") else axis.key.name for axis in axes]
    title = f"{len(rows)} plans, best of each point in bold; full: memory planned to the last percent"
    table = new_table(
        title, *heads, "policy", "tokens/s", "a step", "ACT", "binds", "full",
        numeric=len(axes) + 1,
    )  # fmt: skip
    for i, column in enumerate(table.columns):  # long names of keys give way to figures, and lose no letter
        column.overflow, column.no_wrap = "fold", i >= len(axes)
    for point in _points(rows):
        best = max((row.figures["throughput_tokens_per_s"] for row in point if row.figures), default=0.0)
        for i, row in enumerate(point):
            shown = [_text(axis, row) for axis in axes] if i == 0 else [""] * len(axes)
            is_best = row.figures is not None and row.figures["throughput_tokens_per_s"] == best and len(point) > 1
            table.add_row(*shown, row.policy, *_cells(row), style="bold" if is_best else None)
    return table


def _cells(row: Row) -> tuple[str, ...]:
    f = row.figures
    if f is None:
        return ("-", "-", "-", NO_PLAN, "-")
    devices = {"gpu": "GPU", "host": "host"}
    full = [name for key, name in devices.items() if f[f"{key}_planned_bytes"] > FULL * f[f"{key}_capacity_bytes"]]
    return (
        digits(f["throughput_tokens_per_s"]), seconds(f["decode_step_s"]),
        "-" if f["act_share"] is None else f"{f['act_share']:.0%}",
        binds(row), BOTH if len(full) > 1 else "".join(full) or "-",
    )  # fmt: skip


def _points(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one point after the other."""
    point: list[Row] = []
    for row in rows:
        if point and row.settings != point[0].settings:
            yield point
            point = []
        point.append(row)
    if point:
        yield point


def _text(axis: Axis, row: Row) -> str:
    value = row.settings[axis.key.name]
    return value if isinstance(value, str) else axis.said(value)


def _place(axes: Sequence[Axis], row: Row) -> str:
    return f"{row.policy} at " + ", ".join(f"{axis.key.name} = {_text(axis, row)}" for axis in axes)


def _said(axes: Sequence[Axis], one: Flip) -> str:
    by_name = {axis.key.name: axis for axis in axes}
    axis = by_name[one.key]

    def text(name: str, value: Value) -> str:
        return value if isinstance(value, str) else by_name[name].said(value)

    unit = f" {axis.unit}" if axis.unit not in ("", "x") else ""
    place = f"{one.key} = {text(one.key, one.before)} and {text(one.key, one.after)}{unit}"
    others = ", ".join(f"{name} = {text(name, value)}" for name, value in one.others.items())
    return f"{one.policy}: {one.was} to {one.becomes} between {place}" + (f" ({others})" if others else "")


def _shortened(sentences: Sequence[str], most: int) -> list[str]:
    more = len(sentences) - most
    return [*sentences[:most], *([f"... and {more} more"] if more > 0 else [])]


def sweep_result(axes: Sequence[Axis], rows: Sequence[Row]) -> dict[str, Any]:
    """What `sweep --json` prints."""
    return {
        "axes": [
            {"key": axis.key.name, "unit": axis.unit, "values": [_as_typed(axis, value) for value in axis.values]}
            for axis in axes
        ],
        "rows": [
            {
                "set": row.settings, "policy": row.policy,
                **(row.figures or dict.fromkeys(FIGURES)),
                "binds": binds(row), INFEASIBLE: row.infeasible,
            }
            for row in rows
        ],
        "flips": [
            {
                "policy": one.policy, "key": one.key, "from": one.before, "to": one.after,
                "was": one.was, "becomes": one.becomes, "set": one.others,
            }
            for one in flips(axes, rows)
        ],
    }  # fmt: skip


def _as_typed(axis: Axis, value: Value) -> Value:
    """A value of an axis as the rows hold it: numbers as numbers, factors as text."""
    return axis.said(value) if axis.relative else value


def sweep_csv(axes: Sequence[Axis], rows: Sequence[Row]) -> str:
    """One line for each row; swept keys are called `set.KEY`, so that none is taken for a result."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [axis.key.name for axis in axes]
    writer.writerow([*(f"set.{key}" for key in keys), "policy", *FIGURES, "binds", INFEASIBLE])
    for row in rows:
        figures = row.figures or dict.fromkeys(FIGURES)
        cells = ("" if figures[key] is None else figures[key] for key in FIGURES)
        found = [*(row.settings[key] for key in keys), row.policy, *cells]
        writer.writerow([*found, binds(row), row.infeasible or ""])
    return text.getvalue()
