"""Results for people: rich tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner.explain import NOISY
from planner.hardware import HardwareProfile
from planner.link import Link
from planner.memory import resident_layers
from planner.model import ModelSpec
from planner.peers.forecast import Forecast
from planner.plan import MemoryRecord, Plan, Prediction, WhatIf
from planner.results import TIME_KEYS, limited_by, of_profile
from planner.tables import bullets, digits, new_table, pairs, rate, seconds, size, with_unit
from planner.timeline import Timeline

TIMES = {
    "throughput_tokens_per_s": "throughput", "total_s": "total", "prefill_s": "prefill", "decode_s": "decode",
    "decode_step_s": "decode step, mean",
}  # fmt: skip
"""What people call the keys of a result."""


PRICE_FALLS = 0.1
"""A whole step that brings so much less than its first bit promises deserves a word."""


def plan_report(plan: Plan) -> RenderableType:
    """A plan: what it predicts, where the memory goes and why it is so."""
    p, made = plan.prediction, plan.made_for
    link, compute = p.streams["h2d"].busy_fraction, p.streams["compute"].busy_fraction
    title = f"{plan.policy}: {made.model} on {made.hardware}, {made.requests:,} request{'s' * (made.requests > 1)}"
    prediction = pairs(title, (
        ("throughput", rate(p.throughput_tokens_per_s)),
        ("total", f"{seconds(p.total_s)}, at best {seconds(plan.bound_total_s)} (gap {plan.gap:.2%})"),
        ("prefill", seconds(p.prefill_s)),
        ("decode", f"{seconds(p.decode_s)}, {seconds(p.decode_step_s)} a step"),
        ("binding", p.binding),
        ("busy in decode", f"link {link:.0%}, compute {compute:.0%}"),
        ("cached as activations", f"{p.act_share:.1%}"),
        *([("waves", f"{len(plan.waves)}")] if len(plan.waves) > 1 else []),
        ("mini-batches", _count_of([len(wave.mini_batches) for wave in plan.waves])),
        ("layers on the GPU", f"{resident_layers(plan.model, plan.waves[0]):.4g} of {plan.model.layers}"),
        ("solved in", seconds(plan.solve_s)),
    ))  # fmt: skip
    budgets = [memory_report(name, record) for name, record in plan.memory.items()]
    more = [what_if_sentence(one, p.throughput_tokens_per_s, len(plan.waves)) for one in plan.what_if]
    return Group(prediction, *budgets, bullets("Why", plan.why), bullets("What if", more))


def what_if_sentence(one: WhatIf, tokens_per_s: float, waves: int = 1) -> str:
    """What a step more of one resource would bring to a plan in so many waves, in words."""
    if one.how == "not binding":
        if waves > 1 and one.change.endswith("memory"):
            return (
                f"{one.change}: nothing while there are {waves} waves, but it may allow fewer, which can bring much "
                "and has no price: plan for a machine with more to see"
            )
        return f"{one.change}: nothing, it does not bind"
    said = f"{one.change}: +{rate(one.tokens_per_s)} (+{one.tokens_per_s / tokens_per_s:.1%})"
    if one.tokens_per_s < (1 - PRICE_FALLS) * one.at_first_tokens_per_s:
        said += f"; at the price of its first bit it were +{rate(one.at_first_tokens_per_s)}"
    return said


def _count_of(counts: Sequence[int]) -> str:
    """Of each wave: one number, or the range."""
    each = " a wave" if len(counts) > 1 else ""
    return f"{min(counts)}{each}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}{each}"


def memory_report(name: str, record: MemoryRecord) -> Table:
    """One budget, line by line."""
    used = record.planned_bytes / record.capacity_bytes
    title = f"{name} memory: {size(record.planned_bytes)} of {size(record.capacity_bytes)} ({used:.0%})"
    table = new_table(title, "line", "phase", "size", numeric=2)
    for line in record.lines:
        if line.bytes:
            table.add_row(line.name, line.phase, size(line.bytes))
    return table


def policies_report(title: str, found: Sequence[Plan | Forecast]) -> RenderableType:
    """Policies side by side, and what limits each. Other systems' rounds are waves."""
    table = new_table(
        title, "policy", "tokens/s", "total", "prefill",
        "a step", "ACT", "waves", "gap",
    )  # fmt: skip
    best = max(_figures(one).throughput_tokens_per_s for one in found)
    for one in found:
        p = _figures(one)
        table.add_row(
            one.policy, digits(p.throughput_tokens_per_s), seconds(p.total_s), seconds(p.prefill_s),
            seconds(p.decode_step_s), "-" if p.act_share is None else f"{p.act_share:.0%}",
            f"{len(one.waves) if isinstance(one, Plan) else one.rounds}",
            f"{one.gap:.2%}" if isinstance(one, Plan) else "-",
            style="bold" if p.throughput_tokens_per_s == best else None,
        )  # fmt: skip
    words = (f"{one.policy}: {limited_by(one) if isinstance(one, Plan) else one.limited_by}" for one in found)
    return Group(table, bullets("What limits each", words))


