"""What the records of `benchmarks.accuracy` say: errors with mean, median, 95th percentile, worst and n."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.records import RESULTS

RERUNS = "accuracy-reruns.json"
FASTEST = 3
"""Runs of each plan whose mean is its time in comparisons of plans."""
Values = dict[str, float]
QUANTITIES = {"decode_step_s": "decode step", "prefill_s": "prefill", "total_s": "whole job (1 / throughput)"}


@dataclass(frozen=True)
class Errors:
    """Of |predicted / measured - 1|."""

    n: int
    mean: float
    median: float
    p95: float
    worst: float
    bias: float
    """Mean of predicted / measured - 1, signed."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> Errors:
        """From (predicted, measured)."""
        signed = np.array([predicted / measured - 1 for predicted, measured in pairs if measured > 0])
        size = np.abs(signed)
        return cls(
            len(size), float(size.mean()), float(np.median(size)), float(np.percentile(size, 95)), float(size.max()),
            float(signed.mean()),
        )  # fmt: skip

    def row(self, name: str) -> str:
        """A row of a Markdown table."""
        figures = " | ".join(f"{x:.1%}" for x in (self.mean, self.median, self.p95, self.worst))
        return f"| {name} | {self.n} | {figures} | {self.bias:+.1%} |"


def middle(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The pair (predicted, measured) whose ratio is the median; of an even number, the lower one in the middle."""
    return sorted(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)[(len(pairs) - 1) // 2]


def middles(runs: Sequence[tuple[Values, Values]]) -> dict[str, Values]:
    """`predicted` and `measured`, each quantity in its run in the middle."""
    pairs = {key: middle([(predicted[key], measured[key]) for predicted, measured in runs]) for key in runs[0][0]}
    return {side: {key: pair[i] for key, pair in pairs.items()} for i, side in enumerate(("predicted", "measured"))}


def undisturbed(seconds: Iterable[float]) -> float:
    """Mean of the three least: what else a machine does slows runs down, never up."""
    least = sorted(seconds)[:FASTEST]
    return fmean(least)


def undisturbed_gain(
    ours: Sequence[tuple[float, float]], *others: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Time of the best of the others over ours, predicted and measured. Each gives (predicted, measured) by run."""
    predicted, measured = (
        min(undisturbed(run[side] for run in them) for them in others) / undisturbed(run[side] for run in ours)
        for side in (0, 1)
    )
    return predicted, measured


def errors(points: list[dict[str, Any]], key: str, left: str = "predicted") -> Errors:
    """Errors of one quantity over points, each by its run in the middle."""
    return Errors.of((point[left][key], point["measured"][key]) for point in points)


def run_errors(points: list[dict[str, Any]], key: str) -> Errors:
    """Errors of every single run."""
    return Errors.of((run["predicted"][key], run["measured"][key]) for point in points for run in point["runs"])


def kind_errors(points: list[dict[str, Any]]) -> dict[str, Errors]:
    """Errors of the total time of every kind of operation, by phase and kind."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        for key, pair in point["kinds"].items():
            kinds.setdefault(key, []).append((pair["predicted_s"], pair["measured_s"]))
    return {key: Errors.of(pairs) for key, pairs in sorted(kinds.items())}


def memory_errors(points: list[dict[str, Any]], place: str) -> Errors:
    """Errors of peak bytes in one place, where anything was planned there."""
    found = [point["peak_bytes"][place] for point in points]
    return Errors.of((one["predicted"], one["measured"]) for one in found if one["predicted"])


HEADER = "| | n | mean | median | 95th percentile | worst | bias |\n|---|---|---|---|---|---|---|"


def main_table(points: list[dict[str, Any]]) -> str:
    """Decode step, prefill and whole job, as Markdown."""
    return "\n".join([HEADER, *(errors(points, key).row(name) for key, name in QUANTITIES.items())])


def kinds_table(points: list[dict[str, Any]]) -> str:
    """Every kind of operation, as Markdown."""
    return "\n".join([HEADER, *(one.row(f"`{key}`") for key, one in kind_errors(points).items())])


def groups_table(points: list[dict[str, Any]]) -> str:
    """Decode step by policy, link rate, width and what binds, as Markdown."""
    rows = []
    for title, key in (("policy", "policy"), ("width", "hidden"), ("K/V heads", "kv_heads"), ("binding", "binding")):
        for value in sorted({point[key] for point in points}, key=str):
            rows.append(errors([p for p in points if p[key] == value], "decode_step_s").row(f"{title} {value}"))
    for rate in sorted({point["link_bytes_per_s"] for point in points}):
        some = [p for p in points if p["link_bytes_per_s"] == rate]
        rows.append(errors(some, "decode_step_s").row(f"link {rate / 1e9:g} GB/s"))
    return "\n".join([HEADER, *rows])


def otherwise_rows(points: list[dict[str, Any]]) -> str:
    """Every single run, and the same points predicted from the first profile."""
    rows = []
    for key, name in QUANTITIES.items():
        rows.append(run_errors(points, key).row(f"{name}, every run"))
        rows.append(errors(points, key, left="predicted_at_first").row(f"{name}, from the first profile"))
    return "\n".join(rows)


def summary(document: dict[str, Any]) -> str:
    """All tables of a record."""
    points = document["points"]
    parts = [main_table(points), groups_table(points), kinds_table(points), HEADER]
    parts += [memory_errors(points, place).row(f"peak bytes, {place}") for place in ("gpu", "host")]
    parts.append(otherwise_rows(points))
    return "\n\n".join(parts[:4]) + "\n" + "\n".join(parts[4:])


def read_reruns() -> list[dict[str, Any]]:
    """Summaries of earlier runs of the whole grid, beside the record."""
    path = RESULTS / RERUNS
    return json.loads(path.read_text()) if path.exists() else []


def disturbance(points: list[dict[str, Any]]) -> float:
    """How much longer than undisturbed the median run of the median point took, relative."""
    found = sorted(point["disturbance"] for point in points)
    return float(found[len(found) // 2])


def rerun(document: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run when a newer one replaces it."""
    points = document["points"]
    return {
        "date": document["date"], "machine": document["machine"], "rounds": len(points[0]["runs"]),
        "disturbance": disturbance(points),
        **{key: asdict(errors(points, key)) for key in QUANTITIES},
    }  # fmt: skip
