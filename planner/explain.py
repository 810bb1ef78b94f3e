"""Why the plan is what it is, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.costs import CostModel, extrapolations
from planner.decisions import Decisions
from planner.forms import FORMS
from planner.hardware import HardwareProfile
from planner.memory import gpu_lines, host_lines, pinned_total, planned_bytes, pool_bytes, resident_layers
from planner.placement import FORM_INDEX
from planner.policies import Policy
from planner.search import Options
from planner.tables import size
from planner.timeline import Timeline

BALANCED, ALL = 0.97, 0.99
"""Busy fractions from which both sides count as full, and the share that counts as everything."""
NOISY = 0.03
"""Halves of a measurement that differ by more deserve a warning."""
_HOST = [i for form, i in ((f, FORM_INDEX[f.name]) for f in FORMS) if not form.on_gpu]


def reasons(
    costs: CostModel, policy: Policy, waves: Sequence[Decisions], timeline: Timeline, options: Options, short: str
) -> list[str]:
    """One sentence each: waves, why not more requests at a time, residency, what binds, activations, mini-batches, and
    what is uncertain.

    `short`: the memory that keeps the job from being a single wave, "" where none does.
    """
    # Waves share layers and slots: all their mini-batches side by side answer every question but how many there are.
    together = replace(waves[0], mini_batches=tuple(batch for wave in waves for batch in wave.mini_batches))
    found = _waves(waves, short) if len(waves) > 1 else []
    found.append(_why_not_more(costs, waves, short))
    found += [_residency(costs, together), binding_in_words(*busy_fractions(timeline))]
    found += _share(costs, policy, together, timeline, options.act_share is not None)
    found.append(_mini_batches(waves, options.mini_batches is not None))
    found += _noise(costs.hardware)
    if costs.hardware.scale_model_of:
        found.append(f"A scale model of {costs.hardware.scale_model_of}: ratios, not speeds, carry over")
    shapes = [mini_batch.shapes for mini_batch in together.mini_batches]
    rows = [int(s.rows.max()) for s in shapes if len(s.rows)]
    contexts = [round(float((s.cached_tokens / s.rows).max())) for s in shapes if len(s.rows)]
    return found + extrapolations(costs, rows, contexts)


def _waves(waves: Sequence[Decisions], short: str) -> list[str]:
    sizes = _range([wave.requests for wave in waves])
    said = f"{len(waves)} waves of {sizes} requests, one after the other: "
    if short:
        return [f"{said}{short} does not hold all of them at once"]
    return [f"{said}a single wave would fit, but a smaller one leaves the GPU more room for each, and takes less time"]


def _why_not_more(costs: CostModel, waves: Sequence[Decisions], short: str) -> str:
    """Why no more requests run together: what one more would take, and what memory has left for it."""
    model, hardware = costs.model, costs.hardware
    wave = max(waves, key=lambda one: one.requests)
    cached = sum(pool_bytes(model, wave, form) for form in FORMS)
    each = cached / wave.requests
    host_left = hardware.host.budget_bytes - pinned_total(host_lines(model, wave), hardware.host.pin_rounding)
    gpu_left = max(hardware.gpu.budget_bytes - planned_bytes(gpu_lines(model, wave)), 0)
    more = int(max(host_left, 0) / each) + int(gpu_left / each)
    takes = f"the cache of one more takes {size(each)}"
    left = f"{size(max(host_left, 0))} of host memory and {size(gpu_left)} of GPU memory are left"
    if short and more:
        return f"Not more requests at a time: {takes}, and {left} beside the largest of waves about equally large"
    if short:
        return f"Not more requests at a time: {takes}, and only {left}"
    if len(waves) > 1:
        return f"Not more requests at a time: {takes}, which would leave less of the GPU for each"
    if not more:
        return f"All {wave.requests} requests run at once, and no more would fit: {takes}, and {left}"
    return f"All {wave.requests} requests run at once; about {more:,} more like them would fit: {takes}, and {left}"


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _noise(hardware: HardwareProfile) -> list[str]:
    """What the machine's profile says of its own measurement, where that is not much in favour."""
    said = hardware.machine.get("repeatability", "").removesuffix("%")
    if not said.replace(".", "", 1).isdigit() or float(said) / 100 <= NOISY:
        return []
    return [f"The profile was measured on a noisy machine: its two halves differ by {said}%, and so may predictions"]


