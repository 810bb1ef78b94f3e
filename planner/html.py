"""A report as HTML: the same tables and sentences that the terminal shows, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 100
"""Columns of a report as text."""


def as_text(report: RenderableType) -> str:
    """What the terminal would show."""
    console = Console(width=WIDTH, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(report)
    return captured.get().strip("\n")


def as_html(report: RenderableType) -> str:
    """Tables as tables, sentences as paragraphs; every text escaped."""
    if isinstance(report, Group):
        return "".join(map(as_html, report.renderables))
    if isinstance(report, Padding):
        return as_html(report.renderable)
    if isinstance(report, Table):
        return _table(report)
    text = _plain(report)
    bold = isinstance(report, Text) and "bold" in str(report.style)
    return f"<p>{'<b>' if bold else ''}{escape(text)}{'</b>' if bold else ''}</p>" if text else ""


def _table(table: Table) -> str:
    columns = [(column.justify, list(column.cells)) for column in table.columns]
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    body = [_row("td", columns, row) for row in rows]
    if not table.show_header:
        return f"<table>{''.join(body)}</table>"
    head, *body = body
    title = f"<caption><b>{escape(_plain(table.title or ''))}</b></caption>"
    return f"<table>{title}<thead>{head.replace('<td', '<th').replace('</td', '</th')}</thead>{''.join(body)}</table>"


def _row(tag: str, columns: Sequence[tuple[str, object]], cells: tuple[RenderableType, ...]) -> str:
    found = (
        f'<{tag} style="text-align: {"right" if justify == "right" else "left"}">{escape(_plain(cell))}</{tag}>'
        for (justify, _), cell in zip(columns, cells, strict=True)
    )
    return f"<tr>{''.join(found)}</tr>"


def _plain(part: RenderableType) -> str:
    return (part.plain if isinstance(part, Text) else str(part)).strip()
