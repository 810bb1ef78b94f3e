"""docs/paper.md and its pictures, from the records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, geometric_mean
from string import Template
from typing import Any

from benchmarks.paper_points import FREE, STAGES, TOGETHER, losses, speed, stage_speeds
from benchmarks.paper_scale_report import scale_report, scale_text
from benchmarks.records import RESULTS, between_marks

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENT, PICTURE = ROOT / "docs" / "paper.md", ROOT / "docs" / "images" / "paper.png"
SCALE_PICTURE = ROOT / "docs" / "images" / "paper-scale.png"
TEMPLATE = Path(__file__).parent / "paper_template.md"
RECORD, SCALE = "paper.json", "paper-scale.json"
NOT_YET = "Not computed yet: `python -m benchmarks.paper --write` writes the record, and this page from it."
MOSTLY = 0.5
"""Of decoding: a resource that is busy for less does not bind."""
Point = dict[str, Any]


def write_all() -> list[Path]:
    """Write the page, its pictures and README's sentence; returns their paths."""
    from benchmarks.paper_plot import paper_figure, scale_figure  # noqa: PLC0415  (the text needs no matplotlib)

    DOCUMENT.write_text(document())
    README.write_text(with_gain(README.read_text()))
    drawn = []
    for record, draw, picture in ((load(RECORD), paper_figure, PICTURE), (load(SCALE), scale_figure, SCALE_PICTURE)):
        if record:
            draw(record["points"], picture)
            drawn.append(picture)
    return [DOCUMENT, README, *drawn]


def with_gain(readme: str) -> str:
    """`readme` with the sentence about the gain replaced."""
    record = load(RECORD)
    return between_marks(readme, "paper", gain_text(record) if record else NOT_YET)


def document() -> str:
    """docs/paper.md: the template with the figures of the records."""
    record = load(RECORD)
    if record is None:
        return f"# The paper's evaluation, again\n\n{NOT_YET}\n\n## Executed in scale\n\n{scale_text(load(SCALE))}\n"
    points = record["points"]
    return Template(TEMPLATE.read_text()).substitute(
        requests=record["requests"], gen_len=record["gen_len"], hardware=record["hardware"],
        published=f"{record['published']['gain']:g}", gain=gain_text(record), together=_together(points),
        stages=stages_table(points), why=_why(record), free=_free(points), figures=_figures(points),
        scale=scale_text(load(SCALE)),
    )  # fmt: skip


