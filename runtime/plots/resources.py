"""Where the time of a plan goes as a picture: what each stream is busy with, beside how long the phase takes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planner.attribution import Attribution, Phase
from planner.operation import KINDS, STREAMS
from planner.verdict import KIND_NAMES
from runtime.plots.style import INK, STREAM_NAMES, figure_of, filled, in_style, legend_entry, panels
from runtime.plots.style import KINDS as LOOKS

WIDTH, HEIGHT = 4.8, 2.4
SEEN = 0.005
"""Of a phase: what is shorter has no place in the legend."""


@in_style
def resources_figure(found: Attribution, title: str = "") -> Figure:
    """One panel a phase: busy time of every stream, stacked by operation; the line is the length of the phase."""
    both = panels(1, len(found.phases), WIDTH, HEIGHT, sharey=True)
    shown: set[str] = set()
    for axes, (name, phase) in zip(both, found.phases.items(), strict=True):
        shown |= _phase(axes, name, phase)
    figure = figure_of(both[0])
    handles = [legend_entry(LOOKS[kind], KIND_NAMES[kind]) for kind in KINDS if kind in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _phase(axes: Axes, name: str, phase: Phase) -> set[str]:
    """Draw one phase, a decode step for the mean one; the kinds that can be seen."""
    each = phase.phase_s / phase.steps
    scale, unit = (1.0, "s") if each >= 1 else (1e3, "ms")
    shown = set()
    for lane, stream in enumerate(reversed(STREAMS)):
        left = 0.0
        for kind, use in phase.kinds.items():
            if use.stream != stream or not use.busy_s:
                continue
            long = use.busy_s / phase.steps * scale
            axes.barh(lane, long, left=left, height=0.62, **filled(LOOKS[kind]))
            left += long
            if use.busy_s >= SEEN * phase.phase_s:
                shown.add(kind)
        if left:
            share = left / (each * scale)
            text = f" {share:.0%}" if share >= SEEN else " <1%"
            axes.text(left, lane, text, va="center", fontsize=8, color=INK)
    axes.axvline(each * scale, color="black", linewidth=1.1, linestyle=(0, (4, 2)))
    axes.set_yticks(range(len(STREAMS)), [STREAM_NAMES[stream] for stream in reversed(STREAMS)])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, each * scale * 1.14)
    axes.set_xlabel(f"busy ({unit}{' a step' if name == 'decode' else ''})")
    axes.set_title(f"{name}: {each * scale:.4g} {unit}{' a step' if name == 'decode' else ''}")
    return shown
