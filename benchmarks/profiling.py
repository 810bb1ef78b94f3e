"""Profiles that benchmarks take of this machine, and plans as one of them has it."""

from __future__ import annotations

from benchmarks.grid import PROFILE_HIDDEN
from planner.costs import CostModel
from planner.hardware import HardwareProfile
from planner.plan import Plan
from runtime.profiler import Profiler, Request


def narrow_profiler(name: str) -> Profiler:
    """A profiler of kernels as wide as no model that is executed with it; prints how far it is."""
    request = Request("cpu", hidden=PROFILE_HIDDEN, heads=PROFILE_HIDDEN // 64, profile_id=name)
    return Profiler(request, lambda done, of, text: print(f"profile {done}/{of}: {text}", flush=True))


def costs_by(plan: Plan, rates: HardwareProfile) -> CostModel:
    """What operations of `plan` cost at the compute rates of another profile, its link and memory as in the plan."""
    gpu = plan.hardware.gpu.model_copy(update={"achieved": rates.gpu.achieved})
    return CostModel(plan.hardware.model_copy(update={"gpu": gpu}), plan.model)
