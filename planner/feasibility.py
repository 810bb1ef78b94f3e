"""Why no plan exists: which memory is short, by how much, and the smallest change that helps."""

from __future__ import annotations

from math import ceil

import pulp

from planner.costs import CostModel
from planner.errors import HybridserveError, InfeasibleError
from planner.hardware import HardwareProfile
from planner.ilp import GIB, build
from planner.policies import Policy
from planner.search import Search
from planner.solver import Highs
from planner.split_problem import SplitProblem
from planner.workload import Request, Workload

BARELY = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of a memory to add when looking for the smallest addition that helps."""
ROUNDING = (0.0, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Shares by which an addition exceeds what real numbers miss, until whole blocks and slabs fit, too."""
GPU_DEARNESS = 8.0
"""A byte of GPU memory is harder to come by than one on the host: name the host where either would help."""


def refusal(whole: Search, policy: Policy) -> InfeasibleError:
    """Why the job of `whole` has no plan, in any number of waves or in as many as were asked for."""
    alone, fixed, count = hardest(whole), whole.options.waves, len(whole.requests)
    if fixed is None or alone.run() is None:
        return explain_infeasible(alone, policy)
    limit, device, missing = _missing(whole, whole.options.mini_batches or count)
    if fixed == 1 and missing < 1:
        return explain_rounding(whole, policy, "leave out --waves")
    what = f"{policy.name} of {whole.costs.model.name} has no plan for {count} requests in {fixed} "
    what += "waves" if fixed > 1 else f"wave: {_size(missing)} of {device} memory are missing"
    return InfeasibleError(what, limit=limit, missing_bytes=missing, cure="Leave out --waves, or give more of them")


def hardest(whole: Search) -> Search:
    """The first request that does not fit even alone; that of most positions where all do."""
    alike = sorted(whole.workload.classes().items(), key=lambda item: (-sum(item[0]), item[0]))
    alone = [Workload((whole.requests[min(members)],)) for _, members in alike]
    # One of both a shorter prompt and fewer positions than another fits if that one does.
    longest, found = 0, []
    for job in alone:
        if job.requests[0].prompt_len > longest:
            longest = job.requests[0].prompt_len
            found.append(Search(whole.costs, job, whole.forms, whole.options))
    return next((search for search in found if search.run() is None), found[0])


def short_memory(whole: Search) -> str:
    """The memory that keeps a job from being one wave, as a person says it; "" where none does."""
    _, device, missing = _missing(whole, whole.options.mini_batches or len(whole.requests))
    return f"{device} memory" if missing >= 1 else ""


def _missing(search: Search, mini_batches: int) -> tuple[str, str, float]:
    """(limit, device, bytes) of the memory that is short, if any is."""
    return scarcer(*shortage(search.relaxed(mini_batches, mini_batches)))


def scarcer(gpu: float, host: float) -> tuple[str, str, float]:
    """(limit, device, bytes) of the memory that lacks more."""
    return ("gpu_memory", "GPU", gpu) if gpu > host else ("host_memory", "host", host)


def explain_infeasible(search: Search, policy: Policy) -> InfeasibleError:
    """The error to raise for a search of a single request that found nothing: no number of waves makes it smaller."""
    gpu, host = shortage(search.relaxed(1, 1))
    limit, device, missing = scarcer(gpu, host)
    if missing < 1:
        return explain_rounding(search, policy)
    hardware, model = search.costs.hardware, search.costs.model
    budget = hardware.gpu.budget_bytes if limit == "gpu_memory" else hardware.host.budget_bytes
    request = search.requests[0]
    what = (
        f"{policy.name} of {model.name} for a single request of {request.prompt_len} + {request.gen_len} tokens "
        f"needs at least "
        f"{_size(budget + missing)} of {device} memory, {_size(missing)} more than the {_size(budget)} of {hardware.id}"
    )
    return InfeasibleError(what, limit=limit, missing_bytes=missing, cure=_cure(search, gpu, host))


