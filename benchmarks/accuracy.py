"""`python -m benchmarks.accuracy`: predictions made before the run, from a profile calibrated on other shapes.

Profiles this machine, plans a grid of small jobs, and executes each several times, in rounds over the whole grid. The
profiler goes on measuring in between, so that runs and calibration see the same machine whatever else it does. Each run
is predicted from what was calibrated before it, at the speed that a few kernels have just before it starts
(`runtime.gauge`, as `hybridserve demo` does). A point's error is that of its run in the middle.

The newest run of the benchmark is the record, whatever it shows; summaries of all earlier ones are kept beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.accuracy_report import RERUNS, middles, read_reruns, rerun, summary
from benchmarks.grid import PROFILE_HIDDEN, Point, executed_shapes, points
from benchmarks.profiling import costs_by, narrow_profiler
from benchmarks.records import RESULTS, write
from planner.costs import CostModel
from planner.files import dump_yaml, write_whole
from planner.hardware import HardwareProfile
from planner.interpolation import left_out
from planner.plan import Plan
from planner.repeats import Repeats
from planner.simulator import simulate
from planner.timeline import Timeline
from runtime.calibration import LAYERS, probe_jobs
from runtime.execution import execute
from runtime.kernels import GEMM_COLUMNS, GEMM_ROWS, calibrated_shapes

ROUNDS = 7
FIRST_ROUNDS = 9
"""Rounds of calibration before the first run, as `hybridserve profile` takes them."""
RUNS_PER_TURN = 4
"""Runs between two turns of the profiler."""
RECORD, PROFILE = "accuracy.json", "accuracy-profile.yaml"


@dataclass
class Runs:
    """One point: its plan, and what was predicted and measured, run by run."""

    point: Point
    plan: Plan
    predicted: list[Timeline] = field(default_factory=list)
    measured: list[Timeline] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def run(self, profile: HardwareProfile) -> None:
        """Predict, then execute."""
        self.predicted.append(predicted_now(self.plan, profile))
        done = execute(self.plan, seed=len(self.measured))
        self.measured.append(done.measured)
        self.peak_bytes = done.peak_bytes

    def record(self) -> dict[str, Any]:
        """The point as data: its run in the middle of each quantity, and all of them."""
        first = simulate(CostModel(self.plan.hardware, self.plan.model), self.plan.decisions)
        timelines = list(zip(self.predicted, self.measured, strict=True))
        runs = [(times(p), times(m)) for p, m in timelines]
        kinds = middles([(Repeats([p]).kind_s(), Repeats([m]).kind_s()) for p, m in timelines])
        return {
            "split": "validate",
            **self.point.describe(),
            "act_share": self.plan.prediction.act_share,
            "mini_batches": len(self.plan.decisions.mini_batches),
            "binding": self.plan.prediction.binding,
            "runs": [{"predicted": p, "measured": m} for p, m in runs],
            "disturbance": Repeats(self.measured).disturbance,
            **middles(runs),
            "predicted_at_first": times(first),
            "kinds": {
                key: {"predicted_s": predicted, "measured_s": kinds["measured"][key]}
                for key, predicted in kinds["predicted"].items() if predicted
            },
            "peak_bytes": {
                place: {"predicted": self.plan.memory[place].planned_bytes, "measured": self.peak_bytes[place]}
                for place in ("gpu", "host")
            },
        }  # fmt: skip


def predicted_now(plan: Plan, profile: HardwareProfile) -> Timeline:
    """The timeline of `plan` on a machine as fast as `profile` has it by now."""
    return simulate(costs_by(plan, profile), plan.decisions)


def times(one: Timeline) -> dict[str, float]:
    """What is compared of a run."""
    return {key: getattr(one, key) for key in ("prefill_s", "decode_step_s", "total_s")}


def main() -> None:
    """Measure and write the record; print its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs of each point (default {ROUNDS})")
    parser.add_argument("--every", type=int, default=1, help="only every n-th point, for a quick look")
    parser.add_argument("--dry-run", action="store_true", help="only print the summary; write nothing")
    options = parser.parse_args()
    started = time.perf_counter()
    profiler = narrow_profiler("accuracy-profile")
    with profiler.measuring():
        for _ in range(FIRST_ROUNDS):
            profiler.round_of_turns()
        profile = profiler.profile()
        grid = [Runs(point, point.plan(profile)) for point in list(points())[:: options.every]]
        refuse_shared(profile, [one.plan for one in grid])
        for turn in range(options.rounds):
            for i, one in enumerate(grid):
                if i % RUNS_PER_TURN == 0:
                    profiler.turn()
                    profile = profiler.profile()
                one.run(profiler.speed().applied(profile))
                if i % 12 == 0:
                    print(f"round {turn + 1}/{options.rounds}, point {i + 1}/{len(grid)}", flush=True)
    document: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": profile.machine,
        "took_s": round(time.perf_counter() - started),
        "calibrate": calibration(profile),
        "points": [one.record() for one in grid],
    }
    if not options.dry_run:
        kept = json.loads((RESULTS / RECORD).read_text()) if (RESULTS / RECORD).exists() else None
        write(RERUNS, [*read_reruns(), *([rerun(kept)] if kept else [])])
        write_whole(RESULTS / PROFILE, dump_yaml(profile.to_plain()))
        print(f"written: {write(RECORD, document)}")
    print(summary(document))


def calibration(profile: HardwareProfile) -> dict[str, Any]:
    """What the profile was calibrated on, for the record and for the proof."""
    return {
        "split": "calibrate",
        "profile_hash": profile.content_hash,
        "kernels": {
            "hidden": PROFILE_HIDDEN, "gemm_rows": list(GEMM_ROWS), "gemm_columns": GEMM_COLUMNS * PROFILE_HIDDEN,
        },
        "jobs": [
            {"width_share": job.width, "layers": LAYERS, "requests": job.requests, "prompt_len": job.prompt_len}
            for job in probe_jobs(PROFILE_HIDDEN, "float32")
        ],
        "leave_one_out": [one._asdict() for one in left_out(profile)],
    }  # fmt: skip


def refuse_shared(profile: HardwareProfile, plans: Sequence[Plan]) -> None:
    """SystemExit unless no executed shape, width or job of `plans` was calibrated on."""
    shared = executed_shapes(plans) & calibrated_shapes(PROFILE_HIDDEN)
    jobs = {(job.requests, job.prompt_len) for job in probe_jobs(PROFILE_HIDDEN, "float32")}
    repeated = [plan for plan in plans if (len(plan.workload), plan.workload.requests[0].prompt_len) in jobs]
    if shared or repeated:
        raise SystemExit(f"not out of sample: {sorted(shared)[:5]}, {len(repeated)} jobs calibrated on")


if __name__ == "__main__":
    main()
