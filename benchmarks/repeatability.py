"""`python -m benchmarks.repeatability`: two profiles of this machine, one after the other, and what they predict.

Either both predict the same plan within 3 %, or `profile` said that the machine is too noisy, and by how much.
"""

from __future__ import annotations

import datetime
from typing import Any

from benchmarks.grid import PROFILE_HIDDEN, points
from benchmarks.records import write
from planner.costs import CostModel
from planner.explain import NOISY
from planner.hardware import HardwareProfile
from planner.plan import Plan
from planner.report import noise_warning
from planner.simulator import simulate
from runtime.profiler import Profiler, Request

RECORD = "repeatability.json"
EVERY = 4
"""Of the accuracy benchmark's points, how many are predicted with both."""


def main() -> None:
    """Measure twice, predict, write the record."""
    (first, said_first), (second, said_second) = _profile(), _profile()
    plans = [point.plan(first) for point in list(points())[::EVERY]]
    differences = sorted(abs(_total_s(plan, second) / _total_s(plan, first) - 1) for plan in plans)
    document: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": first.machine,
        "plans": len(plans),
        "median_difference": differences[len(differences) // 2],
        "worst_difference": differences[-1],
        "repeatability_said": [said_first, said_second],
        "warned": [noise_warning(said) for said in (said_first, said_second)],
    }
    holds = document["median_difference"] <= NOISY or max(said_first, said_second) > NOISY
    print(f"written: {write(RECORD, document)}")
    print(f"{document}\n{'holds' if holds else 'DOES NOT HOLD'}")


def _profile() -> tuple[HardwareProfile, float]:
    request = Request("cpu", hidden=PROFILE_HIDDEN, heads=PROFILE_HIDDEN // 64, profile_id="repeatability")
    profiler = Profiler(request, lambda done, of, text: print(f"profile {done}/{of}: {text}", flush=True))
    return profiler.run(), profiler.repeatability


def _total_s(plan: Plan, rates: HardwareProfile) -> float:
    """What `rates` say of a plan made with others, its link and arena as they are in the plan."""
    hardware = plan.hardware.model_copy(update={"gpu": plan.hardware.gpu.model_copy(
        update={"achieved": rates.gpu.achieved})})  # fmt: skip
    return simulate(CostModel(hardware, plan.model), plan.decisions).total_s


if __name__ == "__main__":
    main()
