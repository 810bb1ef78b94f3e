"""`python -m benchmarks.accuracy_docs`: docs/accuracy.md, its picture and README's figures, from the records."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

from benchmarks import memory, published
from benchmarks.accuracy_report import HEADER, groups_table, kinds_table, main_table, otherwise_rows, read_reruns, rerun
from benchmarks.records import RESULTS, between_marks

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENT, PICTURE = ROOT / "docs" / "accuracy.md", ROOT / "docs" / "images" / "accuracy.png"
TEMPLATE = Path(__file__).parent / "accuracy_template.md"
ACCURACY = "accuracy.json"


def main() -> None:
    """Write the document, and the picture where matplotlib is installed."""
    from runtime.plots.runs import accuracy_figure  # noqa: PLC0415  (the text alone needs no matplotlib)

    DOCUMENT.write_text(document())
    points = _load(ACCURACY)["points"]
    pairs = {
        key: [(p["policy"], p["predicted"][key], p["measured"][key]) for p in points]
        for key in ("decode_step_s", "prefill_s")
    }
    accuracy_figure(pairs, PICTURE)
    README.write_text(with_figures(README.read_text()))
    print(f"written: {DOCUMENT}, {PICTURE}, {README}")


def with_figures(readme: str) -> str:
    """`readme` with the accuracy table replaced."""
    record = _load(ACCURACY)
    return between_marks(readme, "accuracy", main_table(record["points"]))


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def document() -> str:
    """docs/accuracy.md: the template, with the figures of the records."""
    record = _load(ACCURACY)
    points = record["points"]
    return Template(TEMPLATE.read_text()).substitute(
        setting=_setting(record),
        main=main_table(points),
        left_out=_left_out(record["calibrate"]["leave_one_out"]),
        otherwise=f"{HEADER}\n{otherwise_rows(points)}",
        disturbance=_disturbance(points),
        reruns=_reruns(record),
        groups=groups_table(points),
        kinds=kinds_table(points),
        memory=memory.summary(_load(memory.RECORD)),
        published=published.markdown_table(published.load()),
        worst="\n".join(_worst(points)),
    )


def _reruns(record: dict[str, Any]) -> str:
    """The record and every run of the grid before it, with how steady the machine was."""
    names = ("run", "profile's halves differ by", "median disturbance", "decode step: mean, p95, worst", "prefill")
    head = f"| {' | '.join(names)} | whole job |"
    rows = []
    for name, one in [
        ("the record", rerun(record)),
        *((f"before, {one['date']}", one) for one in sorted(read_reruns(), key=lambda one: one["date"])),
    ]:
        step = one["decode_step_s"]
        figures = ", ".join(f"{step[key]:.1%}" for key in ("mean", "p95", "worst"))
        cells = (
            name, one["machine"]["repeatability"], f"{one['disturbance']:.1%}", figures,
            f"{one['prefill_s']['mean']:.1%}", f"{one['total_s']['mean']:.1%}",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _setting(record: dict[str, Any]) -> str:
    points, machine, calibrated = record["points"], record["machine"], record["calibrate"]
    jobs = ", ".join(f"{job['requests']} x {job['prompt_len']}" for job in calibrated["jobs"])
    widths = ", ".join(map(str, sorted({p["hidden"] for p in points})))
    return (
        f"{len(points)} points, each run {len(points[0]['runs'])} times in rounds over all of them, on "
        f"{record['date']}: one core of an {machine['processor']} ({machine['cores']} cores), fp32, torch "
        f"{machine['torch']}. Widths {widths}, multi-head and grouped-query attention, {_span(points, 'requests')} "
        f"requests, prompts of {_span(points, 'prompt_len')} tokens, three link rates, all policies, forced ACT "
        f"shares. Every point is of the split `validate`. The profile is of the split `calibrate`: kernels at width "
        f"{calibrated['kernels']['hidden']} and small jobs of {jobs}; the benchmark stops if a shape, width or job of "
        f"the grid is among them. It took {record['took_s'] / 60:.0f} minutes."
    )


def _span(points: list[dict[str, Any]], key: str) -> str:
    return f"{min(p[key] for p in points)} to {max(p[key] for p in points)}"


def _left_out(found: list[dict[str, Any]]) -> str:
    rows = [f"| `{one['key']}` | {one['n']} | {one['median']:.1%} | {one['worst']:.1%} |" for one in found]
    return "\n".join(["| table | n | median | worst |", "|---|---|---|---|", *rows])


def _disturbance(points: list[dict[str, Any]]) -> str:
    found = sorted(p["disturbance"] for p in points)
    middle, worst = found[len(found) // 2], found[-1]
    return f"The median run of a point took {middle:.1%} longer than undisturbed (worst {worst:.1%})."


def _worst(points: list[dict[str, Any]]) -> list[str]:
    lines = []
    for key, name in (("decode_step_s", "decode step"), ("prefill_s", "prefill")):
        found = [(p["predicted"][key] / p["measured"][key] - 1, p["measured"][key], p) for p in points]
        for error, measured, p in sorted(found, key=lambda one: -abs(one[0]))[:3]:
            lines.append(
                f"- {name} {error:+.1%}: width {p['hidden']}, {p['kv_heads']} K/V heads, {p['requests']} x "
                f"{p['prompt_len']} + {p['gen_len']}, {p['policy']}, link {p['link_bytes_per_s'] / 1e9:g} GB/s "
                f"({1e3 * measured:.1f} ms)"
            )
    return lines


if __name__ == "__main__":
    main()
