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
from functools import cached_property
from itertools import pairwise
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
"""Weight of link use and of host blocks in the objective: too small to slow a plan, enough to avoid them for nothing.
"""


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
    largest: float
    """Blocks of its largest mini-batch in the end: what slots must hold."""

    @property
    def slot_share(self) -> float:
        """Of the bin's blocks, those of its largest mini-batch."""
        return self.largest / self.demand.final_blocks


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
    head_start_bytes: float = 0.0
    """Weights that may cross the link before the step that needs them, which the bound must not count in that step."""
    host_margin_bytes: float = 0.0
    """Host memory to leave for the rounding of blocks and of pinned slabs."""
    in_proportion: bool = False
    """Ended requests held the same mix of forms as the others, as a plan deals them; the relaxation lets them differ.
    """

    @cached_property
    def unit_s(self) -> float:
        """Seconds that count as 1 in the problem: about a step, since solvers take 1e-7 of anything for nothing."""
        steps = [epoch.steps for epoch in self.epochs]
        compute = self.prefill_compute_s + sum(float(part.compute_s @ steps) for part in self.bins)
        return compute / max(sum(steps), 1)


@dataclass(frozen=True)
class Split:
    """A solution, in real numbers, and integers where they were asked for."""

    begun: dict[tuple[int, str, int], float]
    """Blocks by (bin, form, epoch), those of ended requests included, in proportion to the others'."""
    final: dict[tuple[int, str], float]
    resident_layers: int
    objective_s: float
    bound_s: float
    """What the solver proved for this very problem."""


class _Model:
    """The PuLP problem and its variables. Times (`..._t`) are in `unit_s`, memory in GiB."""

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
        self.early = {(b, e): var(f"early_{b}_{e}", 0) for b in bins for e in epochs if data.head_start_bytes}
        self.weights_t = {b: var(f"weights_t_{b}", 0) for b in bins}
        self.resident = var("resident_layers", 0, layers if most is None else most, category)
        self.streams = var("any_streamed", 0, 1, category)
        self.kv_slot, self.act_slot = var("kv_slot_gib", 0), var("act_slot_gib", 0)
        self.rebuilt, self.overlay = var("rebuilt_gib", 0), var("overlay_gib", 0)
        self.prefill_t = var("prefill_t", 0)
        self.job_t: Any = 0
        self.rows: dict[str, list[str]] = {}
        """Names of the rows that each family added."""


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
    """n[b,f,e+1] >= n[b,f,e] while no request of b has ended: a block never changes its form.

    In proportion, with alive[e] = blocks[e] / begun_blocks[e]: n[b,f,e+1] / alive[e+1] >= n[b,f,e] / alive[e], and
    final[b,f] >= n[b,f,e] / alive[e], whether requests end or not.
    """
    for b, part in enumerate(m.data.bins):
        if m.data.in_proportion:
            for i, f in enumerate(m.data.forms):
                begun = [m.n[b, f.name, e] * (1 / alive) for e, alive in enumerate(_alive(part)) if alive]
                for e, (earlier, later) in enumerate(pairwise(begun)):
                    m.problem += later >= earlier, f"append_{b}_{i}_{e}"
                if begun:
                    m.problem += m.final[b, f.name] >= begun[-1], f"append_final_{b}_{i}"
            continue
        rows = part.demand.rows
        for e in range(len(m.data.epochs) - 1):
            if rows[e + 1] >= rows[e]:
                for i, f in enumerate(m.data.forms):
                    m.problem += m.n[b, f.name, e + 1] >= m.n[b, f.name, e], f"append_{b}_{i}_{e}"


def _alive(part: Bin) -> list[float]:
    """By epoch: blocks of requests still generating over blocks of all."""
    return [float(x / y) if y else 0.0 for x, y in zip(part.demand.blocks, part.demand.begun_blocks, strict=True)]


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
    """slot >= n[b,f,e] * share[b] * bytes, for staged KV, staged ACT and rebuilt K and V.

    share[b] = largest mini-batch of the bin / the whole bin, in blocks: 1 / count[b] where they are alike.
    """
    kv_bytes = BLOCK_TOKENS * m.data.model.kv_bytes_per_token_layer / GIB
    for b, part in enumerate(m.data.bins):
        for e in range(len(m.data.epochs)):
            for f in m.data.forms:
                if not f.on_gpu:
                    slot = m.act_slot if f.rebuilt else m.kv_slot
                    block = BLOCK_TOKENS * f.token_bytes(m.data.model) / GIB
                    m.problem += slot >= m.n[b, f.name, e] * (block * part.slot_share)
            rebuilt = _sum(m.n[b, f.name, e] for f in m.data.forms if f.rebuilt)
            m.problem += m.rebuilt >= rebuilt * (kv_bytes * part.slot_share)


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
    """(layers - resident) W + sum final[b,f@host] bytes <= host budget - margin."""
    d = m.data
    held = _sum(
        m.final[b, f.name] * (f.block_bytes(d.model) / GIB)
        for b in range(len(d.bins)) for f in d.forms if not f.on_gpu
    )  # fmt: skip
    streamed = (d.model.layers - m.resident) * (d.model.layer_bytes / GIB)
    m.problem += streamed + held <= (d.hardware.host.budget_bytes - d.host_margin_bytes) / GIB, "host_memory"


