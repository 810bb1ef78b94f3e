"""The split problem: for fixed mini-batches, which form every block takes and which layers stay on the GPU.

One function per constraint family, each with its algebra. Indices: b bins of identical mini-batches, f cache forms,
e epochs, g lifetimes (requests that end in the same epoch). Counts are blocks of a whole bin (all its mini-batches);
times are seconds per decode step.

Two uses of the same problem:
- solved for the mini-batches of a plan, it yields that plan's counts;
- solved for one bin of *average* mini-batches, with the cheapest compute that any composition allows, it is a
  relaxation of every composition with that many mini-batches (average any solution over its mini-batches: the
  constraints are convex), so its optimum is a lower bound.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pulp

from planner.epochs import Demand
from planner.forms import BLOCK_TOKENS, CacheForm
from planner.modelling import Problem, Variable, sum_of
from planner.split_problem import Bin, SplitProblem

GIB = float(2**30)
STRETCHES = 3
"""Runs of epochs for each of which a form is in use or not, in the relaxation: more cost the solver time, and tell
little more."""
TIE_BREAK = 1e-4
"""Weight of link use and of host blocks in the objective: too small to slow a plan, enough to avoid them for nothing.
"""


class SplitModel:
    """The PuLP problem and its variables. Times (`..._t`) are in `unit_s`, memory in GiB."""

    def __init__(self, data: SplitProblem, relax: bool) -> None:
        self.data = data
        self.problem = Problem("split")
        bins, epochs = range(len(data.bins)), range(len(data.epochs))
        forms = [form.name for form in data.forms]
        layers, most = data.model.layers, data.max_resident_layers
        category = pulp.LpContinuous if relax else pulp.LpInteger
        var = self.problem.add_variable
        self.lives = [(b, g) for b, part in enumerate(data.bins) for g, d in enumerate(part.demands) if d.final_blocks]
        self.n = {
            (b, g, f, e): var(f"n_{b}_{g}_{i}_{e}", 0)
            for b, g in self.lives for i, f in enumerate(forms) for e in epochs if data.bins[b].demands[g].blocks[e]
        }  # fmt: skip
        self.final = {(b, g, f): var(f"final_{b}_{g}_{i}", 0) for b, g in self.lives for i, f in enumerate(forms)}
        self.t = {(b, e): var(f"t_{b}_{e}", 0) for b in bins for e in epochs}
        self.early = {(b, e): var(f"early_{b}_{e}", 0) for b in bins for e in epochs if data.head_start}
        self.weights_t = {b: var(f"weights_t_{b}", 0) for b in bins}
        self._allowed = data.min_resident_layers, layers if most is None else most
        """Resident layers that the options allow."""
        self.shares = [nbytes / data.model.layer_bytes for nbytes in data.model.prefix_bytes]
        """Of a layer that its first 0, 1, ... parts are."""
        self.kept_parts: list[Any] = []
        self.slot_share: Any
        """Of a layer that a weight slot holds: what streams of those of which least is resident."""
        self.ahead_share: Any
        """Of a layer that is ahead in the slots at most while the last layer, of which more may be resident, is
        computed."""
        self.resident = var("resident_layers", self._allowed[0], max(self._allowed))
        if data.least_parts is None:
            self.kept_parts = [var(f"kept_parts_{k}", 0, 1, category) for k in range(len(self.shares))]
            self.slot_share = sum_of((1 - share) * self.kept_parts[k] for k, share in enumerate(self.shares))
            self.ahead_share = sum_of(self._ahead(k) * kept for k, kept in enumerate(self.kept_parts))
        else:
            self.slot_share, self.ahead_share = var("slot_share"), var("ahead_share")
            self.keep(data.least_parts)
        self.kv_slot, self.act_slot = var("kv_slot_gib", 0), var("act_slot_gib", 0)
        self.rebuilt, self.overlay = var("rebuilt_gib", 0), var("overlay_gib", 0)
        self.prefill_t = var("prefill_t", 0)
        self.chosen = [var(f"prefill_{k}", 0, 1, category) for k in range(len(data.prefill))]
        self.kept = [var(f"kept_{k}", 0) for k in range(len(data.prefill))]
        self.used = {
            (f, s): var(f"used_{i}_{s}", 0, 1)
            for i, f in enumerate(forms) for s in range(len(self.stretches()))
        }  # fmt: skip
        floors = [b for b in bins if data.bins[b].rebuild_floors and any(form.rebuilt for form in data.forms)]
        self.rebuilds = {s: var(f"rebuilds_{s}", 0, 1) for s in range(len(self.stretches())) if floors}
        self.rebuilt_t = {(b, e): var(f"rebuilt_t_{b}_{e}", 0) for b in floors for e in epochs}
        self.further = {(b, s): var(f"further_{b}_{s}", 0) for b in bins for s in range(len(self.stretches()))}
        self.job_t: Any = 0
        self.carried_t: list[Any] = []
        """Of the link in all steps of each epoch, and in prefill."""
        self._held: dict[tuple[int, str, int], Any] = {}
        self.rows: dict[str, list[pulp.LpConstraint]] = {}
        """Those that each family added."""

    def keep(self, least: int) -> list[Variable]:
        """`least` parts of every layer are resident, and not of every layer more. The variables that this bounds."""
        layers, (fewest, most) = self.data.model.layers, self._allowed
        low = max(layers * self.shares[least], fewest)
        high = min(layers * self.shares[min(least + 1, len(self.shares) - 1)], most)
        self.resident.bounds(low, max(low, high))
        self.slot_share.bounds(1 - self.shares[least], 1 - self.shares[least])
        self.ahead_share.bounds(self._ahead(least), self._ahead(least))
        return [self.resident, self.slot_share, self.ahead_share]

    def _ahead(self, least: int) -> float:
        beyond = self.shares[min(least + 1, len(self.shares) - 1)]
        return max(self.data.head_start * (1 - self.shares[least]) - (1 - beyond), 0.0)

    def alive_in(self, b: int, g: int) -> list[int]:
        """The epochs in which requests of lifetime g are still generating, from the first on."""
        return [e for e, blocks in enumerate(self.data.bins[b].demands[g].blocks) if blocks]

    def stretches(self) -> list[range]:
        """Epochs in a few runs, for each of which a form is in use or not."""
        count = len(self.data.epochs)
        runs = count if self.data.decided else min(STRETCHES, count)
        return [range(s * count // runs, (s + 1) * count // runs) for s in range(runs)]

    def stretch_of(self) -> dict[int, int]:
        """By epoch the number of its run."""
        return {e: s for s, run in enumerate(self.stretches()) for e in run}

    def lasting(self, run: range) -> list[tuple[int, int]]:
        """Lifetimes that generate throughout a run of epochs."""
        rows = {(b, g): self.data.bins[b].demands[g].rows for b, g in self.lives}
        return [key for key, of in rows.items() if of[run[0]] and of[run[-1]] >= of[run[0]]]

    def held(self, b: int, form: CacheForm, e: int) -> Any:
        """n[b,f,e] = sum_g n[b,g,f,e]: blocks of all lifetimes."""
        key = b, form.name, e
        if key not in self._held:
            lives = range(len(self.data.bins[b].demands))
            self._held[key] = sum_of(self.n[b, g, form.name, e] for g in lives if (b, g, form.name, e) in self.n)
        return self._held[key]

    def rebuilt_blocks(self, b: int, e: int) -> Any:
        """sum_{f in ACT} n[b,f,e]."""
        return sum_of(self.held(b, form, e) for form in self.data.forms if form.rebuilt)


def cover_every_block(m: SplitModel) -> None:
    """sum_f n[b,g,f,e] = blocks[b,g,e];  sum_f final[b,g,f] = final_blocks[b,g]."""
    for b, g in m.lives:
        demand = m.data.bins[b].demands[g]
        for e in m.alive_in(b, g):
            m.problem += sum_of(m.n[b, g, f.name, e] for f in m.data.forms) == demand.blocks[e], f"cover_{b}_{g}_{e}"
        m.problem += sum_of(m.final[b, g, f.name] for f in m.data.forms) == demand.final_blocks, f"cover_final_{b}_{g}"


def append_only(m: SplitModel) -> None:
    """n[b,g,f,e+1] >= n[b,g,f,e] before the epoch in which g ends, final[b,g,f] >= n[b,g,f,e]: a block never changes
    its form.

    Of decided mini-batches, with alive[g,e] = blocks[g,e] / begun_blocks[g,e], 1 before that epoch:
    n[b,g,f,e+1] / alive[g,e+1] >= n[b,g,f,e] / alive[g,e], and final[b,g,f] >= n[b,g,f,e] / alive[g,e].
    """
    for b, g in m.lives:
        alive = alive_shares(m.data.bins[b].demands[g]) if m.data.decided else None
        rows, epochs = m.data.bins[b].demands[g].rows, m.alive_in(b, g)
        for i, f in enumerate(m.data.forms):
            begun = {e: m.n[b, g, f.name, e] * (1 / alive[e] if alive else 1.0) for e in epochs}
            for e, later in pairwise(epochs):
                if alive or rows[later] >= rows[e]:
                    m.problem += begun[later] >= begun[e], f"append_{b}_{g}_{i}_{e}"
                else:
                    m.problem += m.final[b, g, f.name] >= begun[e], f"final_{b}_{g}_{i}_{e}"
            if begun:
                m.problem += m.final[b, g, f.name] >= begun[epochs[-1]], f"final_{b}_{g}_{i}"


def alive_shares(demand: Demand) -> list[float]:
    """By epoch: blocks of requests still generating over blocks of all."""
    return [float(x / y) if y else 0.0 for x, y in zip(demand.blocks, demand.begun_blocks, strict=True)]


def forced_act_share(m: SplitModel) -> None:
    """sum_{f in ACT} n[b,f,e] = share * blocks[b,e]."""
    if m.data.act_share is None:
        return
    act = [f for f in m.data.forms if f.rebuilt]
    for b, part in enumerate(m.data.bins):
        for e in range(len(m.data.epochs)):
            wanted = m.data.act_share * float(part.demand.blocks[e])
            m.problem += sum_of(m.held(b, f, e) for f in act) == wanted, f"act_share_{b}_{e}"


def slots_hold_a_mini_batch(m: SplitModel) -> None:
    """slot >= n[b,f,e] * peak[b,e] * share[b] * bytes, for staged KV, staged ACT and rebuilt K and V.

    n[b,f,e] = sum_g n[b,g,f,e]; peak[b,e] = the most blocks in any step of the epoch / the mean, 1 in the relaxation.

    share[b] = largest mini-batch of the bin / the whole bin, in blocks: 1 / count[b] where they are alike.
    """
    kv_bytes = BLOCK_TOKENS * m.data.model.kv_bytes_per_token_layer / GIB
    for b, part in enumerate(m.data.bins):
        share = part.slot_share * part.peak
        for e in range(len(m.data.epochs)):
            for f in m.data.forms:
                if not f.on_gpu:
                    slot = m.act_slot if f.rebuilt else m.kv_slot
                    block = BLOCK_TOKENS * f.token_bytes(m.data.model) / GIB
                    m.problem += slot >= m.held(b, f, e) * (block * float(share[e]))
            rebuilt = sum_of(m.held(b, f, e) for f in m.data.forms if f.rebuilt)
            m.problem += m.rebuilt >= rebuilt * (kv_bytes * float(share[e]))


def gpu_memory(m: SplitModel) -> None:
    """outer + (resident + slots slot_share) W + overlay + sum final[b,g,f@gpu] bytes <= capacity; overlay holds either
    phase.

    Of every layer the first k parts are resident, of some one more: sum_k kept_parts[k] = 1, resident >= layers sum_k
    share[k] kept_parts[k], and slots hold the rest of those with k: slot_share = sum_k (1 - share[k]) kept_parts[k].
    Where k is decided, layers share[k] <= resident <= layers share[k + 1].
    """
    d, w = m.data, m.data.model.layer_bytes / GIB
    m.problem += m.overlay >= d.cache_slots * (m.kv_slot + m.act_slot) + m.rebuilt + d.fixed_decode_bytes / GIB
    m.problem += m.overlay >= sum_of(m.chosen[k] * (size.nbytes / GIB) for k, size in enumerate(d.prefill))
    if m.kept_parts:
        m.problem += sum_of(m.kept_parts) == 1, "kept_parts"
        kept = sum_of(share * m.kept_parts[k] for k, share in enumerate(m.shares))
        m.problem += m.resident >= d.model.layers * kept, "resident_parts"
    held = sum_of(
        m.final[b, g, f.name] * (f.block_bytes(d.model) / GIB) for b, g in m.lives for f in d.forms if f.on_gpu
    )  # fmt: skip
    capacity = (d.hardware.gpu.budget_bytes - d.model.outer_bytes - d.gpu_margin_bytes) / GIB
    m.problem += m.resident * w + m.slot_share * (d.weight_slots * w) + m.overlay + held <= capacity, "gpu_memory"


def host_memory(m: SplitModel) -> None:
    """(layers - resident) W + sum final[b,g,f@host] bytes <= host budget - margin."""
    d = m.data
    held = sum_of(
        m.final[b, g, f.name] * (f.block_bytes(d.model) / GIB) for b, g in m.lives for f in d.forms if not f.on_gpu
    )  # fmt: skip
    streamed = (d.model.layers - m.resident) * (d.model.layer_bytes / GIB)
    m.problem += streamed + held <= (d.hardware.host.budget_bytes - d.host_margin_bytes) / GIB, "host_memory"


def step_time(m: SplitModel) -> None:
    """t[b,e] >= link[b,e] + slowed * compute[b,e],  t[b,e] >= compute[b,e] + lost * link[b,e], for all b, e.

    link = cache transfers + share of weights, compute = everything beside rebuilding + rebuilding. `lost` is the share
    of compute's speed that a busy link takes, `slowed` what compute takes of the link's. Both hold for any overlap: a
    stream that idles loses more time than contention would have cost it.

    sum_b weights_t[b] = (layers - resident) W / h2d: the pieces of a layer may fill any bin's gaps.
    Of the link's time, sum_b,e early[b,e] steps[e] may fall into an earlier step or into prefill: at most what the
    slots of the head start hold, and no more than they hold beside the last layer and what crosses during `sample_s`.
    """
    d = m.data
    rate = d.hardware.link.h2d_bytes_per_s.value
    per_layer = d.model.layer_bytes / rate + d.pieces_per_layer * d.hardware.link.latency_s.value
    m.problem += sum_of(m.weights_t.values()) == (d.model.layers - m.resident) * (per_layer / d.unit_s), "weights_time"
    lost, slowed = d.hardware.link.compute_lost_to_h2d, 1 - min(1.0, d.hardware.link.during_compute.value)
    if d.head_start:
        layer_t = d.model.layer_bytes / (rate * d.unit_s)
        early_t = sum_of(early * d.epochs[e].steps for (_, e), early in m.early.items())
        m.problem += early_t <= m.slot_share * (d.head_start * layer_t), "head_start"
        m.problem += early_t <= m.ahead_share * layer_t + d.sample_s / d.unit_s, "head_start_streamed"
    stretch_of = m.stretch_of()
    for b, part in enumerate(d.bins):
        for e in range(len(d.epochs)):
            moved = sum_of(m.held(b, f, e) * _link_t(d, part, f) for f in d.forms if not f.on_gpu)
            carried_t = moved + m.weights_t[b]
            m.carried_t.append(carried_t * d.epochs[e].steps)
            link_t = carried_t - m.early.get((b, e), 0)
            calls_t = m.further[b, stretch_of[e]] * (float(part.call_s[e]) / d.unit_s)
            compute_t = _rebuilt_t(m, b, e) + float(part.compute_s[e]) / d.unit_s + calls_t
            m.problem += m.t[b, e] >= link_t + slowed * compute_t, f"link_{b}_{e}"
            m.problem += m.t[b, e] >= compute_t + lost * link_t, f"compute_{b}_{e}"


def rebuild_floors(m: SplitModel) -> None:
    """rebuilt[b,e] >= per_block[b] rebuilt blocks, and >= fixed[b,j] rebuilds[s] + slope[b,j] rebuilt blocks, with
    rebuilt blocks = sum_{f in ACT} n[b,f,e] and rebuilds[s] >= used[f,s] for f in ACT: of decided mini-batches only.
    """
    stretch_of = m.stretch_of()
    for s, rebuilds in m.rebuilds.items():
        for i, f in enumerate(m.data.forms):
            if f.rebuilt:
                m.problem += rebuilds >= m.used[f.name, s], f"rebuilds_{i}_{s}"
    for (b, e), rebuilt_t in m.rebuilt_t.items():
        part, blocks = m.data.bins[b], m.rebuilt_blocks(b, e)
        floors = [(0.0, part.rebuild_s_per_block), *part.rebuild_floors]
        for j, (fixed_s, slope_s) in enumerate(floors):
            fixed_t = m.rebuilds[stretch_of[e]] * (fixed_s / m.data.unit_s)
            m.problem += rebuilt_t >= fixed_t + blocks * (slope_s / m.data.unit_s), f"rebuilt_{b}_{e}_{j}"


def _rebuilt_t(m: SplitModel, b: int, e: int) -> Any:
    """Time of rebuilding in a step of epoch e."""
    if (b, e) in m.rebuilt_t:
        return m.rebuilt_t[b, e]
    return m.rebuilt_blocks(b, e) * (m.data.bins[b].rebuild_s_per_block / m.data.unit_s)


def attention_calls(m: SplitModel) -> None:
    """sum n[b,g,f,e] <= used[f,s] sum blocks[b,g,e], over b and the lifetimes g that generate throughout the run s of
    epochs, for its first epoch e: a block that one of them holds is attended in every step of s. Of decided
    mini-batches every epoch is a run of its own.

    further[b,s] >= sum_f used[f,s] - free[b]: each form in use costs a call in each mini-batch, but for the free ones,
    which are counted with the rest of the layer.
    """
    for s, run in enumerate(m.stretches()):
        lives = m.lasting(run)
        blocks = sum(float(m.data.bins[b].demands[g].blocks[run[0]]) for b, g in lives)
        for i, f in enumerate(m.data.forms if lives else ()):
            held = sum_of(m.n[b, g, f.name, run[0]] for b, g in lives)
            m.problem += held <= blocks * m.used[f.name, s], f"used_{i}_{s}"
        for b, part in enumerate(m.data.bins):
            in_use = sum_of(m.used[f.name, s] for f in m.data.forms)
            m.problem += m.further[b, s] >= in_use - part.free_forms, f"further_{b}_{s}"


def _link_t(d: SplitProblem, part: Bin, form: CacheForm) -> float:
    """Time on the link per block and step, all layers."""
    nbytes = BLOCK_TOKENS * d.model.layers * form.h2d_bytes(d.model)
    return (nbytes / d.hardware.link.h2d_bytes_per_s.value + part.link_s_per_block) / d.unit_s


def link_use(m: SplitModel) -> Any:
    """Time on the link in all decode steps: breaks ties towards the plan that moves less."""
    d = m.data
    return sum_of(
        epoch.steps * (sum_of(m.held(b, f, e) * _link_t(d, part, f) for f in d.forms if not f.on_gpu) + m.weights_t[b])
        for b, part in enumerate(d.bins)
        for e, epoch in enumerate(d.epochs)
    )


def host_use(m: SplitModel) -> Any:
    """Share of the blocks that end up on the host, in prefill times: nothing goes there that need not.

    The link does not see blocks of requests that have ended or that end with prefill, but their stores are real.
    """
    d = m.data
    blocks = sum(part.demand.final_blocks for part in d.bins)
    weight = d.least_prefill_s / d.unit_s / blocks
    return sum_of(m.final[b, g, f.name] * weight for b, g in m.lives for f in d.forms if not f.on_gpu)


def prefill_time(m: SplitModel) -> None:
    """prefill >= compute + lost_h * weights + lost_d * stored,  >= weights + (1 - beside_d2h) * stored,
    >= stored + (1 - beside_h2d) * weights. Compute waits for the first layer: + (1 - lost_h) of a slot's transfer.

    weights = swept W / h2d, stored = prompt blocks on the host / d2h; contention as in `step_time`.

    sum_k chosen[k] = 1, compute = sum_k chosen[k] compute[k], swept = sum_k sweeps[k] (layers chosen[k] - kept[k]),
    where sum_k kept[k] = resident and kept[k] <= layers chosen[k]: of the chosen size kept is resident, of others 0.
    """
    d = m.data
    link, layers = d.hardware.link, d.model.layers
    m.problem += sum_of(m.chosen) == 1, "one_prefill_size"
    m.problem += sum_of(m.kept) == m.resident, "kept"
    for k, kept in enumerate(m.kept):
        m.problem += kept <= layers * m.chosen[k], f"kept_{k}"
    swept = sum_of(size.sweeps * (layers * m.chosen[k] - m.kept[k]) for k, size in enumerate(d.prefill))
    compute_t = sum_of(m.chosen[k] * (size.compute_s / d.unit_s) for k, size in enumerate(d.prefill))
    layer_t = d.model.layer_bytes / (link.h2d_bytes_per_s.value * d.unit_s)
    weights_t = swept * layer_t
    per_byte = 1 / (link.d2h_bytes_per_s.value * d.unit_s)
    stored_t = sum_of(
        m.n[b, g, f.name, 0] * (f.block_bytes(d.model) * _prompt_part(d.bins[b].demands[g]) * per_byte)
        for b, g in m.lives if 0 in m.alive_in(b, g) for f in d.forms if not f.on_gpu
    )  # fmt: skip
    m.carried_t.append(weights_t)
    busy_t = link.compute_lost_to_h2d * weights_t + link.compute_lost_to_d2h * stored_t
    first_t = m.slot_share * ((1 - link.compute_lost_to_h2d) * layer_t)
    m.problem += m.prefill_t >= busy_t + compute_t + first_t, "prefill_compute"
    m.problem += m.prefill_t >= weights_t + (1 - link.beside_d2h) * stored_t, "prefill_weights"
    m.problem += m.prefill_t >= stored_t + (1 - link.beside_h2d) * weights_t, "prefill_store"


def _prompt_part(demand: Demand) -> float:
    return min(1.0, demand.prompt_blocks / float(demand.blocks[0]))


def link_time(m: SplitModel) -> None:
    """job >= weights[prefill] + sum_b,e steps[e] link[b,e]: whatever runs ahead of its step, one link carries all."""
    if m.data.head_start:
        m.problem += m.job_t >= sum_of(m.carried_t), "link_time"


FAMILIES = (
    cover_every_block, append_only, forced_act_share, slots_hold_a_mini_batch,
    gpu_memory, host_memory, attention_calls, rebuild_floors, step_time, prefill_time, link_time,
)  # fmt: skip


def build(data: SplitProblem, relax: bool = False, ties: bool = True) -> SplitModel:
    """The PuLP model, ready to solve or to print; with `ties` broken."""
    m = SplitModel(data, relax)
    steps = [epoch.steps for epoch in data.epochs]
    m.job_t = sum_of(m.t[b, e] * steps[e] for b, e in m.t) + m.prefill_t
    m.problem += m.job_t + (TIE_BREAK * (link_use(m) + host_use(m)) if ties else 0), "job_time"
    for family in FAMILIES:
        before = len(m.problem.constraints())
        family(m)
        m.rows[family.__name__] = m.problem.constraints()[before:]
    return m
