"""A sweep as a picture: any figure of its plans over one key, a line for each policy or value of a second key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose, nan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planner.errors import InputError, nearest
from planner.sweep import Row
from planner.sweep_axes import Axis, Value
from runtime.plots.style import SOFT, figure_of, in_style, look_of, panels, save

FEWEST_FOR_LOG = 3
"""Two values are always a geometric series."""
HEADROOM = 1.05
MOST_KEYS = 2
"""In one picture: one along it, one in its lines."""


@dataclass(frozen=True)
class Shown:
    """A figure of a plan as a picture shows it."""

    label: str
    scale: float = 1.0


THROUGHPUT = "throughput_tokens_per_s"
SHOWN = {
    THROUGHPUT: Shown("generated tokens per second"),
    "total_s": Shown("whole job (s)"),
    "prefill_s": Shown("prefill (s)"),
    "decode_step_s": Shown("decode step (s)"),
    "act_share": Shown("cached as activations (%)", 100),
    "gap": Shown("gap to the bound (%)", 100),
    "mini_batches": Shown("mini-batches"),
    "waves": Shown("waves"),
    "resident_layers": Shown("layers on the GPU"),
    "link_busy_fraction": Shown("link busy in decode (%)", 100),
    "compute_busy_fraction": Shown("compute busy in decode (%)", 100),
    "gpu_planned_bytes": Shown("GPU memory planned (GB)", 1e-9),
    "host_planned_bytes": Shown("host memory planned (GB)", 1e-9),
}
"""What can be drawn, by the name that results give it."""


def sweep_figure(axes: Sequence[Axis], rows: Sequence[Row], path: Path) -> None:
    """Write the picture of a sweep's throughput; the kind of file is that of `path`. InputError where it cannot be
    written."""
    save(lines_figure(axes, rows), path)


@in_style
def lines_figure(axes: Sequence[Axis], rows: Sequence[Row], what: str = THROUGHPUT) -> Figure:
    """`what` of `SHOWN` over the first key.

    One key: a line for each policy. Two: a panel for each policy, a line for each value of the second key. A cross at
    the foot: some line has no plan there, and is interrupted. InputError for more keys and for what cannot be drawn.
    """
    if what not in SHOWN:
        raise InputError(f"'{what}' cannot be drawn", where="what", cure=nearest(what, SHOWN))
    if len(axes) > MOST_KEYS:
        raise InputError(
            f"a picture shows one or two keys, not {len(axes)}", where="plot", cure="Sweep fewer keys at once"
        )
    policies = list(dict.fromkeys(row.policy for row in rows))
    groups = [policies] if len(axes) == 1 else [[policy] for policy in policies]
    found = panels(1, len(groups), sharey=True)
    for panel, shown in zip(found, groups, strict=True):
        _panel(panel, axes, [row for row in rows if row.policy in shown], what)
        if len(axes) > 1:
            panel.set_title(shown[0])
    found[0].set_ylabel(f"{SHOWN[what].label}, predicted")
    return figure_of(found[0])


@in_style
def tradeoff_figure(axes: Sequence[Axis], rows: Sequence[Row], x: str, y: str) -> Figure:
    """`y` over `x`, both of `SHOWN`, one point for each row, labelled with the value of the first key; by policy."""
    for name in (x, y):
        if name not in SHOWN:
            raise InputError(f"'{name}' cannot be drawn", where="tradeoff", cure=nearest(name, SHOWN))
    (panel,) = panels()
    for i, policy in enumerate(dict.fromkeys(row.policy for row in rows)):
        mine = [row for row in rows if row.policy == policy and row.figures]
        points = [tuple(SHOWN[key].scale * (row.figures or {})[key] for key in (x, y)) for row in mine]
        look = look_of(policy, i)
        panel.plot(*zip(*points, strict=True), look.dash, marker=look.mark, color=look.colour, label=policy)
        for row, point in zip(mine, points, strict=True):
            text = ", ".join(_text(axis, row.settings[axis.key.name]) for axis in axes)
            panel.annotate(text, point, textcoords="offset points", xytext=(4, -9), fontsize=7, color=SOFT)
    panel.set(xlabel=f"{SHOWN[x].label}, predicted", ylabel=SHOWN[y].label)
    panel.set(xlim=(0, HEADROOM * panel.get_xlim()[1]), ylim=(0, HEADROOM * panel.get_ylim()[1]))
    panel.legend(title=f"beside the points: {', '.join(_named(axis) for axis in axes)}", title_fontsize=8)
    return figure_of(panel)


def _panel(panel: Axes, axes: Sequence[Axis], rows: Sequence[Row], what: str) -> None:
    along, shown = axes[0], SHOWN[what]
    places = _places(along)
    without: set[float] = set()
    for i, (label, line) in enumerate(_lines(axes, rows)):
        look = look_of(label, i)
        values = [row.figures[what] if row.figures else None for row in line]
        scaled = [nan if value is None else shown.scale * value for value in values]
        panel.plot(places, scaled, look.dash, marker=look.mark, color=look.colour, fillstyle="none", label=label)
        without |= {place for place, row in zip(places, line, strict=True) if row.figures is None}
    if without:
        panel.plot(sorted(without), [0.0] * len(without), "x", color="grey", clip_on=False, label="no plan")
    panel.set_ylim(0, HEADROOM * panel.get_ylim()[1])
    panel.set_xlabel(_named(along))
    _scale(panel, along, places)
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
