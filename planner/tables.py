"""What all reports are made of: numbers with units, and tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def seconds(value: float) -> str:
    """A time a person reads at a glance."""
    if value >= 100:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def size(nbytes: float) -> str:
    """Decimal units: GB = 10^9 bytes."""
    return scaled(nbytes, "B")


def rate(tokens_per_s: float) -> str:
    """Tokens per second, four digits."""
    return f"{digits(tokens_per_s)} tokens/s"


def digits(value: float) -> str:
    """Four digits, or whole thousands."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def scaled(value: float, unit: str) -> str:
    """Four digits with the decimal prefix of `unit`."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"


def with_unit(key: str, value: float) -> str:
    """A number of a profile, with the unit that its key names."""
    if "bytes_per_s" in key:
        return f"{size(value)}/s"
    if "flops" in key:
        return scaled(value, "FLOP/s")
    if "_slowdown" in key or key.endswith(("during_compute", "group_cost")):
        return f"{value:.2f} x"
    if key.endswith("s_lost_per_byte"):
        return f"{value * 1e9:.3g} s/GB"
    return size(value) if key.endswith("_bytes") else seconds(value)


def new_table(title: str, *columns: str, numeric: int = 1) -> Table:
    """An empty table; columns from `numeric` on are ranged right."""
    found = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    found.show_edge = False
    for i, column in enumerate(columns):
        found.add_column(column, justify="right" if i >= numeric else "left")
    return found


def pairs(title: str, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Names and values without a frame."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(f"  {name}", value)
    return Group(Text(f"\n{title}", style="bold"), grid)


def bullets(title: str, sentences: Iterable[str]) -> RenderableType:
    """Sentences that wrap under their own start."""
    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row("  -", sentence)
    return Group(Text(f"\n{title}", style="bold"), grid)
