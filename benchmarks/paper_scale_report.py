"""What the record of `benchmarks.paper_scale` says: gains of hybrid, predicted and measured, and how they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.accuracy_report import FASTEST, HEADER, QUANTITIES, errors, undisturbed_gain

OVER = ("kv-only", "act-only", "hybridserve")
WITHIN = 0.05
"""A gain is predicted well if it is this near, as a difference of ratios."""
NOT_YET = "No record yet: `python -m benchmarks.paper --execute` writes it, and this section from it."


@dataclass(frozen=True)
class Gain:
    """Throughput of hybrid over that of another policy, at one point."""

    target: str
    prompt_len: int
    over: str
    predicted: float
    measured: float

    @property
    def difference(self) -> float:
        """0.05 is five percentage points."""
        return self.predicted - self.measured

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= WITHIN


def gains(points: list[dict[str, Any]]) -> Iterator[Gain]:
    """Of every shape and prompt length, over each other policy."""
    by_policy = {(p["target"], p["target_prompt_len"], p["policy"]): p for p in points}
    for target, prompt in dict.fromkeys((p["target"], p["target_prompt_len"]) for p in points):
        ours = by_policy[target, prompt, "hybrid"]
        for policy in OVER:
            other = by_policy[target, prompt, policy]
            yield Gain(target, prompt, policy, *undisturbed_gain(_totals(ours), _totals(other)))


def _totals(point: dict[str, Any]) -> list[tuple[float, float]]:
    """(predicted, measured) seconds of each run."""
    return [(run["predicted"]["total_s"], run["measured"]["total_s"]) for run in point["runs"]]


def within(points: list[dict[str, Any]], over: tuple[str, ...] = OVER[:2]) -> float:
    """Share of the gains over these policies that hold."""
    found = [gain.holds for gain in gains(points) if gain.over in over]
    return sum(found) / len(found)


def scale_report(record: dict[str, Any]) -> str:
    """For people, and for the page."""
    points = record["points"]
    lines = ["| shape | prompt | hybrid over | predicted | measured | difference |", "|---|---|---|---|---|---|"]
    for gain in gains(points):
        lines.append(
            f"| {gain.target} | {gain.prompt_len} | `{gain.over}` | {gain.predicted:.3f} | {gain.measured:.3f} "
            f"| {100 * gain.difference:+.1f} points{'' if gain.holds else ' (!)'} |"
        )
    means = []
    for policy in OVER:
        some = [gain for gain in gains(points) if gain.over == policy]
        predicted, measured = fmean(g.predicted for g in some), fmean(g.measured for g in some)
        means.append(f"`{policy}` {predicted:.2f} predicted, {measured:.2f} measured")
    table = "\n".join([HEADER, *(errors(points, key).row(name) for key, name in QUANTITIES.items())])
    return (
        f"Mean gain of `hybrid` over {'; over '.join(means)}. Of the gains over `kv-only` and `act-only`, "
        f"{within(points):.0%} are within {100 * WITHIN:.0f} percentage points of the predicted ones.\n\n"
        + "\n".join(lines)
        + f"\n\nErrors of the single predictions, all policies:\n\n{table}"
    )


def scale_text(record: dict[str, Any] | None) -> str:
    """The section of the page."""
    if record is None:
        return NOT_YET
    points, machine = record["points"], record["machine"]
    shapes = dict.fromkeys((p["target"], p["hidden"], p["layers"]) for p in points)
    said = ", ".join(f"{target} as {layers} layers of width {hidden}" for target, hidden, layers in shapes)
    return (
        "Small models and a paced link whose two ratios, rebuilding over transfer and weights over cache, are those "
        f"of the large ones on the RTX 4090: {said}. One core of an {machine['processor']} ({machine['cores']} cores), "
        f"fp32, torch {machine['torch']}, on {record['date']}; {len(points)} points, each run "
        f"{len(points[0]['runs'])} times, policies in turn; {record['took_s'] / 60:.0f} minutes. Every run was "
        "predicted before it began, from a profile calibrated on other shapes ([how](accuracy.md)); what is "
        f"compared for a gain is the mean of the {FASTEST} least times of each policy, predicted and measured, since "
        "what else the machine does only ever slows a run down. Ratios carry over, speeds do not.\n\n"
        "![Throughput in scale, predicted and measured](images/paper-scale.png)\n\n"
        f"{scale_report(record)}"
    )
