"""`python -m benchmarks.repeatability`: two profiles of this machine, one after the other, and what they predict.

Either both predict the same plan within 3 %, or `profile` said that the machine is too noisy, and by how much.
"""

from __future__ import annotations

import datetime
from typing import Any

from benchmarks.grid import points
from benchmarks.profiling import costs_by, narrow_profiler
from benchmarks.records import write
from planner.explain import NOISY
from planner.hardware import HardwareProfile
from planner.plan import Plan
from planner.report import noise_warning
from planner.simulator import simulate

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
    profiler = narrow_profiler("repeatability")
    return profiler.run(), profiler.repeatability


def _total_s(plan: Plan, rates: HardwareProfile) -> float:
    """What `rates` say of a plan made with others."""
    return simulate(costs_by(plan, rates), plan.decisions).total_s


if __name__ == "__main__":
    main()