def job_title(model: str, hardware: str, requests: int) -> str:
    """What is compared."""
    return f"{model} on {hardware}, {requests:,} requests"


def title_of(plan: Plan) -> str:
    """The job of a plan."""
    return job_title(plan.made_for.model, plan.made_for.hardware, plan.made_for.requests)


def _figures(one: Plan | Forecast) -> Prediction | Forecast:
    return one.prediction if isinstance(one, Plan) else one


def refusals(reasons: Mapping[str, str]) -> list[RenderableType]:
    """Policies without a plan, and why."""
    return [bullets("Not feasible", (f"{name}: {why}" for name, why in reasons.items()))] if reasons else []


def errors_report(rows: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    """Predicted beside measured for every policy: results as `run --json` gives them."""
    table = new_table("Predicted and measured", "policy", "quantity", "predicted", "measured", "error", numeric=2)
    for policy, result in rows:
        shown = policy
        for key in TIME_KEYS:
            found = result["measured"][key]
            if found:
                unit = rate if key == "throughput_tokens_per_s" else seconds
                table.add_row(shown, TIMES[key], unit(result[key]), unit(found), f"{result['error'][key]:+.1%}")
                shown = ""
        table.add_section()
    return table


def streams_report(name: str, predicted: Timeline, measured: Timeline, link: Link) -> Table:
    """Each stream while decoding, or in prefill where nothing is decoded: time busy, bytes, and the rate reached."""
    phase = "decode" if predicted.decode_steps else "prefill"
    table = new_table(
        f"{name}: streams in {phase}, predicted and measured", "stream", "busy", "measured", "error", "moved", "rate",
        "of profile",
    )  # fmt: skip
    left, right = predicted.use(phase), measured.use(phase)
    for stream, one in left.items():
        other = right[stream]
        if not one.busy_s and not other.busy_s:
            continue
        reached = of_profile(link, stream, other)
        table.add_row(
            stream, f"{seconds(one.busy_s)} ({one.busy_fraction:.0%})",
            f"{seconds(other.busy_s)} ({other.busy_fraction:.0%})",
            f"{one.busy_s / other.busy_s - 1:+.1%}" if other.busy_s else "-",
            size(other.nbytes) if other.nbytes else "-",
            f"{size(other.bytes_per_s)}/s" if other.nbytes else "-", "-" if reached is None else f"{reached:.1%}",
        )  # fmt: skip
    return table


def early_report(plan: Plan, measured: Timeline, ended_early: int) -> list[RenderableType]:
    """A line where requests ended before their planned length: the prediction is for all of it."""
    if not ended_early:
        return []
    requests, tokens = len(plan.workload), plan.workload.total_generated_tokens
    return [
        Text(
            f"{ended_early:,} of {requests:,} requests ended by themselves: {measured.generated_tokens:,} of "
            f"{tokens:,} planned tokens were generated. The prediction is for all of them"
        )
    ]


def kinds_report(name: str, predicted: Timeline, measured: Timeline) -> Table:
    """Each kind of operation: predicted and measured time."""
    table = new_table(f"{name}: time by operation", "operation", "predicted", "measured", "error")
    left, right = predicted.by_kind(), measured.by_kind()
    for kind, value in left.items():
        found = right.get(kind, 0.0)
        if value:
            table.add_row(kind, seconds(value), seconds(found), f"{value / found - 1:+.1%}" if found else "-")
    return table


# ---- what there is ---------------------------------------------------------------------------------


SECTIONS = ("gpu.datasheet.", "gpu.memory.", "gpu.achieved.", "link.", "host.")


def hardware_report(hardware: HardwareProfile) -> RenderableType:
    """Every number of a profile with where it comes from."""
    parts: list[RenderableType] = [Text(f"{hardware.id}: {hardware.description}", style="bold")]
    if hardware.scale_model_of:
        parts.append(Text(f"A scale model of {hardware.scale_model_of}: ratios, not speeds, carry over"))
    sections: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path, node in _numbers(hardware.to_plain(), ""):
        section = next(s for s in SECTIONS if path.startswith(s))
        sections.setdefault(section, []).append((path.removeprefix(section), node))
    for section, numbers in sections.items():
        parts.append(Text(f"\n{section.rstrip('.')}", style="bold"))
        width = max(len(key) for key, _ in numbers)
        for key, node in numbers:
            value, detail = _value(key, node)
            parts.append(Text(f"  {key:<{width}}  {value}"))
            said = f"{node['kind']}{_record(node)}{detail}: {node['source']}"
            parts.append(Padding(Text(said, style="dim"), (0, 0, 0, 6)))
    return Group(*parts)


def pace_warning(profile: HardwareProfile, wanted_gb_per_s: float | None) -> str | None:
    """A line for people when the link cannot be as fast as they set it."""
    paced = profile.link.h2d_bytes_per_s.value / 1e9
    if not wanted_gb_per_s or paced >= wanted_gb_per_s * (1 - 1e-3):
        return None
    return (
        f"--link-gbps {wanted_gb_per_s:g}: the link of this profile has {paced:.3g} GB/s. The paced link shares memory "
        "with compute, so it has at most half the speed of a copy"
    )


def noise_warning(repeatability: float) -> str | None:
    """A line for people when two halves of a measurement differ too much for predictions to be repeatable."""
    if repeatability <= NOISY:
        return None
    return (
        f"this machine is too noisy: the first and the second half of this measurement differ by {repeatability:.1%} "
        "in the median, and so may two profiles and what they predict. Measure again when nothing else is running"
    )


def _record(node: dict[str, Any]) -> str:
    """When, how often and how steadily a number was measured, as far as it says."""
    spread = node.get("spread")
    parts = (node.get("date"), f"{node['runs']} runs" if "runs" in node else None,
             f"spread {spread:.1%}" if spread is not None else None)  # fmt: skip
    said = ", ".join(part for part in parts if part)
    return f" {said}" if said else ""


def _value(key: str, node: dict[str, Any]) -> tuple[str, str]:
    """A number, or the range of a table, with the unit that the key names; and the sizes that a table covers."""
    if "value" in node:
        return with_unit(key, node["value"]), ""
    points = [pair for one in node["slices"] for pair in one["points"]]
    sizes, rates = zip(*points, strict=True)
    by = key.partition("_by_")[2].partition(".")[0]
    if len(rates) == 1:
        return with_unit(key, rates[0]), f", one point at {_count(sizes[0])} {by}"
    (low, low_unit), (high, unit) = (with_unit(key, rate).split(" ") for rate in (min(rates), max(rates)))
    detail = f", {len(rates)} points at {_count(min(sizes))} to {_count(max(sizes))} {by}"
    return f"{low}{'' if low_unit == unit else ' ' + low_unit} to {high} {unit}", detail


def _count(number: float) -> str:
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number:g}"


