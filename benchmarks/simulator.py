"""`python -m benchmarks.simulator`: how long simulating and explaining plans takes.

One large job by itself, and a grid of models, prompt lengths and policies on all cores. Every operation of every plan
is simulated.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from itertools import product
from typing import Any, TypeVar

import torch

from benchmarks.records import write
from planner.attribution import attribute
from planner.costs import CostModel
from planner.errors import InfeasibleError
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import POLICIES, Policy
from planner.search import Options
from planner.simulator import simulate
from planner.sweep import cores, in_parallel
from planner.terminal import steps
from planner.workload import Workload
from runtime.machine import machine_facts

RECORD = "simulator.json"
PROFILE = "rtx4090-pcie4"
REQUESTS, GEN_LEN = 128, 128
LARGE = ("opt-30b", 1024, Options(mini_batches=8))
"""48 layers, 8 mini-batches, 127 decode steps after prefill."""
MODELS = ("opt-6.7b", "opt-13b", "opt-30b", "opt-66b")
PROMPTS = (128, 256, 512, 1024, 1920)
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and how many seconds it took."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def job(
    hardware: HardwareProfile, model_name: str, prompt_len: int, policy: Policy, options: Options
) -> dict[str, Any]:
    """Plan, simulate and explain one job."""
    model, work = load_model(model_name), Workload.uniform(REQUESTS, prompt_len, GEN_LEN)
    plan, plan_s = timed(lambda: make_plan(hardware, model, work, policy, options))
    # A cost model of its own: nothing is priced already.
    timeline, simulate_s = timed(lambda: simulate(CostModel(hardware, model), plan.decisions))
    _, explain_s = timed(lambda: attribute(hardware, model, plan.decisions))
    return {
        "model": model_name, "prompt_len": prompt_len, "policy": policy.name,
        "mini_batches": len(plan.decisions.mini_batches), "operations": len(timeline.rows),
        "plan_s": plan_s, "simulate_s": simulate_s, "explain_s": explain_s, "total_s": timeline.total_s,
    }  # fmt: skip


def planned(model_name: str, prompt_len: int, policy: str) -> dict[str, Any]:
    """Plan one job of the grid. `plan_s` contains the simulation of the plan, and those that choosing it needs."""
    hardware, model = load_hardware(PROFILE), load_model(model_name)
    work = Workload.uniform(REQUESTS, prompt_len, GEN_LEN)
    about: dict[str, Any] = {"model": model_name, "prompt_len": prompt_len, "policy": policy}
    try:
        plan, plan_s = timed(lambda: make_plan(hardware, model, work, POLICIES[policy], Options(waves=1)))
    except InfeasibleError as error:
        return {**about, "infeasible": str(error)}
    return {**about, "plan_s": plan_s, "total_s": plan.prediction.total_s}


def summary(large: dict[str, Any], grid: list[dict[str, Any]], grid_s: float, processes: int) -> str:
    """The record in words."""
    return (
        f"{large['operations']:,} operations simulated in {large['simulate_s']:.2f} s, explained in "
        f"{large['explain_s']:.2f} s. The grid of {len(grid)} jobs, of which "
        f"{sum('plan_s' in one for one in grid)} are feasible, was planned and simulated in {grid_s:.0f} s by "
        f"{processes} processes."
    )


def main() -> None:
    """Measure, print, and write the record unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    hardware = load_hardware(PROFILE)
    model, prompt_len, forced = LARGE
    large = job(hardware, model, prompt_len, POLICIES["hybrid"], forced)
    processes = cores()
    with steps("planning") as advance:
        tasks = list(product(MODELS, PROMPTS, POLICIES))
        grid, grid_s = timed(lambda: in_parallel(planned, tasks, processes, advance))
    print(summary(large, grid, grid_s, processes))
    if not options.dry_run:
        date, machine = datetime.date.today().isoformat(), machine_facts(torch.device("cpu"))
        document: dict[str, Any] = {"date": date, "machine": machine, "hardware": hardware.id, "large": large}
        document |= {"grid_s": grid_s, "processes": processes, "grid": grid}
        print(f"written: {write(RECORD, document)}")


if __name__ == "__main__":
    main()
