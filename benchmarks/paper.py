"""`python -m benchmarks.paper`: the paper's evaluation, four OPT models over five prompt lengths, predicted.

With --write the record, docs/paper.md and its pictures; with --execute the same figure executed on scale models of this
machine (`benchmarks.paper_scale`). The predictions load no torch and need no GPU.

Example: python -m benchmarks.paper --write
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.console import Group, RenderableType

from benchmarks import paper_docs
from benchmarks.figures import load_rows
from benchmarks.paper_points import (
    BATCH,
    FREE,
    GEN_LEN,
    HARDWARE,
    MODELS,
    PLACEMENT,
    PROMPTS,
    SPLIT,
    TOGETHER,
    in_waves,
    losses,
    predicted,
    speed,
    tasks,
)
from benchmarks.records import write
from planner import tables
from planner.errors import HybridserveError
from planner.hardware import load_hardware
from planner.sweep import cores, in_parallel
from planner.terminal import fail, show, steps, written

PUBLISHED = "hybridserve-4090"


def main(argv: list[str] | None = None) -> int:
    """Predict, or with --execute measure; print, and with --write keep."""
    about, _, example = (__doc__ or "").partition("\n\nExample: ")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=about, epilog=f"Example: {example.strip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else there")
    parser.add_argument("--write", action="store_true", help="keep the record and write docs/paper.md from it")
    parser.add_argument("--workers", type=int, default=cores(), help="processes; default: all cores")
    parser.add_argument("--docs", action="store_true", help="only write docs/paper.md again from the records")
    parser.add_argument("--execute", action="store_true", help="execute the figure in scale; see --quick")
    parser.add_argument("--quick", action="store_true", help="with --execute: a small part, kept nowhere")
    parser.add_argument("--again", action="store_true", help="with --execute: forget a run that was broken off")
    args = parser.parse_args(argv)
    if (args.quick or args.again) and not args.execute:
        parser.error("--quick and --again go with --execute")
    if args.workers < 1:
        parser.error("--workers: one process at least")
    try:
        if args.execute:
            from benchmarks.paper_scale import measure  # noqa: PLC0415  (predictions need no torch)

            record = measure(quick=args.quick, again=args.again)
            show(args.json, record, paper_docs.scale_report(record))
        elif not args.docs:
            record = make_record(args.workers)
            show(args.json, record, report(record))
            if args.write:
                written(write(paper_docs.RECORD, record))
        if args.docs or (args.write and not args.execute) or (args.execute and not args.quick):
            written(*paper_docs.write_all())
    except HybridserveError as error:
        fail(str(error))
        return error.exit_code
    return 0


def make_record(workers: int) -> dict[str, Any]:
    """Plain data; all but `took` is the same on every machine."""
    started = time.perf_counter()
    todo = tasks()
    with steps("predicting") as advance:
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for (model, prompt, _), figures in zip(todo, in_parallel(predicted, todo, workers, advance), strict=True):
            found.setdefault((model, prompt), {}).update(figures)
        points = [_point(model, prompt, found[model, prompt]) for model in MODELS for prompt in PROMPTS]
        slower = [p for p in points if any(losses(p))]
        asked = [(p["model"], p["prompt_len"]) for p in slower]
        for point, waves in zip(slower, in_parallel(in_waves, asked, workers, advance) if asked else [], strict=True):
            point["asked_for_waves"] = waves
    hardware = load_hardware(HARDWARE)
    return {
        "schema_version": 1, "split": "validate", "hardware": hardware.id, "hardware_hash": hardware.content_hash,
        "requests": BATCH, "gen_len": GEN_LEN, "published": _published(), "points": points,
        "took": {"seconds": round(time.perf_counter() - started), "processes": workers},
    }  # fmt: skip


def _point(model: str, prompt: int, found: dict[str, Any]) -> dict[str, Any]:
    stages = {**found["stages"], "placement": found[PLACEMENT], "split": found[SPLIT]}
    policies = {name: found[name] for name in (*TOGETHER, *FREE)}
    return {
        "model": model, "prompt_len": prompt, "policies": policies, "stages": stages, "relays": found["relays"],
    }  # fmt: skip


def _published() -> dict[str, Any]:
    row = next(row for row in load_rows() if row.id == PUBLISHED)
    return {"id": row.id, "gain": row.published.value, "source": row.published.source}


def report(record: dict[str, Any]) -> RenderableType:
    """Tokens per second of every policy, then the gain and its parts in words."""
    table = tables.new_table(
        f"{record['requests']} requests, {record['gen_len']} tokens each, on {record['hardware']}: tokens/s",
        "model", "prompt", *TOGETHER,
    )  # fmt: skip
    for point in record["points"]:
        cells = (f"{speed(point, policy):.4g}" for policy in TOGETHER)
        table.add_row(point["model"], str(point["prompt_len"]), *cells)
    return Group(table, paper_docs.gain_text(record), "", paper_docs.stages_table(record["points"]))


if __name__ == "__main__":
    raise SystemExit(main())
