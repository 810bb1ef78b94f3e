"""Results for people: rich tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.plan import MemoryRecord, Plan
from planner.results import TIME_KEYS
from planner.timeline import Timeline


def seconds(value: float) -> str:
    """A time a person reads at a glance."""
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def size(nbytes: float) -> str:
    """Decimal units: GB = 10^9 bytes."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes:.0f} B"


def _table(title: str, *columns: str, numeric: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i >= numeric else "left")
    return table


def plan_report(plan: Plan) -> RenderableType:
    """A plan: what it predicts, where the memory goes and why it is so."""
    p, made = plan.prediction, plan.made_for
    head = Text(f"{plan.policy}: {made.model} on {made.hardware}, {made.requests} requests", style="bold")
    table = _table("Prediction", "quantity", "value")
    for name, value in (
        ("throughput", f"{p.throughput_tokens_per_s:.4g} tokens/s"),
        ("total", seconds(p.total_s)),
        ("prefill", seconds(p.prefill_s)),
        ("decode step, mean", seconds(p.decode_step_s)),
        ("bound on the total", f"{seconds(plan.bound_total_s)} (gap {plan.gap:.2%})"),
        ("activations in the cache", f"{p.act_share:.1%}"),
        ("mini-batches", f"{len(plan.decisions.mini_batches)}"),
        ("resident layers", f"{len(plan.decisions.resident_layers)} of {plan.model.layers}"),
        ("link to the GPU", f"{p.streams['h2d'].busy_fraction:.0%} busy"),
        ("compute", f"{p.streams['compute'].busy_fraction:.0%} busy"),
        ("binding", p.binding),
        ("solved in", seconds(plan.solve_s)),
    ):
        table.add_row(name, value)
    why = Text("\n".join(f"- {reason}" for reason in plan.why))
    budgets = [memory_report(name, record) for name, record in plan.memory.items()]
    return Group(head, table, *budgets, Text("Why", style="bold"), why)


def memory_report(name: str, record: MemoryRecord) -> Table:
    """One budget, line by line."""
    used = record.planned_bytes / record.capacity_bytes
    table = _table(f"{name} memory: {size(record.planned_bytes)} of {size(record.capacity_bytes)} ({used:.0%})",
                   "line", "phase", "bytes", numeric=2)  # fmt: skip
    for line in record.lines:
        if line.bytes:
            table.add_row(line.name, line.phase, size(line.bytes))
    return table


def policies_report(plans: Sequence[Plan]) -> Table:
    """Policies side by side."""
    table = _table("Policies", "policy", "tokens/s", "total", "prefill", "decode step", "ACT", "gap", "binding")
    best = max(plan.prediction.throughput_tokens_per_s for plan in plans)
    for plan in plans:
        p = plan.prediction
        table.add_row(
            plan.policy, f"{p.throughput_tokens_per_s:.4g}", seconds(p.total_s), seconds(p.prefill_s),
            seconds(p.decode_step_s), f"{p.act_share:.0%}", f"{plan.gap:.2%}", p.binding,
            style="bold" if p.throughput_tokens_per_s == best else None,
        )  # fmt: skip
    return table


def errors_report(rows: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    """Predicted beside measured for every policy: results as `run --json` gives them."""
    table = _table("Predicted and measured", "policy", "quantity", "predicted", "measured", "error", numeric=2)
    for policy, result in rows:
        for key in TIME_KEYS:
            if not result["measured"][key]:
                continue
            shown = seconds if key.endswith("_s") and not key.endswith("per_s") else _plain
            table.add_row(
                policy, key, shown(result[key]), shown(result["measured"][key]), f"{result['error'][key]:+.1%}"
            )
        table.add_section()
    return table


def _plain(value: float) -> str:
    return f"{value:.4g}"


def streams_report(name: str, predicted: Timeline, measured: Timeline) -> Table:
    """Each stream while decoding: predicted and measured time busy and achieved rate."""
    table = _table(
        f"{name}: streams while decoding", "stream", "busy, predicted", "busy, measured", "error", "rate, predicted",
        "rate, measured",
    )  # fmt: skip
    left, right = predicted.use("decode"), measured.use("decode")
    for stream, one in left.items():
        other = right[stream]
        if not one.busy_s and not other.busy_s:
            continue
        error = f"{one.busy_s / other.busy_s - 1:+.1%}" if other.busy_s else "-"
        table.add_row(
            stream, f"{seconds(one.busy_s)} ({one.busy_fraction:.0%})",
            f"{seconds(other.busy_s)} ({other.busy_fraction:.0%})", error,
            f"{size(one.bytes_per_s)}/s" if one.nbytes else "-",
            f"{size(other.bytes_per_s)}/s" if other.nbytes else "-",
        )  # fmt: skip
    return table


def kinds_report(name: str, predicted: Timeline, measured: Timeline) -> Table:
    """Each kind of operation: predicted and measured time."""
    table = _table(f"{name}: time by operation", "operation", "predicted", "measured", "error")
    left, right = predicted.by_kind(), measured.by_kind()
    for kind, value in left.items():
        found = right.get(kind, 0.0)
        if value or found:
            table.add_row(kind, seconds(value), seconds(found), f"{value / found - 1:+.1%}" if found else "-")
    return table


def hardware_report(hardware: HardwareProfile) -> RenderableType:
    """Every number of a profile with where it comes from."""
    table = _table(f"{hardware.id}: {hardware.description}", "key", "value", "kind", "source", numeric=9)
    for key, node in _numbers(hardware.to_plain(), ""):
        value = f"{node['value']:.5g}" if "value" in node else f"{len(node['points'])} points"
        table.add_row(key, value, node["kind"], node["source"])
    return table


def _numbers(node: dict[str, Any], path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for key, value in node.items():
        if isinstance(value, dict):
            here = f"{path}.{key}".lstrip(".")
            if "kind" in value and "source" in value:
                yield here, value
            else:
                yield from _numbers(value, here)


def model_report(model: ModelSpec) -> Table:
    """A model's shape and what one cached token costs."""
    table = _table(f"{model.name} ({model.family}, {model.dtype})", "quantity", "value")
    for name, value in (
        ("parameters", f"{model.parameters / 1e9:.3f} billion"),
        ("weights", size(model.weight_bytes)),
        ("layers", f"{model.layers} of {size(model.layer_bytes)}"),
        ("hidden", f"{model.hidden}"),
        ("heads", f"{model.heads}, K and V {model.kv_heads}, of {model.head_dim}"),
        ("feed-forward", f"{model.ffn}{' gated' if model.gated else ''}"),
        ("positions", f"{model.max_positions}"),
        ("K and V per token and layer", size(model.kv_bytes_per_token_layer)),
        ("activation per token and layer", size(model.act_bytes_per_token_layer)),
    ):
        table.add_row(name, value)
    return table


def names_report(title: str, names: Sequence[str]) -> Table:
    """A list of names."""
    table = _table(title, "name")
    for name in names:
        table.add_row(name)
    return table
