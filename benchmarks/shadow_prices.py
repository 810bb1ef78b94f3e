"""`python -m benchmarks.shadow_prices`: shadow prices against the same jobs solved and planned again.

Every case is one resource of one job with a step of 1 or 2 % more. The price is computed for the machine as it is; then
the machine gets the step and three times are compared with what the price says they gain:

- `lp`: the LP that was priced, solved again;
- `bound`: the bound of the whole search, every number of mini-batches free, whole layers;
- `objective`: the solver's objective for the mini-batches of the plan;
- `simulated`: the plan made again from nothing, whole blocks and operation order included.

The last moves in jumps of whole blocks and layers, which small steps do not outweigh; so it is also recorded how large
the jumps are. Nothing here depends on the speed of the machine that runs it.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.records import write
from planner.costs import CostModel
from planner.hardware import load_hardware
from planner.model import load_model
from planner.policies import POLICIES
from planner.search import Found, Options, Search
from planner.shadow_prices import priced
from planner.simulator import simulate
from planner.what_if import Resource, with_more
from planner.workload import Request, Workload

RECORD = "shadow-prices.json"
RESOURCES: tuple[Resource, ...] = ("link", "compute", "gpu_memory", "host_memory")
SHARES = (0.01, 0.02)
COMPARED = ("lp", "bound", "objective", "simulated")
LEAST_SHARE = 2e-3
"""Gains predicted below this share of the step cannot be told from the solver's tolerance: counted apart."""


@dataclass(frozen=True)
class Job:
    hardware: str
    model: str
    requests: int
    prompt_len: int
    gen_len: int
    policy: str = "hybrid"
    host_gib: float | None = None
    """Host memory, where the machine's own would never bind."""
    ragged: bool = False
    """Every other prompt half as long, and every third request generates half as much."""

    @property
    def workload(self) -> Workload:
        lengths = [
            (self.prompt_len // (1 + i % 2), self.gen_len // (2 if i % 3 == 2 else 1)) for i in range(self.requests)
        ]
        if not self.ragged:
            lengths = [(self.prompt_len, self.gen_len)] * self.requests
        return Workload(tuple(Request(str(i), prompt, gen) for i, (prompt, gen) in enumerate(lengths)))


JOBS = (
    Job("rtx4090-pcie4", "opt-30b", 64, 512, 64),
    Job("rtx4090-pcie4", "opt-6.7b", 96, 500, 24),
    Job("rtx4090-desktop", "opt-30b", 16, 256, 20),
    Job("rtx4090-desktop", "llama-2-13b", 32, 700, 32, "kv-only"),
    Job("t4", "opt-6.7b", 24, 500, 24, "act-only"),
    Job("t4", "opt-13b", 32, 300, 48),
    Job("a100-40gb", "llama-3-70b", 48, 500, 24),
    Job("l4", "opt-30b", 48, 400, 32),
    Job("rtx3090", "opt-66b", 24, 600, 24),
    Job("h100-pcie", "opt-175b", 32, 512, 32),
    Job("rtx4090-pcie4", "opt-30b", 48, 600, 48, ragged=True),
    Job("t4", "opt-6.7b", 24, 700, 40, ragged=True),
    Job("rtx4090-pcie4", "opt-30b", 64, 512, 64, "hybrid", 90),
    Job("rtx4090-pcie4", "opt-13b", 128, 900, 32, "hybrid", 110),
)


def main() -> None:
    """Run all cases and write the record."""
    cases = [case for job in JOBS for case in _cases(job)]
    found = summary(cases)
    document = {"date": datetime.date.today().isoformat(), "summary": found, "cases": cases}
    print(f"written: {write(RECORD, document)}")
    print(table(found))


def _search(job: Job, resource: Resource | None = None, share: float = 0.0, count: int | None = None) -> Search:
    hardware = load_hardware(job.hardware)
    if job.host_gib:
        total = job.host_gib * 2**30 + hardware.host.reserve_bytes.value
        hardware = hardware.with_values(**{"host.total_bytes": total})
    if resource:
        hardware = with_more(hardware, resource, share)
    costs = CostModel(hardware, load_model(job.model, "float16"))
    return Search(costs, job.workload, POLICIES[job.policy].forms, Options(mini_batches=count))


def _run(search: Search) -> Found:
    found = search.run()
    if found is None:
        raise SystemExit("a job of this benchmark has no plan: choose another")
    return found


def _cases(job: Job) -> Iterator[dict[str, Any]]:
    search = _search(job)
    found = _run(search)
    problem = priced(search, found.decisions)
    total_s = simulate(search.costs, found.decisions).total_s
    count = len(found.decisions.mini_batches)
    for resource in RESOURCES:
        price = problem.price(resource)
        for share in SHARES:
            free = _run(_search(job, resource, share))
            fixed_search = _search(job, resource, share, count)
            fixed = replace(_run(fixed_search), bound_s=free.bound_s)
            gains = {
                "lp": problem.gain_s(resource, share),
                "bound": found.bound_s - fixed.bound_s,
                "objective": found.objective_s - fixed.objective_s,
                "simulated": total_s - simulate(fixed_search.costs, fixed.decisions).total_s,
            }
            yield {
                "job": vars(job), "resource": resource, "share": share, "how": price.how, "total_s": total_s,
                "optimum_s": problem.optimum_s, "predicted_s": price.seconds_per_share * share, "gained_s": gains,
            }  # fmt: skip


def counts(case: dict[str, Any]) -> bool:
    """True where more of the resource is worth something that can be told from the solver's tolerance."""
    return bool(case["predicted_s"] > LEAST_SHARE * case["share"] * case["optimum_s"])


def error_of(case: dict[str, Any], name: str) -> float:
    """Of the gain, how far prediction and comparison are apart: over the larger, so that a gain of nothing is 100 %."""
    predicted, gained = case["predicted_s"], case["gained_s"][name]
    return float(abs(predicted - gained) / max(abs(predicted), abs(gained)))


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every comparison: cases, the median and worst relative error, and how many are within 10 %."""
    priced_cases = [case for case in cases if counts(case)]
    found: dict[str, Any] = {"cases": len(cases), "worth_nothing": len(cases) - len(priced_cases)}
    found["worth_nothing_gained_at_most"] = max(
        (abs(case["gained_s"]["lp"]) / case["optimum_s"] for case in cases if not counts(case)), default=0.0
    )
    found["how"] = {how: sum(case["how"] == how for case in cases) for how in sorted({c["how"] for c in cases})}
    for name in COMPARED:
        errors = [error_of(case, name) for case in priced_cases]
        of_total = [abs(case["predicted_s"] - case["gained_s"][name]) / case["total_s"] for case in priced_cases]
        found[name] = {
            "n": len(errors), "median": statistics.median(errors), "worst": max(errors),
            "within_10_percent": sum(error <= 0.1 for error in errors),
            "median_of_total": statistics.median(of_total), "worst_of_total": max(of_total),
        }  # fmt: skip
    return found


def table(found: dict[str, Any]) -> str:
    """The summary as Markdown."""
    named = {
        "lp": "the LP, solved again", "bound": "the bound, searched again",
        "objective": "the objective of the plan's mini-batches", "simulated": "the plan made again, simulated",
    }  # fmt: skip
    lines = [
        "| gain predicted, against | n | within 10 % | median error | worst | worst, over the total time |",
        "|---|---|---|---|---|---|",
    ]
    for name in COMPARED:
        one = found[name]
        lines.append(
            f"| {named[name]} | {one['n']} | {one['within_10_percent']} | {one['median']:.1%} | {one['worst']:.1%} | "
            f"{one['worst_of_total']:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