def _residency(costs: CostModel, decisions: Decisions) -> str:
    layers, resident = costs.model.layers, resident_layers(costs.model, decisions)
    on_host = sum(int(b.shapes.blocks[:, _HOST].sum()) for b in decisions.mini_batches)
    if resident == layers and not on_host:
        return "Weights and cache fit on the GPU: planned resident, no offload needed"
    if resident == layers:
        return f"All {layers} layers stay on the GPU; the cache does not fit beside them and spills to the host"
    if resident:
        share = f"{max(resident / layers, 0.01):.0%} of the layers' weights"
        return (
            f"About {share} stay on the GPU, the same parts of every layer but for one more of some; the rest streams"
        )
    return f"All {layers} layers stream over the link: GPU memory is worth more as cache than as weights"


def busy_fractions(timeline: Timeline) -> tuple[float, float]:
    """Of link and compute while decoding, or in prefill where nothing is decoded."""
    use = timeline.use("decode" if timeline.decode_steps else "prefill")
    return use["h2d"].busy_fraction, use["compute"].busy_fraction


def balanced(link: float, compute: float) -> bool:
    """Whether two streams, busy for these shares of a phase, finish together."""
    return min(link, compute) > BALANCED or abs(link - compute) < 1 - BALANCED


def binding_in_words(link: float, compute: float) -> str:
    """Which stream limits a job in which both are busy for these shares of decoding."""
    if balanced(link, compute):
        return f"Link and compute are balanced: the link is busy {link:.0%} of decoding, the GPU {compute:.0%}"
    if link > compute:
        return f"The link binds: busy {link:.0%} of decoding, the GPU {compute:.0%}"
    return f"Compute binds: the GPU is busy {compute:.0%} of decoding, the link {link:.0%}"


def _mini_batches(waves: Sequence[Decisions], forced: bool) -> str:
    batches = [len(mini_batch.requests) for wave in waves for mini_batch in wave.mini_batches]
    requests = "request" if max(batches) == 1 else "requests"
    counts = [len(wave.mini_batches) for wave in waves]
    each = " in each wave" if len(waves) > 1 else ""
    if max(counts) == 1:
        why = "as asked for" if forced else "its slots fit, so cutting it would only add operations"
        return f"One mini-batch of {_range(batches)} {requests}{each}: {why}"
    why = "as asked for" if forced else "fewer would need larger slots on the GPU, more would only add operations"
    return f"{_range(counts)} mini-batches of {_range(batches)} {requests}{each}: {why}"


def _share_cause(decisions: Decisions, timeline: Timeline, share: float, forced: bool) -> str:
    """What sets the share of activations, as far as the timeline shows it."""
    link, compute = busy_fractions(timeline)
    if forced:
        return "the share was asked for"
    if not any(int(b.shapes.blocks[:, _HOST].sum()) for b in decisions.mini_batches):
        return "the whole cache is on the GPU, where nothing of it crosses the link"
    if min(link, compute) > BALANCED:
        return "at this share link and GPU finish together"
    if link > compute:
        return "even so the link binds" if share > ALL else "the link binds, and memory leaves no room for more"
    return "rebuilding binds" if share > ALL else "more would make the GPU the slower one, or not fit"


def _share(costs: CostModel, policy: Policy, decisions: Decisions, timeline: Timeline, forced: bool) -> list[str]:
    model = costs.model
    share = decisions.act_share
    if not any(form.rebuilt for form in policy.forms):
        return []
    act, kv = model.act_bytes_per_token_layer, model.kv_bytes_per_token_layer
    if act >= kv:
        return [
            f"{share:.0%} ACT: with {model.kv_heads} KV heads for {model.heads} heads (grouped-query attention) an "
            f"activation takes {act} bytes per token and layer, its K and V only {kv}: caching activations would "
            "move more, not less"
        ]
    return [
        f"{share:.0%} ACT: an activation moves {act} bytes where K and V move {kv}, and costs "
        f"{4 * model.hidden * model.d_kv / 1e6:.3g} MFLOP to rebuild per token and layer; "
        + _share_cause(decisions, timeline, share, forced)
    ]
