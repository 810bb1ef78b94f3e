"""The split problem: for fixed mini-batches, which form every block takes and which layers stay on the GPU.

One function per constraint family, each with its algebra. Indices: b bins of identical mini-batches, f cache forms,
e epochs. Counts are blocks of a whole bin (all its mini-batches); times are seconds per decode step.

Two uses of the same problem:
- solved for the mini-batches of a plan, it yields that plan's counts;
- solved for one bin of *average* mini-batches, with the cheapest compute that any composition allows, it is a
  relaxation of every composition with that many mini-batches (average any solution over its mini-batches: the
  constraints are convex), so its optimum is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pulp

from planner.epochs import Demand, Epoch
from planner.errors import HybridserveError
from planner.forms import BLOCK_TOKENS, CacheForm
from planner.hardware import HardwareProfile
from planner.model import ModelSpec

Floats = npt.NDArray[np.float64]
GIB = float(2**30)
TIE_BREAK = 1e-4
"""Weight of link seconds in the objective: too small to slow a plan, enough to leave the link alone for nothing."""


@dataclass(frozen=True)
class Bin:
    """Identical mini-batches, taken together."""

    count: int
    demand: Demand
    compute_s: Floats
    """[epochs] seconds of compute per step beside rebuilding, all layers and mini-batches of the bin."""
    rebuild_s_per_block: float
    """All layers."""
    link_s_per_block: float
    """Latency of cache transfers spread over the blocks that they carry, all layers."""


@dataclass(frozen=True)
class SplitProblem:
    """Data of one split problem. Bytes of memory, seconds of time."""

    model: ModelSpec
    hardware: HardwareProfile
    forms: tuple[CacheForm, ...]
    epochs: Sequence[Epoch]
    bins: tuple[Bin, ...]
    weight_slots: int
    cache_slots: int
    fixed_decode_bytes: float
    """Hidden state, workspace and store slots while decoding."""
    prefill_bytes: float
    """Hidden state, workspace and store slots in prefill."""
    prefill_compute_s: float
    prefill_sweeps: int
    """Loads of every streamed layer in prefill, at least."""
    pieces_per_layer: int
    """Transfers that carry one streamed layer's weights, at least."""
    act_share: float | None = None
    """Forces this share of the blocks of every mini-batch to be ACT."""
    max_resident_layers: int | None = None


@dataclass(frozen=True)
class Split:
    """A solution: blocks by (bin, form, epoch), in real numbers, and integers where they were asked for."""

    blocks: dict[tuple[int, str, int], float]
    final: dict[tuple[int, str], float]
    resident_layers: int
    objective_s: float
    bound_s: float
    """What the solver proved for this very problem."""


class _Model:
    """The PuLP problem and its variables."""

    def __init__(self, data: SplitProblem, relax: bool) -> None:
        self.data = data
        self.problem = pulp.LpProblem("split", pulp.LpMinimize)
        bins, epochs = range(len(data.bins)), range(len(data.epochs))
        forms = [form.name for form in data.forms]
        layers, most = data.model.layers, data.max_resident_layers
        category = pulp.LpContinuous if relax else pulp.LpInteger
        var = pulp.LpVariable
        self.n = {(b, f, e): var(f"n_{b}_{i}_{e}", 0) for b in bins for i, f in enumerate(forms) for e in epochs}
        self.final = {(b, f): var(f"final_{b}_{i}", 0) for b in bins for i, f in enumerate(forms)}
        self.t = {(b, e): var(f"t_{b}_{e}", 0) for b in bins for e in epochs}
        self.weights_s = {b: var(f"weights_s_{b}", 0) for b in bins}
        self.resident = var("resident_layers", 0, layers if most is None else most, category)
        self.streams = var("any_streamed", 0, 1, category)
        self.kv_slot, self.act_slot = var("kv_slot_gib", 0), var("act_slot_gib", 0)
        self.rebuilt, self.overlay = var("rebuilt_gib", 0), var("overlay_gib", 0)
        self.prefill_s = var("prefill_s", 0)
        self.job_s: Any = 0