def explain_rounding(search: Search, policy: Policy, otherwise: str = "shorten the request") -> InfeasibleError:
    """Real numbers would fit, whole blocks and slabs do not: the smallest addition, on one side, that really helps, and
    what helps `otherwise`."""
    hardware = search.costs.hardware
    budgets = {"host": hardware.host.budget_bytes, "gpu": hardware.gpu.budget_bytes}
    what = f"{policy.name} fits {hardware.id} only before rounding to whole blocks and allocations"
    for share in BARELY:
        for device, budget in budgets.items():
            roomier = _with_more(hardware, device, share * budget)
            costs = CostModel(roomier, search.costs.model)
            if Search(costs, search.workload, search.forms, search.options).run() is not None:
                cure = f"Add {_size(share * budget)} of {device} memory ({share:.0%}), or {otherwise}"
                return InfeasibleError(what, limit=f"{device}_memory", missing_bytes=share * budget, cure=cure)
    return InfeasibleError(what, limit="host_memory", cure=f"Add memory on both sides, or {otherwise}")


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
    gpu, host = m.problem.add_variable("gpu_short_gib", 0), m.problem.add_variable("host_short_gib", 0)
    for name, short in (("gpu_memory", gpu), ("host_memory", host)):
        m.problem.get_constraint_by_name(name).addInPlace(short, -1)
    m.problem.setObjective(GPU_DEARNESS * gpu + host)
    m.problem.solve(Highs(timeLimit=10))
    if pulp.LpStatus[m.problem.status] != "Optimal":
        raise HybridserveError("these options contradict each other: no amount of memory would help")
    return float(gpu.varValue or 0) * GIB, float(host.varValue or 0) * GIB


def _cure(search: Search, gpu: float, host: float) -> str:
    """Waves take care of the number of requests: what helps is more memory, or a shorter request. Both are tried: with
    either there is a plan."""
    more = _enough(search, gpu, host)
    added = " and ".join(
        f"{_size(n)} of {name} memory" for name, n in zip(("GPU", "host"), more, strict=True) if n >= 1
    )
    request = search.requests[0]
    fits = _longest_prompt(search, request)
    if fits:
        return (
            f"Add {added}, or keep the prompt at {fits} tokens or below. Fewer requests do not help: one alone is too "
            "long"
        )
    return f"Add {added}: fewer requests alone do not help, the weights do not fit; choose a smaller model or dtype"


def _enough(search: Search, gpu: float, host: float) -> tuple[float, float]:
    """What must be added to both memories: what real numbers miss, and no more beyond that than rounding takes.

    A memory that misses nothing is only added to where nothing else helps.
    """
    hardware = search.costs.hardware
    budgets = hardware.gpu.budget_bytes, hardware.host.budget_bytes
    tried = [(gpu * (1 + share), host * (1 + share)) for share in ROUNDING]
    tried += [(gpu + share * budgets[0], host + share * budgets[1]) for share in BARELY]
    for more in tried:
        roomier = hardware
        for device, nbytes in zip(("gpu", "host"), more, strict=True):
            roomier = _with_more(roomier, device, nbytes)
        costs = CostModel(roomier, search.costs.model)
        if Search(costs, search.workload, search.forms, search.options).run() is not None:
            return more
    return tried[-1]


def _longest_prompt(search: Search, request: Request) -> int:
    """The longest prompt of `request`, as it is otherwise, that has a plan; 0 when none has."""
    low, high = 0, request.prompt_len
    while high - low > 1:
        middle = (low + high) // 2
        job = Workload((Request(request.id, middle, request.gen_len),))
        fits = Search(search.costs, job, search.forms, search.options).run() is not None
        low, high = (middle, high) if fits else (low, middle)
    return low


def _size(nbytes: float, up: bool = False) -> str:
    """Decimal units as in every report, large enough for the number to say something; `up`: no less than it is."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size / 10:
            return f"{ceil(nbytes / size * 100) / 100 if up else nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} B"
