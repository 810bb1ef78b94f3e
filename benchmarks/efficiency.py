"""`python -m benchmarks.efficiency`: measured decode time against what no schedule can beat, and the hybrid's gain.

Profiles this machine and goes on doing so between the runs, as `benchmarks.accuracy` does. Every job is run with each
policy at links paced so that K and V only wait for the link, activations only for compute, and the hybrid for both. The
bound is the longer of the link's bytes over its rate and the kernels' work over theirs, from the same profile: without
overhead, without what copies take from compute, without the first transfers that nothing hides.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch

from benchmarks.accuracy import FIRST_ROUNDS, RUNS_PER_TURN, Runs
from benchmarks.accuracy_report import undisturbed, undisturbed_gain
from benchmarks.bounds import Bound, start_delays, typical
from benchmarks.grid import VOCAB, Point
from benchmarks.profiling import costs_by, narrow_profiler
from benchmarks.records import write
from planner.costs import CostModel
from planner.forms import BLOCK_TOKENS
from planner.hardware import HardwareProfile
from planner.model import ModelSpec, load_model
from planner.plan import Plan
from planner.policies import CACHES
from planner.scale import RATIO_BLOCKS, scaled_model
from planner.schedule import Schedule
from planner.workload import Workload
from runtime.cpu_device import CpuDevice, CpuTicket
from runtime.device import Ticket, Work
from runtime.engine import Engine, random_prompts
from runtime.weights import RandomWeights

RECORD = "efficiency.json"
ROUNDS = 5
JOBS = ((320, 4, 20, 992, 8), (384, 4, 24, 704, 7), (448, 4, 16, 800, 7), (512, 4, 16, 704, 6))
"""(width, layers, requests, prompt, generated tokens). A layer's weights are less than a third of its K and V: were
they more, no policy would wait for compute. Kernels are large, since Python within a forward is not
what the bound is about."""
REBUILD_OVER_KV = (1.07, 1.6)
"""Seconds to rebuild K and V of a token over seconds to transfer them: the pace of the link. 1.07 is OPT-30B's on an
RTX 4090 (`benchmarks/results/demo.json`). At either, K and V only waits for the link, activations only for compute."""
BALANCED = 0.85
"""Both resources this busy at the bound: the balance point."""
TARGETS = {"link": 0.05, "compute": 0.05, "balance": 0.08}
GAIN_TARGET, COST_TARGET_S = 0.03, 1e-4


@dataclass
class Case:
    """One plan with its runs."""

    job: int
    ratio: float
    runs: Runs
    bounds: list[Bound] = field(default_factory=list)
    """Of every run, at the machine's speed then."""

    def run(self, profile: HardwareProfile) -> None:
        """Predict, then execute."""
        self.bounds.append(Bound.of(costs_by(self.runs.plan, profile), self.runs.plan.decisions))
        self.runs.run(profile)

    def record(self) -> dict[str, Any]:
        """Bound, prediction and measurement of the decode phase, undisturbed."""
        plan = self.runs.plan
        delays = [
            one
            for timeline in self.runs.measured
            for one in start_delays(Schedule(plan.model, plan.decisions), timeline.spans)
        ]
        runs = [
            {"bound_s": bound.seconds, "predicted_s": predicted.decode_s, "measured_s": measured.decode_s}
            for bound, predicted, measured in zip(self.bounds, self.runs.predicted, self.runs.measured, strict=True)
        ]
        quiet = {key: undisturbed(run[key] for run in runs) for key in runs[0]}
        bound = min(self.bounds, key=lambda one: abs(one.seconds - quiet["bound_s"]))
        return {
            "split": "validate", "job": self.job, "rebuild_over_kv": self.ratio, **self.runs.point.describe(),
            "act_share": plan.prediction.act_share, "mini_batches": len(plan.decisions.mini_batches),
            "bound": asdict(bound), "kind": bound.kind(BALANCED), **quiet,
            "excess": quiet["measured_s"] / quiet["bound_s"] - 1, "runs": runs,
            "start_delay_s": {
                stream: dict(zip(("median", "mean"), typical([s for name, s in delays if name == stream]), strict=True))
                for stream in ("h2d", "compute", "d2h") if any(name == stream for name, _ in delays)
            },
        }  # fmt: skip


def pace(profile: HardwareProfile, model: ModelSpec, ratio: float) -> float:
    """Bytes per second at which rebuilding a token takes `ratio` of the transfer of its K and V."""
    rebuild_s = CostModel(profile, model).rebuild(RATIO_BLOCKS).seconds / (RATIO_BLOCKS * BLOCK_TOKENS)
    return ratio * model.kv_bytes_per_token_layer / rebuild_s


def cases(profile: HardwareProfile, jobs: int) -> Iterator[Case]:
    """Every job at every pace with every policy."""
    opt = load_model("opt-6.7b")
    for i, (hidden, layers, requests, prompt, gen) in enumerate(JOBS[:jobs]):
        model, work = scaled_model(opt, hidden, layers, VOCAB), Workload.uniform(requests, prompt, gen)
        for ratio in REBUILD_OVER_KV:
            rate = pace(profile, model, ratio)
            for policy in CACHES:
                point = Point(model, work, policy, None, None, rate, 0.0)
                yield Case(i, ratio, Runs(point, point.plan(profile)))