def load(name: str) -> dict[str, Any] | None:
    """A committed record, if there is one."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


# ---- the gain ------------------------------------------------------------------------------------


def gains(points: Sequence[Point], over: str, ours: str = "hybrid") -> list[float]:
    """Of hybrid over another policy, at every point."""
    return [speed(point, ours) / speed(point, over) for point in points]


def gain_text(record: dict[str, Any]) -> str:
    """The average gain beside the published one."""
    points, published = record["points"], record["published"]["gain"]
    found = gains(points, "flexgen")
    pinned = [speed(p, "hybrid") / p["stages"]["pinned"] for p in points]
    kv, act, theirs = (fmean(gains(points, policy)) for policy in ("kv-only", "act-only", "hybridserve"))
    return (
        f"`hybrid` is predicted at {fmean(found):.2f} times FlexGen as it runs, on average over {len(points)} points "
        f"({min(found):.2f} to {max(found):.2f}); published are {published:g}. Against FlexGen with its cache in "
        f"pinned memory it is {fmean(pinned):.2f} times as fast ({min(pinned):.2f} to {max(pinned):.2f}), against an "
        f"ideal `kv-only` {kv:.2f}, against `act-only` {act:.2f}, and against the paper's own heuristic {theirs:.2f}."
    )


def stages_table(points: Sequence[Point]) -> str:
    """Factor of each stage, by model and over all points."""
    models = list(dict.fromkeys(point["model"] for point in points))
    rows = []
    for i, (_, name) in enumerate(STAGES[1:]):
        rows.append((name, *_by_model(points, models, partial(_factor, i))))
    rows.append(("all of them", *_by_model(points, models, lambda p: speed(p, "hybrid") / speed(p, "flexgen"))))
    return _table(("", *models, "all points"), rows)


def _factor(stage: int, point: Point) -> float:
    before, after = stage_speeds(point)[stage : stage + 2]
    return after / before


def _by_model(points: Sequence[Point], models: Sequence[str], value: Callable[[Point], float]) -> list[str]:
    groups = [[p for p in points if p["model"] == model] for model in models]
    return [f"x {geometric_mean(map(value, group)):.2f}" for group in (*groups, list(points))]


def _why(record: dict[str, Any]) -> str:
    points, published = record["points"], record["published"]["gain"]
    rates = [rate for rate, _ in points[0]["relays"]]
    by_rate = [
        fmean(speed(p, "hybrid") / dict(map(tuple, p["relays"]))[rate] for p in points) for rate in rates
    ]  # fmt: skip
    pinned = fmean(speed(p, "hybrid") / p["stages"]["pinned"] for p in points)
    table = _table(
        ("unpinned cache reaches the GPU at", *(f"{rate / 1e9:g} GB/s" for rate in rates), "pinned"),
        [("`hybrid` over FlexGen, mean", *(f"{gain:.2f}" for gain in by_rate), f"{pinned:.2f}")],
    )
    mean = fmean(gains(points, "flexgen"))
    return (
        f"The prediction, {mean:.2f}, is {mean / published:.1f} times the published {published:g}. Nearly all of that "
        "is how fast FlexGen's cache comes out of ordinary memory: it passes through a pinned buffer that the issuing "
        f"thread fills. The profile has {rates[0] / 1e9:g} GB/s for it, what whole systems show; nobody has published "
        f"it for the paper's host.\n\n{table}\n\n{_meets(rates, by_rate, pinned, published)} A rate is not chosen to "
        "meet the figure. Three more things are not known:\n\n"
        "- FlexGen's best configuration may attend on the CPU, where K and V never cross the link. The forecast here "
        "leaves that out, since what the host's memory delivers to it is not published.\n"
        "- The published mean is of HybridServe as it was measured, and `hybrid` is a plan executed ideally: what its "
        "engine loses (launches, allocation, imperfect overlap) lowers the published figure and not this one.\n"
        "- Which prompt lengths enter the published mean, and how it is taken, is not stated in what is quoted here."
    )


def _meets(rates: Sequence[float], by_rate: Sequence[float], pinned: float, published: float) -> str:
    """Between which relay rates the published gain lies."""
    below = next((i for i, gain in enumerate(by_rate) if gain <= published), None)
    if below is None:
        if pinned <= published:
            return f"The published gain lies between {rates[-1] / 1e9:g} GB/s and pinned memory."
        return f"Even with pinned memory the gain is {pinned:.2f}, above the published one."
    if below == 0:
        return f"At {rates[0] / 1e9:g} GB/s the gain is already below the published one."
    return f"The published gain lies between {rates[below - 1] / 1e9:g} and {rates[below] / 1e9:g} GB/s."


# ---- tables --------------------------------------------------------------------------------------


def _together(points: Sequence[Point]) -> str:
    rows = []
    for point in points:
        best = max(speed(point, policy) for policy in TOGETHER)
        cells = [f"**{v:.4g}**" if v == best else f"{v:.4g}" for v in (speed(point, name) for name in TOGETHER)]
        gain = speed(point, "hybrid") / speed(point, "flexgen")
        rows.append((point["model"], str(point["prompt_len"]), *cells, f"{gain:.2f}"))
    head = ("tokens/s", "prompt", *(f"`{name}`" for name in TOGETHER), "`hybrid` / `flexgen`")
    return f"{_table(head, rows)}\n\n{_never_slower(points, freely=False)}"


def _never_slower(points: Sequence[Point], freely: bool) -> str:
    ours = FREE[1] if freely else "hybrid"
    found = [(point, policy) for point in points for policy, mine in losses(point) if mine == ours]
    if not found:
        return "`hybrid` is never slower than another policy."
    lines = []
    for point, policy in found:
        asked = point.get("asked_for_waves")
        more = ""
        if asked and freely:
            what = f"{asked['throughput_tokens_per_s']:.4g} with `--waves {asked['waves']}`"
            more = f"; asked for waves, {what}"
        lines.append(
            f"- {point['model']}, prompt {point['prompt_len']}: {speed(point, ours):.4g}, "
            f"{policy} {speed(point, policy):.4g} tokens/s{more}"
        )
    reason = " A job that memory holds at once is planned as one wave unless `--waves` asks for more." if freely else ""
    count = len({(point["model"], point["prompt_len"]) for point, _ in found})
    said = f"**`hybrid` is slower than another policy at {count} of {len(points)} points.**{reason}"
    return "\n".join([said, "", *lines])


def _free(points: Sequence[Point]) -> str:
    head = ("tokens/s", "prompt", "`flexgen`", "in rounds", "`hybrid`", "in waves", "`hybrid` / `flexgen`")
    rows = []
    for p in points:
        rounds, waves = (p["policies"][name]["waves"] for name in FREE)
        cells = (f"{speed(p, FREE[0]):.4g}", str(rounds), f"{speed(p, FREE[1]):.4g}", str(waves))
        rows.append((p["model"], str(p["prompt_len"]), *cells, f"{speed(p, FREE[1]) / speed(p, FREE[0]):.2f}"))
    mean = fmean(gains(points, FREE[0], FREE[1]))
    return f"{_table(head, rows)}\n\nMean gain {mean:.2f}. {_never_slower(points, freely=True)}"


def _binds(one: dict[str, Any]) -> str:
    """What is busy; nothing is where a system mostly waits."""
    return str(one["binding"]) if max(one["link_busy"], one["gpu_busy"]) >= MOSTLY else "neither"


def _figures(points: Sequence[Point]) -> str:
    head = (
        "", "prompt", "policy", "prefill", "decode step", "ACT", "link MB/token", "link busy", "GPU busy", "binds",
        "GPU GB", "host GB", "mini-batches", "layers on GPU",
    )  # fmt: skip
    rows = []
    for point in points:
        for name in TOGETHER:
            one = point["policies"][name]
            share = "" if one["act_share"] is None else f"{one['act_share']:.0%}"
            rows.append((
                point["model"], str(point["prompt_len"]), f"`{name}`", f"{one['prefill_s']:.1f} s",
                f"{one['decode_step_s']:.3g} s", share, f"{one['link_bytes_per_token'] / 1e6:.0f}",
                f"{one['link_busy']:.0%}", f"{one['gpu_busy']:.0%}", _binds(one), f"{one['gpu_bytes'] / 1e9:.1f}",
                f"{one['host_bytes'] / 1e9:.0f}", str(one.get("mini_batches", "")), str(one.get("resident_layers", "")),
            ))  # fmt: skip
    return (
        "Link bytes are those to the GPU for each generated token of decoding; busy is meant of decoding.\n\n"
        f"{_table(head, rows)}"
    )


__all__ = ["document", "gain_text", "scale_report", "stages_table", "write_all"]
