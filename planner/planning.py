"""From hardware, model and workload to a plan, or to the reason why there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
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
    found = search.run()
    if found is None:
        raise explain_infeasible(search, policy)
    best, timeline = found, simulate(costs, found.decisions)
    for other in _others(search, policy):
        if 1 - found.bound_s / timeline.total_s <= DOMINANCE_GAP:
            break
        tried = other.run()
        if tried is not None and (simulated := simulate(costs, tried.decisions)).total_s < timeline.total_s:
            best, timeline = replace(tried, bound_s=found.bound_s), simulated
    more = what_if([(search, best.decisions)], timeline.total_s, timeline.generated_tokens)
    return _as_plan(search, policy, best, timeline, more, time.perf_counter() - started)


def _others(search: Search, policy: Policy) -> Iterator[Search]:
    """Other ways to plan the same job, for where the first is not proven to be near the best.

    Mini-batches of requests that end together; and one kind of content alone, which may beat a mixed plan where
    rounding that costs something: a plan is never slower than that.
    """
    options = search.options
    if len({r.gen_len for r in search.requests}) > 1:
        yield Search(search.costs, search.workload, policy.forms, replace(options, end_together=True))
    contents = {form.content for form in policy.forms}
    for content in sorted(contents) if len(contents) > 1 and options.act_share is None else ():
        forms = tuple(form for form in policy.forms if form.content == content)
        yield Search(search.costs, search.workload, forms, options)


def _as_plan(
    search: Search, policy: Policy, found: Found, timeline: Timeline, more: list[WhatIf], solve_s: float
) -> Plan:
    costs, workload, decisions = search.costs, search.workload, found.decisions
    hardware, model = costs.hardware, costs.model
    why = reasons(costs, policy, decisions, timeline, search.options)
    why += disagreement(costs, decisions, timeline, found.objective_s, len(search.forms))
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
