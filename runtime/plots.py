"""Figures of runs, legible in grey."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

if TYPE_CHECKING:  # pictures of plans alone need no torch
    from runtime.execution import Execution

PREDICTED, MEASURED = "#9ecae1", "#08519c"
MARKS = {"hybrid": "o", "kv-only": "s", "act-only": "^"}
COLOURS = ("#08519c", "#d95f02", "#444444")


def demo_figure(runs: Sequence[Execution], curve: Sequence[Execution], path: Path) -> None:
    """Left: throughput per policy. Right: decode step over the ACT share, and the planned point."""
    figure, (bars, line) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    _policies(bars, runs)
    _curve(line, runs, curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def accuracy_figure(pairs: dict[str, list[tuple[str, float, float]]], path: Path) -> None:
    """Predicted against measured seconds, (policy, predicted, measured) of each point; the band is 10 %."""
    figure, both = plt.subplots(1, len(pairs), figsize=(11, 5), layout="constrained")
    titles = {"decode_step_s": "Decode step", "prefill_s": "Prefill"}
    for axes, (key, found) in zip(both, pairs.items(), strict=True):
        for (policy, mark), colour in zip(MARKS.items(), COLOURS, strict=True):
            some = [(1e3 * measured, 1e3 * predicted) for name, predicted, measured in found if name == policy]
            axes.plot(*zip(*some, strict=True), mark, color=colour, markersize=5, fillstyle="none", label=policy)
        ends = [1e3 * pick(measured for _, _, measured in found) for pick in (min, max)]
        axes.plot(ends, ends, "-", color="grey", linewidth=0.8)
        axes.fill_between(ends, [0.9 * x for x in ends], [1.1 * x for x in ends], color="grey", alpha=0.2, label="10 %")
        axes.set(xscale="log", yscale="log", xlabel="measured (ms)", ylabel="predicted (ms)", title=titles[key])
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _policies(axes: Axes, runs: Sequence[Execution]) -> None:
    width = 0.38
    for offset, label, colour, values in (
        (-width / 2, "predicted", PREDICTED, [r.plan.prediction.throughput_tokens_per_s for r in runs]),
        (width / 2, "measured", MEASURED, [r.measured.throughput_tokens_per_s for r in runs]),
    ):
        found = axes.bar([i + offset for i in range(len(runs))], values, width, label=label, color=colour)
        axes.bar_label(found, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(runs)), [run.plan.policy for run in runs])
    axes.set_ylabel("generated tokens per second")
    axes.set_title("Throughput per policy")
    axes.legend()


def _curve(axes: Axes, runs: Sequence[Execution], curve: Sequence[Execution]) -> None:
    shares = [100 * run.plan.prediction.act_share for run in curve]
    predicted = [1e3 * run.plan.prediction.decode_step_s for run in curve]
    axes.plot(shares, predicted, "--", color=PREDICTED, marker="o", label="predicted")
    measured = [1e3 * run.measured.decode_step_s for run in curve]
    axes.plot(shares, measured, "-", color=MEASURED, marker="s", label="measured")
    for run in runs:
        if run.plan.policy == "hybrid":
            point = (100 * run.plan.prediction.act_share, 1e3 * run.measured.decode_step_s)
            axes.plot(*point, "*", color="black", markersize=14, label="planned by hybrid, measured")
    axes.set_xlabel("share of the cache kept as activations (%)")
    axes.set_ylabel("decode step (ms)")
    axes.set_ylim(bottom=0)
    axes.set_title("Decode step over the ACT share")
    axes.legend()
