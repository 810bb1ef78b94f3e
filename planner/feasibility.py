"""Why no plan exists: which memory is short, by how much, and the smallest change that helps."""

from __future__ import annotations

import pulp

from planner.costs import CostModel
from planner.errors import HybridserveError, InfeasibleError
from planner.hardware import HardwareProfile
from planner.ilp import GIB, SplitProblem, build, solve
from planner.policies import Policy
from planner.search import Search
from planner.workload import Workload

BARELY = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of a memory to add when looking for the smallest addition that helps."""
THOROUGH = 128
"""Requests up to which a whole search is quick enough to repeat."""
GPU_DEARNESS = 8.0
"""A byte of GPU memory is harder to come by than one on the host: name the host where either would help."""


def explain_infeasible(search: Search, policy: Policy) -> InfeasibleError:
    """The error to raise for a search that found nothing."""
    count = search.options.mini_batches or len(search.requests)
    gpu, host = shortage(search.relaxed(count, count))
    limit, device, missing = ("gpu_memory", "GPU", gpu) if gpu > host else ("host_memory", "host", host)
    if missing < 1:
        return _barely(search, policy)
    hardware, model = search.costs.hardware, search.costs.model
    budget = hardware.gpu.budget_bytes if limit == "gpu_memory" else hardware.host.budget_bytes
    count = len(search.requests)
    what = (
        f"{policy.name} of {model.name} for {count} request{'s' if count > 1 else ''} needs at least "
        f"{_size(budget + missing)} of {device} memory, {_size(missing)} more than the {_size(budget)} of {hardware.id}"
    )
    return InfeasibleError(what, limit=limit, missing_bytes=missing, cure=_cure(search, device, missing))


def _barely(search: Search, policy: Policy) -> InfeasibleError:
    """Real numbers would fit, whole blocks and slabs do not: the smallest addition, on one side, that really helps."""
    hardware = search.costs.hardware
    budgets = {"host": hardware.host.budget_bytes, "gpu": hardware.gpu.budget_bytes}
    what = f"{policy.name} fits {hardware.id} only before rounding to whole blocks and allocations"
    for share in BARELY:
        for device, budget in budgets.items():
            roomier = _with_more(hardware, device, share * budget)
            costs = CostModel(roomier, search.costs.model)
            if Search(costs, search.workload, search.forms, search.options).run() is not None:
                cure = f"Add {_size(share * budget)} of {device} memory ({share:.0%}), or take requests away"
                return InfeasibleError(what, limit=f"{device}_memory", missing_bytes=share * budget, cure=cure)
    return InfeasibleError(what, limit="host_memory", cure="Take requests away, or add memory on both sides")


def _with_more(hardware: HardwareProfile, device: str, nbytes: float) -> HardwareProfile:
    """`hardware` with `nbytes` more of one memory."""
    if device == "host":
        return hardware.with_values(**{"host.total_bytes": hardware.host.total_bytes.value + nbytes})
    memory = hardware.gpu.memory
    return hardware.with_values(**{
        "gpu.memory.nominal_bytes": memory.nominal_bytes.value + nbytes,
        "gpu.memory.usable_bytes": memory.usable_bytes.value + nbytes,
    })  # fmt: skip


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
    more = f"Add {_size(missing)} of {device} memory"
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
    # The relaxation is a little too hopeful: take the first number that really has a plan.
    while low and not _has_plan(_first(search, low)):
        low -= max(1, low // 50)
    return low


def _has_plan(search: Search) -> bool:
    """Every number of mini-batches is tried for small jobs, for large ones that which needs least memory."""
    count = len(search.requests)
    if count <= THOROUGH:
        return search.run() is not None
    return search.plan_with(min(search.options.mini_batches or count, count)) is not None


def _first(search: Search, requests: int) -> Search:
    return Search(search.costs, Workload(search.requests[:requests]), search.forms, search.options)


def _size(nbytes: float) -> str:
    """Decimal units as in every report, large enough for the number to say something."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size / 10:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} B"
