"""Predicted beside measured as pictures: policies, the curve over the ACT share, and many runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planner.plan import Plan
from planner.policies import CACHES
from planner.timeline import Timeline
from runtime.plots.style import (
    FAINT,
    INK,
    MEASURED,
    POLICIES,
    PREDICTED,
    SOFT,
    figure_of,
    filled,
    in_style,
    one_panel,
    panels,
    save,
)

WIDTH, BAR = 5.5, 0.38
TITLES = {"decode_step_s": "Decode step", "prefill_s": "Prefill", "total_s": "Whole job"}
WITHIN = 0.1
"""The band around equality."""


class Executed(Protocol):
    """A plan that was run; pictures of it need no torch."""

    @property
    def plan(self) -> Plan:
        """What was predicted."""
        ...

    @property
    def measured(self) -> Timeline:
        """What was measured."""
        ...


@in_style
def demo_figure(runs: Sequence[Executed], curve: Sequence[Executed], path: Path) -> None:
    """Left: throughput per policy. Right: decode step over the ACT share, and the planned point."""
    bars, line = panels(1, 2, WIDTH, 4.2)
    policies_figure(
        {
            run.plan.policy: (run.plan.prediction.throughput_tokens_per_s, run.measured.throughput_tokens_per_s)
            for run in runs
        },
        bars,
    )
    curve_figure(curve, [run for run in runs if run.plan.policy == "hybrid"], line)
    save(figure_of(bars), path)


@in_style
def policies_figure(rates: Mapping[str, tuple[float, float | None]], axes: Axes | None = None) -> Figure:
    """Throughput of each policy, predicted and, where it was run, measured; tokens/s."""
    panel = one_panel(axes, 0.9 * max(len(rates), 5))
    is_measured = any(measured is not None for _, measured in rates.values())
    width = BAR if is_measured else 2 * BAR
    for place, (predicted, measured) in enumerate(rates.values()):
        at = place - width / 2 if is_measured else place
        shown = [panel.bar(at, predicted, width, label="predicted", **filled(PREDICTED))]
        if measured is not None:
            shown.append(panel.bar(place + width / 2, measured, width, label="measured", **filled(MEASURED)))
        for bar in shown:
            panel.bar_label(bar, fmt="%.3g", fontsize=8, padding=1)
    panel.set_xticks(
        range(len(rates)), list(rates), rotation=20 * (len(rates) > 5), ha="right" if len(rates) > 5 else "center"
    )
    panel.set_ylabel("generated tokens per second")
    panel.set_title("Throughput per policy" + ("" if is_measured else ", predicted"))
    panel.grid(axis="x", visible=False)
    if is_measured:
        handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        panel.set_ylim(top=1.18 * panel.get_ylim()[1])
        panel.legend(handles.values(), handles.keys(), ncols=2, loc="upper right")
    return figure_of(panel)


@in_style
def curve_figure(curve: Sequence[Executed], planned: Sequence[Executed] = (), axes: Axes | None = None) -> Figure:
    """Decode step over the share of activations, predicted and measured; a star marks runs of `planned`."""
    panel = one_panel(axes)
    ordered = sorted(curve, key=lambda run: run.plan.prediction.act_share)
    shares = [100 * run.plan.prediction.act_share for run in ordered]
    for look, label, steps in (
        (PREDICTED, "predicted", [run.plan.prediction.decode_step_s for run in ordered]),
        (MEASURED, "measured", [run.measured.decode_step_s for run in ordered]),
    ):
        panel.plot(shares, [1e3 * s for s in steps], look.dash, color=look.colour, marker=look.mark, label=label)
    for run in planned:
        point = (100 * run.plan.prediction.act_share, 1e3 * run.measured.decode_step_s)
        panel.plot(*point, "*", color=INK, markersize=14, label=f"planned by {run.plan.policy}, measured")
    panel.set_xlabel("share of the cache kept as activations (%)")
    panel.set_ylabel("decode step (ms)")
    panel.set_ylim(bottom=0)
    panel.set_title("Decode step over the share of activations")
    panel.legend()
    return figure_of(panel)


def accuracy_figure(pairs: Mapping[str, list[tuple[str, float, float]]], path: Path) -> None:
    """Write predicted against measured, a panel for each key of a result."""
    save(scatter_figure(pairs), path, dpi=110)


@in_style
def scatter_figure(pairs: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """Predicted against measured seconds, (policy, predicted, measured) of each point; the band is 10 %."""
    both = panels(1, len(pairs), WIDTH, 4.6)
    for axes, (key, found) in zip(both, pairs.items(), strict=True):
        ends = [1e3 * pick(measured for _, _, measured in found) for pick in (min, max)]
        ends = [ends[0] / 1.15, ends[1] * 1.15]
        band = ([(1 - WITHIN) * x for x in ends], [(1 + WITHIN) * x for x in ends])
        axes.fill_between(ends, *band, color=FAINT, label=f"within {WITHIN:.0%}")
        axes.plot(ends, ends, "-", color=SOFT, linewidth=0.8)
        for policy in sorted({name for name, _, _ in found}, key=_place):
            look = POLICIES[policy]
            some = [(1e3 * measured, 1e3 * predicted) for name, predicted, measured in found if name == policy]
            axes.plot(*zip(*some, strict=True), look.mark, color=look.colour, fillstyle="none", label=policy)
        axes.set(xscale="log", yscale="log", xlabel="measured (ms)", ylabel="predicted (ms)")
        axes.set_title(TITLES.get(key, key))
        axes.legend()
    return figure_of(both[0])


def _place(policy: str) -> int:
    return CACHES.index(policy) if policy in CACHES else len(CACHES)
