"""From hardware, model and workload to a plan, or to the reason why there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any, cast

from planner.agreement import disagreement
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.errors import HybridserveError
from planner.explain import reasons
from planner.feasibility import explain_infeasible
from planner.files import validate
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.plan import MadeFor, Plan, Prediction, StreamRecord, WhatIf, memory_records, record_decisions
from planner.policies import Policy
from planner.search import Found, Options, Search
from planner.shadow_prices import what_if
from planner.simulator import simulate
from planner.timeline import Timeline
from planner.workload import Workload, check_fits

DOMINANCE_GAP = 0.003
"""Plans proven this close to the best are not worth a second look."""
WORTH_SIMULATING = 0.01
"""What promises no more than this beyond the best simulation so far may yet simulate faster."""
SOLVER = "PuLP with HiGHS; branch and bound over the number of mini-batches"


def make_plan(
    hardware: HardwareProfile,
    model: ModelSpec,
    workload: Workload,
    policy: Policy,
    options: Options | None = None,
) -> Plan:
    """The best plan under the cost model, with its bound.

    InfeasibleError names the limit, the amount missing and the smallest change that helps; InputError when the
    workload does not fit the model at all.
    """
    check_fits(workload, model)
    started = time.perf_counter()
    costs = CostModel(hardware, model)
    search = Search(costs, workload, policy.forms, options or Options())
    best = _best_of(search)
    if best is None:
        raise explain_infeasible(search, policy)
    found, timeline = _no_slower_than_one_content(search, policy, *best)
    more = what_if([(search, found.decisions)], timeline.total_s, timeline.generated_tokens)
    return _as_plan(search, policy, found, timeline, more, time.perf_counter() - started)


def _best_of(search: Search, below_s: float = inf) -> tuple[Found, Timeline] | None:
    """What simulates fastest of the search's choice and, where that is not proven to be near the best, of others.

    Those are other numbers of mini-batches, and mini-batches of requests that end together. None where there is no
    plan, or none that takes less than `below_s`.
    """
    found = search.run(below_s)
    if found is None:
        return None
    best, timeline = found, simulate(search.costs, found.decisions)
    for other in _others(search, len(found.decisions.mini_batches)):
        if other.objective_s < timeline.total_s * (1 + WORTH_SIMULATING):
            simulated = simulate(search.costs, other.decisions)
            if simulated.total_s < timeline.total_s:
                best, timeline = replace(other, bound_s=found.bound_s), simulated
        if 1 - found.bound_s / timeline.total_s <= DOMINANCE_GAP:
            break
    return best, timeline


def _others(search: Search, count: int) -> Iterator[Found]:
    if len(search.requests) > 1:
        yield from search.near(count)
    if len({r.gen_len for r in search.requests}) > 1:
        options = replace(search.options, end_together=True)
        yield from Search(search.costs, search.workload, search.forms, options).near(count)


def _no_slower_than_one_content(
    search: Search, policy: Policy, found: Found, timeline: Timeline
) -> tuple[Found, Timeline]:
    """One kind of content alone may beat a mixed plan where rounding that costs something."""
    contents = {form.content for form in policy.forms}
    for content in sorted(contents) if len(contents) > 1 and search.options.act_share is None else ():
        if 1 - found.bound_s / timeline.total_s <= DOMINANCE_GAP:
            break
        forms = tuple(form for form in policy.forms if form.content == content)
        alone = _best_of(Search(search.costs, search.workload, forms, search.options), timeline.total_s)
        if alone and alone[1].total_s < timeline.total_s:
            found, timeline = replace(alone[0], bound_s=found.bound_s), alone[1]
    return found, timeline


def _as_plan(
    search: Search, policy: Policy, found: Found, timeline: Timeline, more: list[WhatIf], solve_s: float
) -> Plan:
    costs, workload, decisions = search.costs, search.workload, found.decisions
    hardware, model = costs.hardware, costs.model
    why = reasons(costs, policy, decisions, timeline, search.options)
    why += disagreement(costs, decisions, timeline, found.objective_s)
    data: dict[str, Any] = {
        "schema_version": 1,
        "made_for": MadeFor(
            hardware=hardware.id, hardware_hash=hardware.content_hash,
            model=model.name, model_hash=model.content_hash,
            requests=len(workload), workload_hash=workload.content_hash,
        ),
        "policy": policy.name,
        "why": why,
        "prediction": predict(decisions, timeline),
        "bound_total_s": found.bound_s,
        "gap": 1 - found.bound_s / timeline.total_s,
        "objective_total_s": found.objective_s,
        "what_if": more,
        "solve_s": solve_s,
        "solver": SOLVER,
        "memory": memory_records(model, hardware, decisions),
        "decisions": record_decisions(decisions),
        "workload": workload.to_plain(),
        "model": model,
        "hardware": hardware,
    }  # fmt: skip
    plan = validate(Plan, data, "plan")
    if plan.decisions != decisions:
        raise HybridserveError("the plan does not read back as it was decided")
    return plan


def predict(decisions: Decisions, timeline: Timeline) -> Prediction:
    """The figures of a simulated timeline that a plan carries."""
    use = timeline.use("decode" if timeline.decode_steps else "prefill")
    return Prediction(
        throughput_tokens_per_s=timeline.throughput_tokens_per_s,
        total_s=timeline.total_s,
        prefill_s=timeline.prefill_s,
        decode_s=timeline.decode_s,
        decode_step_s=timeline.decode_step_s,
        binding=cast(Any, timeline.binding),
        act_share=decisions.act_share,
        streams={
            name: StreamRecord(busy_fraction=min(one.busy_fraction, 1.0), bytes_per_s=one.bytes_per_s)
            for name, one in use.items()
        },
    )