def gains(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every job and pace: how much faster the hybrid decodes than the better of the other two."""
    found = []
    for job, ratio in sorted({(p["job"], p["rebuild_over_kv"]) for p in points}):
        by_policy = {
            p["policy"]: [(run["predicted_s"], run["measured_s"]) for run in p["runs"]]
            for p in points if (p["job"], p["rebuild_over_kv"]) == (job, ratio)
        }  # fmt: skip
        predicted, measured = undisturbed_gain(by_policy.pop("hybrid"), *by_policy.values())
        found.append({"job": job, "rebuild_over_kv": ratio, "predicted": predicted - 1, "measured": measured - 1})
    return found


class _Idle(CpuDevice):
    """Does nothing that it is given: what is left is the time to issue."""

    def launch(self, stream: str, work: Work, waits: Sequence[Ticket], nbytes: int = 0) -> Ticket:
        return CpuTicket(end_s=0.0)


def issue_s(plan: Plan) -> float:
    """Seconds of the issuing thread for one operation."""
    device = _Idle(None, None)
    engine = Engine(plan, device, RandomWeights(0, torch.device("cpu")))
    prompts, taken = random_prompts(plan, 0), []
    for _ in range(5):
        started = time.perf_counter()
        count = len(engine.run(prompts).timeline.spans)
        taken.append((time.perf_counter() - started) / count)
    device.close()
    return min(taken)


def overheads(profile: HardwareProfile, points: Sequence[dict[str, Any]], plan: Plan) -> dict[str, float]:
    """Seconds of the engine for one operation, part by part."""
    achieved = profile.gpu.achieved
    delays = [(p["bound"]["operations"], p["start_delay_s"]["compute"]["mean"]) for p in points]
    delay = sum(n * s for n, s in delays) / sum(n for n, _ in delays)
    issue = issue_s(plan)
    return {
        "issue_s": issue, "start_delay_s": delay, "engine_s": issue + delay,
        "op_overhead_s": achieved.op_overhead_s.value, "forward_overhead_s": achieved.forward_overhead_s.value,
    }  # fmt: skip


def main() -> None:
    """Measure and write the record; print its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs of each plan (default {ROUNDS})")
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="only the first so many, for a quick look")
    parser.add_argument("--dry-run", action="store_true", help="only print the summary; write nothing")
    options = parser.parse_args()
    started = time.perf_counter()
    profiler = narrow_profiler("efficiency-profile")
    with profiler.measuring():
        for _ in range(FIRST_ROUNDS):
            profiler.round_of_turns()
        profile = profiler.profile()
        grid = list(cases(profile, options.jobs))
        for turn in range(options.rounds):
            for i, one in enumerate(grid):
                if i % RUNS_PER_TURN == 0:
                    profiler.turn()
                    profile = profiler.profile()
                one.run(profiler.speed().applied(profile))
            print(f"round {turn + 1}/{options.rounds}, {time.perf_counter() - started:.0f} s", flush=True)
    points = [one.record() for one in grid]
    document = {
        "date": datetime.date.today().isoformat(), "machine": profile.machine, "rounds": options.rounds,
        "took_s": round(time.perf_counter() - started), "points": points, "gains": gains(points),
        "overheads": overheads(profile, points, grid[0].runs.plan),
    }  # fmt: skip
    if not options.dry_run:
        print(f"written: {write(RECORD, document)}")
    print(summary(document))


def summary(document: dict[str, Any]) -> str:
    """The record as Markdown: each kind of point against its target, the gains, the engine's cost."""
    return "\n\n".join((kinds_table(document), gains_table(document), overheads_table(document)))


def kinds_table(document: dict[str, Any]) -> str:
    """How far above the bound decoding is, by what binds."""
    rows = [
        "| bound by | points | above the bound, mean | median | worst | predicted, mean | target, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, target in TARGETS.items():
        some = [p for p in document["points"] if p["kind"] == kind]
        if some:
            found = sorted(p["excess"] for p in some)
            predicted = fmean(p["predicted_s"] / p["bound_s"] - 1 for p in some)
            rows.append(
                f"| {kind} | {len(some)} | {fmean(found):+.1%} | {found[len(found) // 2]:+.1%} | {found[-1]:+.1%} "
                f"| {predicted:+.1%} | {target:.0%} |"
            )
    return "\n".join(rows)


def gains_table(document: dict[str, Any]) -> str:
    """How much faster the hybrid decodes than the better of the other two."""
    rows = ["| width x layers, requests x prompt | rebuild / transfer | predicted | measured | difference |",
            "|---|---|---|---|---|"]  # fmt: skip
    for one in document["gains"]:
        hidden, layers, requests, prompt, _ = JOBS[one["job"]]
        rows.append(
            f"| {hidden} x {layers}, {requests} x {prompt} | {one['rebuild_over_kv']:g} | {one['predicted']:+.1%} "
            f"| {one['measured']:+.1%} | {100 * (one['measured'] - one['predicted']):+.1f} points |"
        )
    within = sum(abs(one["measured"] - one["predicted"]) <= GAIN_TARGET for one in document["gains"])
    rows += ["", f"{within} of {len(document['gains'])} within {100 * GAIN_TARGET:.0f} percentage points."]
    return "\n".join(rows)


def overheads_table(document: dict[str, Any]) -> str:
    """The engine's cost for one operation."""
    o = {key: f"{1e6 * value:.0f} us" for key, value in document["overheads"].items()}
    return "\n".join((
        "| engine cost for one operation | mean |", "|---|---|",
        f"| laying it out and handing it to its stream (a thread of its own) | {o['issue_s']} |",
        f"| from when a compute operation could begin to when it begins | {o['start_delay_s']} |",
        f"| together (target {1e6 * COST_TARGET_S:.0f} us) | {o['engine_s']} |",
        f"| Python within a small operation, from the profile | {o['op_overhead_s']} |",
        f"| Python within a layer's forward (about a hundred calls of torch), from the profile "
        f"| {o['forward_overhead_s']} |",
    ))  # fmt: skip


if __name__ == "__main__":
    main()