def cover_every_block(m: _Model) -> None:
    """sum_f n[b,f,e] = blocks[b,e];  sum_f final[b,f] = final_blocks[b];  final[b,f] >= n[b,f,e]."""
    for b, part in enumerate(m.data.bins):
        for e in range(len(m.data.epochs)):
            m.problem += _sum(m.n[b, f.name, e] for f in m.data.forms) == part.demand.blocks[e], f"cover_{b}_{e}"
        m.problem += _sum(m.final[b, f.name] for f in m.data.forms) == part.demand.final_blocks, f"cover_final_{b}"
        for i, f in enumerate(m.data.forms):
            for e in range(len(m.data.epochs)):
                m.problem += m.final[b, f.name] >= m.n[b, f.name, e], f"final_{b}_{i}_{e}"


def append_only(m: _Model) -> None:
    """n[b,f,e+1] >= n[b,f,e] while no request of b has ended: a block never changes its form."""
    for b, part in enumerate(m.data.bins):
        rows = part.demand.rows
        for e in range(len(m.data.epochs) - 1):
            if rows[e + 1] >= rows[e]:
                for i, f in enumerate(m.data.forms):
                    m.problem += m.n[b, f.name, e + 1] >= m.n[b, f.name, e], f"append_{b}_{i}_{e}"


def forced_act_share(m: _Model) -> None:
    """sum_{f in ACT} n[b,f,e] = share * blocks[b,e]."""
    if m.data.act_share is None:
        return
    act = [f for f in m.data.forms if f.rebuilt]
    for b, part in enumerate(m.data.bins):
        for e in range(len(m.data.epochs)):
            wanted = m.data.act_share * float(part.demand.blocks[e])
            m.problem += _sum(m.n[b, f.name, e] for f in act) == wanted, f"act_share_{b}_{e}"


def slots_hold_a_mini_batch(m: _Model) -> None:
    """slot >= n[b,f,e] / count[b] * bytes, for staged KV, staged ACT and rebuilt K and V."""
    kv_bytes = BLOCK_TOKENS * m.data.model.kv_bytes_per_token_layer / GIB
    for b, part in enumerate(m.data.bins):
        for e in range(len(m.data.epochs)):
            for f in m.data.forms:
                if not f.on_gpu:
                    slot = m.act_slot if f.rebuilt else m.kv_slot
                    block = BLOCK_TOKENS * f.token_bytes(m.data.model) / GIB
                    m.problem += slot >= m.n[b, f.name, e] * (block / part.count)
            rebuilt = _sum(m.n[b, f.name, e] for f in m.data.forms if f.rebuilt)
            m.problem += m.rebuilt >= rebuilt * (kv_bytes / part.count)


def gpu_memory(m: _Model) -> None:
    """outer + (resident + slots) W + overlay + sum final[b,f@gpu] bytes <= capacity; overlay holds either phase."""
    d, w = m.data, m.data.model.layer_bytes / GIB
    m.problem += m.overlay >= d.cache_slots * (m.kv_slot + m.act_slot) + m.rebuilt + d.fixed_decode_bytes / GIB
    m.problem += m.overlay >= d.prefill_bytes / GIB
    m.problem += d.model.layers - m.resident <= d.model.layers * m.streams, "slots_if_streamed"
    held = _sum(
        m.final[b, f.name] * (f.block_bytes(d.model) / GIB)
        for b in range(len(d.bins)) for f in d.forms if f.on_gpu
    )  # fmt: skip
    capacity = (d.hardware.gpu.budget_bytes - d.model.outer_bytes) / GIB
    m.problem += m.resident * w + m.streams * (d.weight_slots * w) + m.overlay + held <= capacity, "gpu_memory"


def host_memory(m: _Model) -> None:
    """(layers - resident) W + sum final[b,f@host] bytes <= host budget."""
    d = m.data
    held = _sum(
        m.final[b, f.name] * (f.block_bytes(d.model) / GIB)
        for b in range(len(d.bins)) for f in d.forms if not f.on_gpu
    )  # fmt: skip
    streamed = (d.model.layers - m.resident) * (d.model.layer_bytes / GIB)
    m.problem += streamed + held <= d.hardware.host.budget_bytes / GIB, "host_memory"