def _numbers(node: dict[str, Any], path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for key, value in node.items():
        if isinstance(value, dict):
            here = f"{path}.{key}".lstrip(".")
            if "kind" in value and "source" in value:
                yield here, value
            else:
                yield from _numbers(value, here)


def model_report(model: ModelSpec) -> RenderableType:
    """A model's shape and what one cached token costs."""
    return pairs(f"{model.name} ({model.family}, {model.dtype})", (
        ("parameters", _billions(model)),
        ("weights", size(model.weight_bytes)),
        ("layers", f"{model.layers} of {size(model.layer_bytes)}"),
        ("hidden", f"{model.hidden}"),
        ("heads", f"{model.heads} of {model.head_dim}, {model.kv_heads} for K and V"),
        ("feed-forward", f"{model.ffn}{', gated' if model.gated else ''}"),
        ("positions", f"{model.max_positions}"),
        ("K and V per token and layer", size(model.kv_bytes_per_token_layer)),
        ("activation per token and layer", size(model.act_bytes_per_token_layer)),
    ))  # fmt: skip


def _billions(model: ModelSpec) -> str:
    unit, scale = ("billion", 1e9) if model.parameters >= 1e8 else ("million", 1e6)
    return f"{model.parameters / scale:.4g} {unit}"


def models_list(models: Sequence[ModelSpec]) -> Table:
    """The bundled models."""
    table = new_table("Models", "name", "family", "parameters", "weights", "layers", "K and V per token", numeric=2)
    for model in models:
        kv = size(model.kv_bytes_per_token_layer * model.layers)
        table.add_row(model.name, model.family, _billions(model), size(model.weight_bytes), f"{model.layers}", kv)
    return table


def hardware_list(profiles: Sequence[HardwareProfile]) -> Table:
    """The shipped profiles."""
    table = new_table("Hardware", "name", "GPU", "memory", "link", "host", numeric=2)
    for one in profiles:
        link = f"{size(one.link.h2d_bytes_per_s.value)}/s"
        table.add_row(one.id, one.gpu.name, size(one.gpu.budget_bytes), link, size(one.host.budget_bytes))
    return table
