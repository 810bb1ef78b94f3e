"""Where a plan's time goes: as plain data for scripts and as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from planner.attribution import Attribution, Phase
from planner.plan import Plan
from planner.tables import bullets, new_table, pairs, scaled, seconds, size
from planner.verdict import term_seconds, verdict

_TERMS = {
    "arithmetic_s": "GEMM bound by arithmetic", "memory_s": "GEMM bound by memory traffic", "attention_s": "attention",
    "elementwise_s": "element-wise", "overhead_s": "overhead", "contention_s": "lost to other streams",
}  # fmt: skip


def explain_result(plan: Plan, found: Attribution) -> dict[str, Any]:
    """What `explain --json` prints."""
    made = plan.made_for.model_dump()
    return {"policy": plan.policy, "made_for": made, **found.to_plain(), "verdict": verdict(found)}


def explain_report(plan: Plan, found: Attribution) -> RenderableType:
    """Streams, operations and terms of each phase, and what binds."""
    made = plan.made_for
    title = f"{plan.policy}: {made.model} on {made.hardware}, {made.requests:,} request{'s' * (made.requests > 1)}"
    phases = [part for name, phase in found.phases.items() for part in _phase(name, phase)]
    rows = [("total", seconds(found.total_s))]
    if found.late_stores_s:
        rows.append(("stores end later by", seconds(found.late_stores_s)))
    return Group(pairs(title, rows), *phases, bullets("What binds", verdict(found)))


def _phase(name: str, phase: Phase) -> list[RenderableType]:
    steps = f", {phase.steps} step{'s' * (phase.steps > 1)}" if name == "decode" else ""
    rows = [("waiting for the first layer", seconds(phase.fill_s)), ("after the last load", seconds(phase.drain_s))]
    if phase.idle_s:
        rows.append(("nothing runs", seconds(phase.idle_s)))
    if phase.contention_exposed_s > 1e-6:
        rows.append(("exposed contention", seconds(phase.contention_exposed_s)))
    found: list[RenderableType] = [_streams(f"{name}: {seconds(phase.phase_s)}{steps}", phase), _kinds(name, phase)]
    if phase.streams["compute"].busy_s:
        found += [_terms(name, phase), _gemms(name, phase)]
    return [*found, pairs(f"{name}: fill and drain", rows)]


def _streams(title: str, phase: Phase) -> Table:
    """`reached`: the achieved rate over the profile's, which for compute is that of the best matrix product."""
    table = new_table(title, "stream", "busy", "", "exposed", "", "moved", "achieved", "reached")
    table.collapse_padding = True
    for name, one in phase.streams.items():
        if not one.busy_s:
            continue
        computes = name == "compute"
        unit = "FLOP/s" if computes else "B/s"
        rate, best = (
            (one.flop_per_s, one.profile_flop_per_s) if computes else (one.bytes_per_s, one.profile_bytes_per_s)
        )
        table.add_row(
            name, seconds(one.busy_s), f"{one.busy_fraction:.0%}", *_part(one.exposed_s, one.exposed_fraction),
            scaled(one.flop, "FLOP") if computes else size(one.bytes), scaled(rate, unit), f"{rate / best:.0%}",
        )  # fmt: skip
    return table


def _kinds(name: str, phase: Phase) -> Table:
    """`share` is of the stream's busy time, `slowed` what other streams cost."""
    table = new_table(f"{name}: operations", "operation", "count", "time", "each", "share", "exposed", "", "slowed")
    table.collapse_padding = True
    for kind, use in phase.kinds.items():
        table.add_row(
            kind, f"{use.count:,}", seconds(use.busy_s), seconds(use.each_s), f"{use.stream_fraction:.0%}",
            *_part(use.exposed_s, use.exposed_fraction), seconds(use.contention_s) if use.contention_s > 1e-6 else "-",
        )  # fmt: skip
    return table


def _terms(name: str, phase: Phase) -> Table:
    table = new_table(f"{name}: what compute is made of", "term", "time", "of compute")
    busy_s = phase.streams["compute"].busy_s
    for term, value in term_seconds(phase).items():
        if value > 1e-6 * busy_s:
            table.add_row(_TERMS[term], seconds(value), f"{value / busy_s:.1%}")
    return table


def _gemms(name: str, phase: Phase) -> Table:
    table = new_table(f"{name}: matrix products", "in", "product", "time", "bound by", numeric=2)
    for kind, use in phase.kinds.items():
        for product, bounds in (use.gemms or {}).items():
            total_s = sum(bounds.values())
            arithmetic = bounds["arithmetic_s"] / total_s
            bound = {0.0: "memory traffic", 1.0: "arithmetic"}.get(arithmetic, f"arithmetic {arithmetic:.0%}, memory")
            table.add_row(kind, product, seconds(total_s), bound)
    return table


def _part(value: float, fraction: float) -> tuple[str, str]:
    return (seconds(value), f"{fraction:.0%}") if value else ("-", "")