def step_time(m: _Model) -> None:
    """t[b,e] >= cache transfers + share of weights, >= compute + rebuilding, for every bin and epoch.

    sum_b weights_s[b] = (layers - resident) W / h2d: the pieces of a layer may fill any bin's gaps.
    """
    d = m.data
    rate = d.hardware.link.h2d_bytes_per_s.value
    per_layer = d.model.layer_bytes / rate + d.pieces_per_layer * d.hardware.link.latency_s.value
    m.problem += _sum(m.weights_s.values()) == (d.model.layers - m.resident) * per_layer, "weights_time"
    for b, part in enumerate(d.bins):
        for e in range(len(d.epochs)):
            moved = _sum(m.n[b, f.name, e] * _link_s(d, part, f) for f in d.forms if not f.on_gpu)
            m.problem += m.t[b, e] >= moved + m.weights_s[b], f"link_{b}_{e}"
            rebuilt = _sum(m.n[b, f.name, e] * part.rebuild_s_per_block for f in d.forms if f.rebuilt)
            m.problem += m.t[b, e] >= float(part.compute_s[e]) + rebuilt, f"compute_{b}_{e}"


def _link_s(d: SplitProblem, part: Bin, form: CacheForm) -> float:
    """Seconds on the link per block and step, all layers."""
    nbytes = BLOCK_TOKENS * d.model.layers * form.h2d_bytes(d.model)
    return nbytes / d.hardware.link.h2d_bytes_per_s.value + part.link_s_per_block


def link_use(m: _Model) -> Any:
    """Seconds on the link in all decode steps: breaks ties towards the plan that moves less."""
    d = m.data
    return _sum(
        epoch.steps * (_sum(m.n[b, f.name, e] * _link_s(d, part, f) for f in d.forms if not f.on_gpu) + m.weights_s[b])
        for b, part in enumerate(d.bins)
        for e, epoch in enumerate(d.epochs)
    )


def prefill_time(m: _Model) -> None:
    """prefill >= compute, >= sweeps * streamed weights / h2d, >= prompt blocks on the host / d2h."""
    d = m.data
    link = d.hardware.link
    m.problem += m.prefill_s >= d.prefill_compute_s
    streamed = (d.model.layers - m.resident) * (d.prefill_sweeps * d.model.layer_bytes)
    m.problem += m.prefill_s >= streamed * (1 / link.h2d_bytes_per_s.value)
    if d.epochs:
        stored = _sum(
            m.n[b, f.name, 0] * (f.block_bytes(d.model) * _prompt_part(part) / link.d2h_bytes_per_s.value)
            for b, part in enumerate(d.bins) for f in d.forms if not f.on_gpu
        )  # fmt: skip
        m.problem += m.prefill_s >= stored, "prefill_store"


def _prompt_part(part: Bin) -> float:
    first = float(part.demand.blocks[0])
    return min(1.0, part.demand.prompt_blocks / first) if first else 0.0


FAMILIES = (
    cover_every_block, append_only, forced_act_share, slots_hold_a_mini_batch,
    gpu_memory, host_memory, step_time, prefill_time,
)  # fmt: skip


def build(data: SplitProblem, relax: bool = False) -> _Model:
    """The PuLP model, ready to solve or to print."""
    m = _Model(data, relax)
    steps = [epoch.steps for epoch in data.epochs]
    m.job_s = _sum(m.t[b, e] * steps[e] for b, e in m.t) + m.prefill_s
    m.problem += m.job_s + TIE_BREAK * link_use(m), "job_time"
    for family in FAMILIES:
        family(m)
    return m


def solve(data: SplitProblem, relax: bool = False, gap: float = 1e-4, limit_s: float = 10.0) -> Split | None:
    """The best split, or None when the constraints cannot be met together."""
    m = build(data, relax)
    m.problem.solve(pulp.HiGHS(msg=False, gapRel=gap, timeLimit=limit_s, threads=1))
    status = pulp.LpStatus[m.problem.status]
    if status in ("Infeasible", "Undefined"):
        return None
    if status != "Optimal" or m.resident.varValue is None:
        raise HybridserveError(f"the solver stopped without a plan: {status}")
    # link_use <= job time, so the least job time is at least the least tie-broken objective / (1 + TIE_BREAK).
    objective = float(pulp.value(m.problem.objective))
    return Split(
        blocks={key: max(float(v.varValue), 0.0) for key, v in m.n.items()},
        final={key: max(float(v.varValue), 0.0) for key, v in m.final.items()},
        resident_layers=round(m.resident.varValue),
        objective_s=float(pulp.value(m.job_s)),
        bound_s=objective * (1 - gap) / (1 + TIE_BREAK),
    )


def _sum(terms: Any) -> Any:
    return pulp.lpSum(terms)
