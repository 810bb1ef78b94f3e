"""`python -m benchmarks.planner_speed`: how long planning takes for very many ragged requests, read from a JSONL file.

Beside it FlexGen's search over fractions, for the same jobs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.records import write_jobs
from planner.costs import CostModel
from planner.errors import InfeasibleError
from planner.hardware import load_hardware
from planner.model import load_model
from planner.peers.catalogue import PEERS
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.workload import Request, Workload

RECORD, SEED = "planner-speed.json", 41
HARDWARE, MODEL = "rtx4090-pcie4", "opt-30b"
SIZES = (512, 10_000)
LENGTHS = ((64, 1024), (16, 256))
"""Prompt and generated tokens, shortest and longest."""


def ragged(count: int) -> Workload:
    """Requests of random lengths, the same ones for the same count."""
    draw = random.Random(SEED + count)
    (low, high), (first, last) = LENGTHS
    pairs = ((draw.randint(low, high), draw.randint(first, last)) for _ in range(count))
    return Workload(tuple(Request(str(i), *pair) for i, pair in enumerate(pairs)))


def planned(count: int) -> dict[str, Any]:
    """One job, from its file to its plan."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.jsonl"
        lines = (json.dumps({"prompt_len": r.prompt_len, "gen_len": r.gen_len}) for r in ragged(count).requests)
        path.write_text("\n".join(lines), encoding="utf-8")
        hardware, model = load_hardware(HARDWARE), load_model(MODEL)
        started = time.perf_counter()
        work = Workload.from_jsonl(path)
        read_s = time.perf_counter() - started
        plan = make_plan(hardware, model, work, POLICIES["hybrid"])
        took_s = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "requests": count, "read_s": read_s, "took_s": took_s, "gap": plan.gap, "waves": len(plan.waves),
        "total_s": plan.prediction.total_s, "peak_bytes": peak, "flexgen_s": flexgen_s(work),
    }  # fmt: skip


def flexgen_s(work: Workload) -> float | None:
    """Seconds of FlexGen's own search; None where it finds nothing."""
    started = time.perf_counter()
    try:
        PEERS["flexgen"].forecast(CostModel(load_hardware(HARDWARE), load_model(MODEL)), work)
    except InfeasibleError:
        return None
    return time.perf_counter() - started


def summary(found: list[dict[str, Any]]) -> str:
    """In words."""
    lines = []
    for one in found:
        flexgen = "nothing" if one["flexgen_s"] is None else f"{one['flexgen_s']:.2f} s"
        lines.append(
            f"{one['requests']:,} requests: {one['took_s']:.1f} s in all, {one['read_s']:.1f} s of it to read them; "
            f"{one['waves']} waves, gap {one['gap']:.2%}, {one['peak_bytes'] / 1e9:.2f} GB at most. "
            f"FlexGen's search: {flexgen}"
        )
    return "\n".join(lines)


def main() -> None:
    """Plan, print, and write the record unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    found = [planned(count) for count in options.requests]
    print(summary(found))
    if not options.dry_run:
        print(f"written: {write_jobs(RECORD, found)}")


if __name__ == "__main__":
    main()
