"""Why no plan exists: which memory is short, by how much, and the smallest change that helps."""

from __future__ import annotations

import pulp

from planner.errors import HybridserveError, InfeasibleError
from planner.ilp import GIB, SplitProblem, build, solve
from planner.policies import Policy
from planner.search import Search
from planner.workload import Workload

GPU_DEARNESS = 8.0
"""A byte of GPU memory is harder to come by than one on the host: name the host where either would help."""


def explain_infeasible(search: Search, policy: Policy) -> InfeasibleError:
    """The error to raise for a search that found nothing."""
    count = search.options.mini_batches or len(search.requests)
    gpu, host = shortage(search.relaxed(count, count))
    limit, device, missing = ("gpu_memory", "GPU", gpu) if gpu > host else ("host_memory", "host", host)
    hardware, model = search.costs.hardware, search.costs.model
    budget = hardware.gpu.budget_bytes if limit == "gpu_memory" else hardware.host.budget_bytes
    what = (
        f"{policy.name} of {model.name} for {len(search.requests)} requests needs at least "
        f"{_gib(budget + missing)} of {device} memory, {_gib(missing)} more than the {_gib(budget)} of {hardware.id}"
    )
    return InfeasibleError(what, limit=limit, missing_bytes=missing, cure=_cure(search, device, missing))


def shortage(problem: SplitProblem) -> tuple[float, float]:
    """(GPU, host) bytes that must be added for the problem to have a solution."""
    m = build(problem)
    gpu, host = pulp.LpVariable("gpu_short_gib", 0), pulp.LpVariable("host_short_gib", 0)
    m.problem.constraints["gpu_memory"] -= gpu
    m.problem.constraints["host_memory"] -= host
    m.problem.setObjective(GPU_DEARNESS * gpu + host)
    m.problem.solve(pulp.HiGHS(msg=False, timeLimit=10, threads=1))
    if pulp.LpStatus[m.problem.status] != "Optimal":
        raise HybridserveError("these options contradict each other: no amount of memory would help")
    return float(gpu.varValue or 0) * GIB, float(host.varValue or 0) * GIB


def _cure(search: Search, device: str, missing: float) -> str:
    most = _most_requests(search)
    more = f"Add {_gib(missing)} of {device} memory"
    if most:
        return f"{more}, or run at most the first {most} of these requests together"
    return f"{more}: fewer requests alone do not help, the weights do not fit; choose a smaller model or dtype"


def _most_requests(search: Search) -> int:
    """The most requests of this workload, from its start, that have a plan; 0 when none has."""
    low, high = 0, len(search.requests)
    while high - low > 1:
        middle = (low + high) // 2
        part = _first(search, middle)
        count = min(search.options.mini_batches or middle, middle)
        if solve(part.relaxed(count, count)) is not None:
            low = middle
        else:
            high = middle
    # The relaxation is a little too hopeful: take the first number for which mini-batches of one request have a plan.
    while low and _first(search, low).plan_with(min(search.options.mini_batches or low, low)) is None:
        low -= max(1, low // 20)
    return low


def _first(search: Search, requests: int) -> Search:
    return Search(search.costs, Workload(search.requests[:requests]), search.forms, search.options)


def _gib(nbytes: float) -> str:
    """Binary units, large enough for the number to say something."""
    for unit, size in (("GiB", GIB), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if nbytes >= size / 10:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} B"
