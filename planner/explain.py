"""Why the plan is what it is, in words."""

from __future__ import annotations

from planner.costs import CostModel, extrapolations
from planner.decisions import Decisions
from planner.forms import FORMS
from planner.hardware import HardwareProfile
from planner.placement import FORM_INDEX
from planner.policies import Policy
from planner.search import Options
from planner.timeline import Timeline

BALANCED, ALL = 0.97, 0.99
"""Busy fractions from which both sides count as full, and the share that counts as everything."""
NOISY = 0.03
"""Halves of a measurement that differ by more deserve a warning."""
_HOST = [i for form, i in ((f, FORM_INDEX[f.name]) for f in FORMS) if not form.on_gpu]


def reasons(costs: CostModel, policy: Policy, decisions: Decisions, timeline: Timeline, options: Options) -> list[str]:
    """One sentence each: residency, what binds, the share of activations, the mini-batches, and what is uncertain."""
    found = [_residency(costs, decisions), _binding(timeline)]
    found += _share(costs, policy, decisions, timeline, options.act_share is not None)
    found.append(_mini_batches(decisions, options.mini_batches is not None))
    found += _noise(costs.hardware)
    if costs.hardware.scale_model_of:
        found.append(f"A scale model of {costs.hardware.scale_model_of}: ratios, not speeds, carry over")
    shapes = [mini_batch.shapes for mini_batch in decisions.mini_batches]
    rows = [int(s.rows.max()) for s in shapes if len(s.rows)]
    contexts = [round(float((s.cached_tokens / s.rows).max())) for s in shapes if len(s.rows)]
    return found + extrapolations(costs, rows, contexts)


def _noise(hardware: HardwareProfile) -> list[str]:
    """What the machine's profile says of its own measurement, where that is not much in favour."""
    said = hardware.machine.get("repeatability", "").removesuffix("%")
    if not said.replace(".", "", 1).isdigit() or float(said) / 100 <= NOISY:
        return []
    return [f"The profile was measured on a noisy machine: its two halves differ by {said}%, and so may predictions"]


def _residency(costs: CostModel, decisions: Decisions) -> str:
    layers, resident = costs.model.layers, len(decisions.resident_layers)
    on_host = sum(int(b.shapes.blocks[:, _HOST].sum()) for b in decisions.mini_batches)
    if resident == layers and not on_host:
        return "Weights and cache fit on the GPU: planned resident, no offload needed"
    if resident == layers:
        return f"All {layers} layers stay on the GPU; the cache does not fit beside them and spills to the host"
    if resident:
        return f"{resident} of {layers} layers stay on the GPU, the others stream over the link every step"
    return f"All {layers} layers stream over the link: GPU memory is worth more as cache than as weights"


def balanced(link: float, compute: float) -> bool:
    """Whether two streams, busy for these shares of a phase, finish together."""
    return min(link, compute) > BALANCED or abs(link - compute) < 1 - BALANCED


def _binding(timeline: Timeline) -> str:
    use = timeline.use("decode" if timeline.decode_steps else "prefill")
    link, compute = use["h2d"].busy_fraction, use["compute"].busy_fraction
    if balanced(link, compute):
        return f"Link and compute are balanced: the link is busy {link:.0%} of decoding, the GPU {compute:.0%}"
    if link > compute:
        return f"The link binds: busy {link:.0%} of decoding, the GPU {compute:.0%}"
    return f"Compute binds: the GPU is busy {compute:.0%} of decoding, the link {link:.0%}"


def _mini_batches(decisions: Decisions, forced: bool) -> str:
    batches = [len(mini_batch.requests) for mini_batch in decisions.mini_batches]
    sizes = f"{min(batches)}" if min(batches) == max(batches) else f"{min(batches)} to {max(batches)}"
    requests = "request" if max(batches) == 1 else "requests"
    if len(batches) == 1:
        why = "as asked for" if forced else "its slots fit, so cutting it would only add operations"
        return f"One mini-batch of {sizes} {requests}: {why}"
    why = "as asked for" if forced else "fewer would need larger slots on the GPU, more would only add operations"
    return f"{len(batches)} mini-batches of {sizes} {requests}: {why}"


def _share_cause(decisions: Decisions, timeline: Timeline, share: float, forced: bool) -> str:
    """What sets the share of activations, as far as the timeline shows it."""
    use = timeline.use("decode" if timeline.decode_steps else "prefill")
    link, compute = use["h2d"].busy_fraction, use["compute"].busy_fraction
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
