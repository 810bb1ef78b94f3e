"""From hardware, model and workload to a plan, or to the reason why there is none."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from planner.agreement import disagreement, unproven
from planner.costs import CostModel
from planner.decisions import Decisions, act_share
from planner.errors import HybridserveError
from planner.explain import reasons
from planner.feasibility import refusal, short_memory
from planner.files import validate
from planner.hardware import HardwareProfile
from planner.heuristic import Heuristic
from planner.model import ModelSpec
from planner.plan import MadeFor, Plan, Prediction, StreamRecord, WhatIf, memory_records, record_waves
from planner.policies import Policy
from planner.search import Options
from planner.shadow_prices import what_if
from planner.timeline import Timeline
from planner.waves import FoundWaves, WaveSearch
from planner.workload import Workload, check_fits

SOLVER = "PuLP with HiGHS; branch and bound over the numbers of waves and mini-batches"

COLLECT_AFTER = 50_000
"""New objects after which Python looks for unreachable ones; its own 700 costs planning, which makes very many small
ones, a fifth of its time."""


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """While planning; what was set before is set again after it."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], COLLECT_AFTER) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@collecting_rarely()
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
    costs, options = CostModel(hardware, model), options or Options()
    decide = _by_heuristic if policy.heuristic else _by_solver
    found, why, more = decide(costs, workload, policy, options)
    return _as_plan(costs, workload, policy, found, why, more, time.perf_counter() - started)


Decided = tuple[FoundWaves, list[str], list[WhatIf]]
"""What was found, why it is so, and what more of each resource would bring."""


def solved(costs: CostModel, workload: Workload, policy: Policy, options: Options) -> tuple[WaveSearch, FoundWaves]:
    """The search, and what it found. InfeasibleError where that is nothing."""
    if policy.resident:
        options = replace(options, min_resident_layers=costs.model.layers, max_resident_layers=None)
    search = WaveSearch(costs, workload, policy, options)
    found = search.run()
    if found is None:
        raise refusal(search.whole, policy)
    return search, found


def _by_solver(costs: CostModel, workload: Workload, policy: Policy, options: Options) -> Decided:
    search, found = solved(costs, workload, policy, options)
    short = short_memory(search.whole) if len(found.waves) > 1 else ""
    why = reasons(costs, policy, found.waves, found.timeline, search.options, short)
    why += disagreement(costs, found.waves, found.timeline, found.objective_s)
    why += unproven(found.timeline.total_s, found.bound_s)
    return found, why, what_if(found.parts, found.timeline.total_s, found.timeline.generated_tokens)


def _by_heuristic(costs: CostModel, workload: Workload, policy: Policy, options: Options) -> Decided:
    heuristic = Heuristic(costs, workload, options)
    found = heuristic.run()
    if found is None:
        raise heuristic.refusal()
    return found, heuristic.reasons(found.waves, found.timeline), heuristic.what_if(found.waves, found.timeline)


def _as_plan(
    costs: CostModel, workload: Workload, policy: Policy, found: FoundWaves, why: list[str], more: list[WhatIf],
    solve_s: float,
) -> Plan:  # fmt: skip
    hardware, model, total_s = costs.hardware, costs.model, found.timeline.total_s
    data: dict[str, Any] = {
        "schema_version": 3,
        "made_for": MadeFor(
            hardware=hardware.id, hardware_hash=hardware.content_hash,
            model=model.name, model_hash=model.content_hash,
            requests=len(workload), workload_hash=workload.content_hash,
        ),
        "policy": policy.name,
        "why": why,
        "prediction": predict(found.waves, found.timeline),
        "bound_total_s": min(found.bound_s, total_s),
        "gap": found.gap,
        "objective_total_s": found.objective_s,
        "what_if": more,
        "solve_s": solve_s,
        "solver": SOLVER,
        "memory": memory_records(model, hardware, found.waves),
        "decisions": record_waves(found.waves),
        "workload": workload.to_plain(),
        "model": model,
        "hardware": hardware,
    }  # fmt: skip
    plan = validate(Plan, data, "plan")
    if plan.waves != found.waves:
        raise HybridserveError("the plan does not read back as it was decided")
    return plan


def predict(waves: Sequence[Decisions], timeline: Timeline) -> Prediction:
    """The figures of a simulated timeline that a plan carries."""
    use = timeline.use("decode" if timeline.decode_steps else "prefill")
    return Prediction(
        throughput_tokens_per_s=timeline.throughput_tokens_per_s,
        total_s=timeline.total_s,
        prefill_s=timeline.prefill_s,
        decode_s=timeline.decode_s,
        decode_step_s=timeline.decode_step_s,
        binding=cast(Any, timeline.binding),
        act_share=act_share(waves),
        streams={
            name: StreamRecord(busy_fraction=min(one.busy_fraction, 1.0), bytes_per_s=one.bytes_per_s)
            for name, one in use.items()
        },
    )