def step_time(m: _Model) -> None:
    """t[b,e] >= link[b,e] + slowed * compute[b,e],  t[b,e] >= compute[b,e] + lost * link[b,e], for all b, e.

    link = cache transfers + share of weights, compute = everything beside rebuilding + rebuilding. `lost` is the share
    of compute's speed that a busy link takes, `slowed` what compute takes of the link's. Both hold for any overlap: a
    stream that idles loses more time than contention would have cost it.

    sum_b weights_t[b] = (layers - resident) W / h2d: the pieces of a layer may fill any bin's gaps.
    Of the link's time, sum_b,e early[b,e] steps[e] <= head start may fall into an earlier step or into prefill.
    """
    d = m.data
    rate = d.hardware.link.h2d_bytes_per_s.value
    per_layer = d.model.layer_bytes / rate + d.pieces_per_layer * d.hardware.link.latency_s.value
    m.problem += _sum(m.weights_t.values()) == (d.model.layers - m.resident) * (per_layer / d.unit_s), "weights_time"
    head_start = d.head_start_bytes / (rate * d.unit_s)
    lost, slowed = d.hardware.link.compute_lost_to_h2d, 1 - min(1.0, d.hardware.link.during_compute.value)
    m.problem += _sum(early * d.epochs[e].steps for (_, e), early in m.early.items()) <= head_start, "head_start"
    for b, part in enumerate(d.bins):
        for e in range(len(d.epochs)):
            moved = _sum(m.n[b, f.name, e] * _link_t(d, part, f) for f in d.forms if not f.on_gpu)
            rebuilt = _sum(m.n[b, f.name, e] * (part.rebuild_s_per_block / d.unit_s) for f in d.forms if f.rebuilt)
            link_t = moved + m.weights_t[b] - m.early.get((b, e), 0)
            compute_t = rebuilt + float(part.compute_s[e]) / d.unit_s
            m.problem += m.t[b, e] >= link_t + slowed * compute_t, f"link_{b}_{e}"
            m.problem += m.t[b, e] >= compute_t + lost * link_t, f"compute_{b}_{e}"


def _link_t(d: SplitProblem, part: Bin, form: CacheForm) -> float:
    """Time on the link per block and step, all layers."""
    nbytes = BLOCK_TOKENS * d.model.layers * form.h2d_bytes(d.model)
    return (nbytes / d.hardware.link.h2d_bytes_per_s.value + part.link_s_per_block) / d.unit_s


def link_use(m: _Model) -> Any:
    """Time on the link in all decode steps: breaks ties towards the plan that moves less."""
    d = m.data
    return _sum(
        epoch.steps * (_sum(m.n[b, f.name, e] * _link_t(d, part, f) for f in d.forms if not f.on_gpu) + m.weights_t[b])
        for b, part in enumerate(d.bins)
        for e, epoch in enumerate(d.epochs)
    )


def host_use(m: _Model) -> Any:
    """Share of the blocks that end up on the host, in prefill times: nothing goes there that need not.

    The link does not see blocks of requests that have ended or that end with prefill, but their stores are real.
    """
    d = m.data
    total = sum(part.demand.final_blocks for part in d.bins)
    weight = d.prefill_compute_s / d.unit_s / total
    return _sum(m.final[b, f.name] * weight for b in range(len(d.bins)) for f in d.forms if not f.on_gpu)


def prefill_time(m: _Model) -> None:
    """prefill >= compute + lost_h * weights + lost_d * stored,  >= weights + (1 - beside_d2h) * stored,
    >= stored + (1 - beside_h2d) * weights.

    weights = sweeps * streamed weights / h2d, stored = prompt blocks on the host / d2h; contention as in `step_time`.
    """
    d = m.data
    link = d.hardware.link
    streamed = (d.model.layers - m.resident) * (d.prefill_sweeps * d.model.layer_bytes)
    weights_t = streamed * (1 / (link.h2d_bytes_per_s.value * d.unit_s))
    stored_t = _sum(
        m.n[b, f.name, 0] * (f.block_bytes(d.model) * _prompt_part(part) / link.d2h_bytes_per_s.value / d.unit_s)
        for b, part in enumerate(d.bins) for f in d.forms if not f.on_gpu and d.epochs
    )  # fmt: skip
    busy_t = link.compute_lost_to_h2d * weights_t + link.compute_lost_to_d2h * stored_t
    m.problem += m.prefill_t >= busy_t + d.prefill_compute_s / d.unit_s, "prefill_compute"
    m.problem += m.prefill_t >= weights_t + (1 - link.beside_d2h) * stored_t, "prefill_weights"
    m.problem += m.prefill_t >= stored_t + (1 - link.beside_h2d) * weights_t, "prefill_store"


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
    m.job_t = _sum(m.t[b, e] * steps[e] for b, e in m.t) + m.prefill_t
    m.problem += m.job_t + TIE_BREAK * (link_use(m) + host_use(m)), "job_time"
    for family in FAMILIES:
        before = len(m.problem.constraints)
        family(m)
        m.rows[family.__name__] = list(m.problem.constraints)[before:]
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
    # link_use and host_use <= job time, so the least job time is at least the least objective / (1 + 2 TIE_BREAK).
    objective = float(pulp.value(m.problem.objective)) * data.unit_s
    final = {key: max(float(v.varValue), 0.0) for key, v in m.final.items()}
    alive = [_alive(part) for part in data.bins]
    return Split(
        begun={
            (b, f, e): max(float(v.varValue), 0.0) / alive[b][e] if alive[b][e] else final[b, f]
            for (b, f, e), v in m.n.items()
        },
        final=final,
        resident_layers=round(m.resident.varValue),
        objective_s=float(pulp.value(m.job_t)) * data.unit_s,
        bound_s=objective * (1 - gap) / (1 + 2 * TIE_BREAK),
    )


def _sum(terms: Any) -> Any:
    return pulp.lpSum(terms)
