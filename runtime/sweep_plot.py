"""A sweep as a picture, legible in grey: throughput over one key, a line for each policy or value of a second key."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import cycle, pairwise
from math import isclose, nan
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from planner.files import write_whole
from planner.sweep import Row
from planner.sweep_axes import Axis, Value
from runtime.plots import COLOURS, MARKS

LINES = ("-", "--", ":", "-.")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<")
FEWEST_FOR_LOG = 3
"""Two values are always a geometric series."""
WIDTH, HEIGHT = 5.5, 4.2
"""Inches of one panel."""


def sweep_figure(axes: Sequence[Axis], rows: Sequence[Row], path: Path) -> None:
    """Write the picture of a sweep of one or two keys; the kind of file is that of `path`.

    One key: a line for each policy. Two: a panel for each policy, a line for each value of the second key. A cross at
    the foot: some line has no plan there, and is interrupted. InputError where the file cannot be written.
    """
    policies = list(dict.fromkeys(row.policy for row in rows))
    panels = [policies] if len(axes) == 1 else [[policy] for policy in policies]
    figure, found = plt.subplots(
        1, len(panels), figsize=(WIDTH * len(panels), HEIGHT), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, shown in zip(found[0], panels, strict=True):
        _panel(panel, axes, [row for row in rows if row.policy in shown])
        panel.set_title(", ".join(shown) if len(axes) > 1 else "Throughput, predicted")
    found[0][0].set_ylabel("generated tokens per second")
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format=path.suffix.removeprefix("."))
    plt.close(figure)
    write_whole(path, content.getvalue())


def _panel(panel: Axes, axes: Sequence[Axis], rows: Sequence[Row]) -> None:
    along = axes[0]
    places = _places(along)
    without: set[float] = set()
    for (label, line), (mark, colour, dash) in zip(_lines(axes, rows), _styles(axes), strict=False):
        rates = [row.figures["throughput_tokens_per_s"] if row.figures else nan for row in line]
        panel.plot(places, rates, dash, marker=mark, color=colour, fillstyle="none", label=label)
        without |= {place for place, row in zip(places, line, strict=True) if row.figures is None}
    if without:
        panel.plot(sorted(without), [0.0] * len(without), "x", color="grey", clip_on=False, label="no plan")
    panel.set_ylim(bottom=0)
    panel.set_xlabel(_named(along))
    _scale(panel, along, places)
    panel.grid(alpha=0.3)
    panel.legend(title=_named(axes[1]) if len(axes) > 1 else None)


def _lines(axes: Sequence[Axis], rows: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    """Rows that a line connects, in the order of the first key, with what the line is called."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        value = row.settings[axes[1].key.name] if len(axes) > 1 else row.policy
        lines.setdefault(_text(axes[-1], value), []).append(row)
    order = {_text(axes[0], value): i for i, value in enumerate(axes[0].values)}
    for label, line in lines.items():
        yield label, sorted(line, key=lambda row: order[_text(axes[0], row.settings[axes[0].key.name])])


def _styles(axes: Sequence[Axis]) -> Iterable[tuple[str, str, str]]:
    """(mark, colour, dash) of one line after the other; no two of the first hundred are alike."""
    marks = tuple(MARKS.values()) if len(axes) == 1 else SHAPES
    return zip(cycle(marks), cycle((*COLOURS, "#7570b3", "#1b9e77")), cycle(LINES))


def _places(axis: Axis) -> list[float]:
    """Where the values stand: numbers where they are, names one after the other."""
    return [float(i) if isinstance(value, str) else value for i, value in enumerate(axis.values)]


def _scale(panel: Axes, axis: Axis, places: Sequence[float]) -> None:
    if any(isinstance(value, str) for value in axis.values):
        panel.set_xticks(places, [str(value) for value in axis.values], rotation=20, ha="right")
    elif is_geometric(places):
        panel.set_xscale("log")
        panel.set_xticks(places, [axis.said(value) for value in axis.values])
        panel.minorticks_off()


def is_geometric(values: Sequence[float]) -> bool:
    """Whether each value is the same multiple, above 1, of the one before."""
    if len(values) < FEWEST_FOR_LOG or any(value <= 0 for value in values):
        return False
    ratios = [b / a for a, b in pairwise(values)]
    return ratios[0] > 1 and all(isclose(ratio, ratios[0], rel_tol=1e-6) for ratio in ratios)


def _text(axis: Axis, value: Value) -> str:
    return value if isinstance(value, str) else axis.said(value)


def _named(axis: Axis) -> str:
    """A key with its unit, as axes and legends are labelled."""
    unit = "times the profile's" if axis.relative else axis.unit
    return f"{axis.key.name} ({unit})" if unit else axis.key.name
