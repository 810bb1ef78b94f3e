"""What a profile reaches of its datasheet, and what of it to measure first, as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from planner.efficiency import Efficiency
from planner.sensitivity import Worth
from planner.tables import new_table, with_unit

SHOWN = 8
"""Numbers worth measuring beyond these are in `--json`."""


def efficiency_report(reached: Sequence[Efficiency]) -> RenderableType:
    """Achieved against datasheet."""
    if not reached:
        return Text("\nThe datasheet has nothing to compare achieved rates with", style="dim")
    table = new_table("achieved of the datasheet", "rate, at best", "achieved", "datasheet", "of it")
    for one in reached:
        reached_of = (with_unit(one.key, value) for value in (one.achieved, one.datasheet))
        table.add_row(_short(one.key).removesuffix("_by_context"), *reached_of, f"{one.fraction:.0%}")
    return table


def worth_report(worth: Worth) -> Table | Text:
    """How far each number in doubt moves the prediction."""
    if worth.job is None:
        return Text("\nWorth measuring: no reference job fits this machine, so nothing can be ranked", style="dim")
    if not worth.doubts:
        return Text(f"\nWorth measuring: nothing moves the prediction of {worth.job} any more", style="dim")
    table = new_table(
        f"worth measuring: total time of {worth.job}, with the number at either end of its doubt",
        "number", "kind", "low", "high", numeric=2,
    )  # fmt: skip
    for doubt in worth.doubts[:SHOWN]:
        table.add_row(_short(doubt.key), doubt.kind, f"{doubt.low_fraction:+.1%}", f"{doubt.high_fraction:+.1%}")
    return table


def _short(key: str) -> str:
    return key.removeprefix("gpu.achieved.")
