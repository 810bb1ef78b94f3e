"""The figure in the paper's form: a panel for each model, groups of bars over the prompt length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, StrMethodFormatter

from benchmarks.accuracy_report import undisturbed
from benchmarks.paper_points import TOGETHER, speed

FILLS = {
    "deepspeed": ("#ffffff", "...."), "flexgen": ("#ffffff", "////"), "kv-only": ("#d9d9d9", ""),
    "act-only": ("#a6bddb", ""), "hybridserve": ("#74a9cf", "\\\\\\\\"), "hybrid": ("#08519c", ""),
}  # fmt: skip
"""Told apart by lightness and hatching, so in grey too."""
Point = dict[str, Any]


def paper_figure(points: Sequence[Point], path: Path) -> None:
    """Predicted throughput of every policy, all requests together."""
    models = list(dict.fromkeys(point["model"] for point in points))
    figure, all_axes = plt.subplots(1, len(models), figsize=(13, 3.8), layout="constrained")
    for axes, model in zip(all_axes, models, strict=True):
        some = [point for point in points if point["model"] == model]
        prompts = [point["prompt_len"] for point in some]

        def predicted(i: int, policy: str, some: Sequence[Point] = some) -> float:
            return speed(some[i], policy)

        _bars(axes, prompts, TOGETHER, predicted)
        axes.set(title=model, xlabel="prompt length (tokens)")
    all_axes[0].set_ylabel("generated tokens per second, predicted")
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    _save(figure, path)


def scale_figure(points: Sequence[Point], path: Path) -> None:
    """Measured throughput in scale as bars, of the fastest runs as for gains, and the prediction as a mark on each."""
    found = {(p["target"], p["target_prompt_len"], p["policy"]): p for p in points}
    targets, prompts, policies = (list(dict.fromkeys(key[i] for key in found)) for i in range(3))
    figure, all_axes = plt.subplots(1, len(targets), figsize=(13, 3.8), layout="constrained", squeeze=False)
    for axes, target in zip(all_axes[0], targets, strict=True):

        def tokens_per_s(i: int, policy: str, which: str = "measured", target: str = target) -> float:
            one = found[target, prompts[i], policy]
            total_s = undisturbed(run[which]["total_s"] for run in one["runs"])
            return float(one["requests"] * one["gen_len"]) / total_s

        middles = _bars(axes, prompts, policies, tokens_per_s)
        marks = [(x, tokens_per_s(i, policy, "predicted")) for i, policy, x in middles]
        axes.plot(*zip(*marks, strict=True), "_", color="black", markersize=11, markeredgewidth=2, label="predicted")
        axes.set(title=f"{target}, in scale", xlabel="prompt length of the model that it stands for")
    all_axes[0][0].set_ylabel("generated tokens per second, measured")
    handles, names = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    _save(figure, path)


def _bars(
    axes: Axes, prompts: Sequence[int], policies: Sequence[str], value: Callable[[int, str], float]
) -> list[tuple[int, str, float]]:
    """A group of bars for each prompt length; returns (prompt, policy, middle) of each bar."""
    width = 0.84 / len(policies)
    found = []
    for n, policy in enumerate(policies):
        colour, hatch = FILLS[policy]
        middles = [i + (n - (len(policies) - 1) / 2) * width for i in range(len(prompts))]
        heights = [value(i, policy) for i in range(len(prompts))]
        axes.bar(middles, heights, width, label=policy, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6)
        found += [(i, policy, x) for i, x in enumerate(middles)]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # numbers, not powers of ten
    axes.minorticks_off()
    axes.set_xticks(range(len(prompts)), [str(prompt) for prompt in prompts])
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    return found


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
