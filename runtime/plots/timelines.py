"""A step of a job as a picture: every stream a lane, every operation a bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planner.errors import InputError
from planner.operation import KINDS, STREAMS
from planner.timeline import Timeline
from planner.verdict import KIND_NAMES
from runtime.plots.style import KINDS as LOOKS
from runtime.plots.style import STREAM_NAMES, figure_of, filled, in_style, legend_entry, panels

LANE = 0.8
"""Of the distance between two lanes."""
WIDTH, HEIGHT, LEGEND = 9.5, 1.35, 0.55
"""Inches: one timeline, and what the legend adds."""
MOST_EDGED = 150
"""Bars of one kind: of more, edges would be all that is seen."""
SEEN = 0.001
"""Of the window: what is shorter has no place in the legend."""


@dataclass(frozen=True)
class Window:
    """A stretch of one step, in seconds from the start of the job."""

    begin_s: float
    end_s: float

    @classmethod
    def of(cls, timeline: Timeline, step: int, layers: tuple[int, int] | None) -> Window:
        """One step (0: prefill) of `timeline`, or of it what compute does for `layers`, the first and the last.

        InputError where there is no such step or layer.
        """
        ends = timeline.step_ends_s
        if not 0 <= step < len(ends):
            what = f"there is no step {step}"
            raise InputError(what, where="step", cure=f"Give 0, which is prefill, to {len(ends) - 1}")
        begin_s, end_s = (ends[step - 1] if step else 0.0), ends[step]
        if layers is None:
            return cls(begin_s, end_s)
        rows, columns = timeline.rows, timeline.rows.columns
        inside = (rows.start_s < end_s) & (rows.end_s > begin_s)
        chosen = inside & (columns.layer >= layers[0]) & (columns.layer <= layers[1]) & columns.is_kind(*_LAYER_KINDS)
        if not chosen.any():
            last = int(columns.layer.max())
            what = f"no layer from {layers[0]} to {layers[1]} runs in step {step}"
            raise InputError(what, where="layers", cure=f"Give the first and the last of 0 to {last}")
        starts, stops = rows.start_s[chosen], rows.end_s[chosen]
        return cls(max(begin_s, float(starts.min())), min(end_s, float(stops.max())))


_LAYER_KINDS = ("prefill", "rebuild", "forward")


@in_style
def timelines_figure(
    timelines: Mapping[str, Timeline], step: int | None = None, layers: tuple[int, int] | None = None
) -> Figure:
    """Timelines under each other on one scale, each from the beginning of the same step.

    `step`: 0 is prefill; without it, the decode step in the middle. InputError where there is no such step or layer.
    """
    first = next(iter(timelines.values()))
    chosen = middle(first) if step is None else step
    windows = [Window.of(timeline, chosen, layers) for timeline in timelines.values()]
    found = panels(len(timelines), 1, WIDTH, HEIGHT + LEGEND / len(timelines), sharex=True)
    longest_s = max(window.end_s - window.begin_s for window in windows)
    scale, unit = (1.0, "s") if longest_s >= 2 else (1e3, "ms")
    kinds: dict[str, None] = {}
    for axes, (name, timeline), window in zip(found, timelines.items(), windows, strict=True):
        kinds |= dict.fromkeys(_lanes(axes, timeline, window, scale))
        took = (window.end_s - window.begin_s) * scale
        axes.axvline(took, color="black", linewidth=0.9, linestyle=(0, (4, 2)))
        part = "prefill" if chosen == 0 else f"step {chosen}"
        part += f", layers {layers[0]} to {layers[1]}" if layers else ""
        axes.set_title(f"{name}: {part}, {took:.4g} {unit}")
    found[-1].set_xlabel(f"time ({unit})")
    found[0].set_xlim(0, longest_s * scale * 1.005)
    figure = figure_of(found[0])
    shown = [kind for kind in KINDS if kind in kinds]
    figure.legend(
        handles=[legend_entry(LOOKS[kind], KIND_NAMES[kind]) for kind in shown], loc="outside lower center",
        ncols=min(len(shown), 6),
    )  # fmt: skip
    return figure


def middle(timeline: Timeline) -> int:
    """The decode step in the middle of the first wave; prefill where nothing is decoded."""
    steps = int(timeline.rows.columns.step.max())
    return (steps + 1) // 2


def _lanes(axes: Axes, timeline: Timeline, window: Window, scale: float) -> list[str]:
    """Draw what runs in `window`; the kinds of operations that can be seen."""
    rows, columns = timeline.rows, timeline.rows.columns
    inside = (rows.end_s > window.begin_s) & (rows.start_s < window.end_s) & (rows.seconds > 0)
    begin = (np.clip(rows.start_s, window.begin_s, window.end_s) - window.begin_s) * scale
    end = (np.clip(rows.end_s, window.begin_s, window.end_s) - window.begin_s) * scale
    drawn = []
    for code in np.unique(columns.kind[inside]).tolist():
        kind, mine = KINDS[code], inside & (columns.kind == code)
        lane = len(STREAMS) - 1 - int(columns.stream[mine][0])
        long = (end - begin)[mine]
        bars = list(zip(begin[mine].tolist(), long.tolist(), strict=True))
        look = filled(LOOKS[kind])
        if len(bars) > MOST_EDGED:
            look |= {"linewidth": 0, "hatch": None}
        axes.broken_barh(bars, (lane - LANE / 2, LANE), **look)
        if long.sum() > SEEN * (window.end_s - window.begin_s) * scale:
            drawn.append(kind)
    axes.set_yticks(range(len(STREAMS)), [STREAM_NAMES[stream] for stream in reversed(STREAMS)])
    axes.set_ylim(-0.6, len(STREAMS) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    return drawn
