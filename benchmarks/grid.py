"""The grid of `benchmarks.accuracy`: what is executed, and the proof that none of it was calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from planner.hardware import HardwareProfile
from planner.model import ModelSpec, load_model
from planner.plan import Plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.scale import replace_fields, scaled_model
from planner.search import Options
from planner.workload import Workload

PROFILE_HIDDEN = 448
"""Kernels are profiled at this width; no model of the grid has it."""
VOCAB = 1024
LINKS = (2.5e8, 5e8, 1e9)
"""Paced bytes per second of both directions: weights bind, about balanced, compute binds."""
JOBS = ((64, 32, 9), (4, 1000, 9), (32, 96, 3), (16, 160, 13), (8, 512, 5), (24, 256, 3), (12, 360, 7))
"""(requests, prompt, generated tokens): decode-heavy and prefill-heavy."""
SHARES = (0.25, 0.5, 0.75)
RESIDENT_CACHE = (0.0, 0.4)
"""Share of the whole batch's K and V that the arena has room for beside slots, weights and prefill."""


@dataclass(frozen=True)
class Point:
    """One executed plan."""

    model: ModelSpec
    workload: Workload
    policy: str
    act_share: float | None
    mini_batches: int | None
    link_bytes_per_s: float
    resident: float

    def plan(self, profile: HardwareProfile) -> Plan:
        """The plan under the rates of `profile`, its link paced and its arena cut as the point says."""
        keys = ("h2d", "d2h", "h2d_during_d2h", "d2h_during_h2d")
        link = {f"link.{key}_bytes_per_s": self.link_bytes_per_s for key in keys}
        hardware = profile.with_values(**link, **{"gpu.memory.usable_bytes": float(self.arena_bytes)})
        options = Options(act_share=self.act_share, mini_batches=self.mini_batches, max_resident_layers=0, waves=1)
        return make_plan(hardware, self.model, self.workload, POLICIES[self.policy], options)

    @property
    def arena_bytes(self) -> int:
        """Slots and prefill always fit, and `resident` of the cache beside them."""
        m, tokens = self.model, self.workload.total_prompt_tokens + self.workload.total_generated_tokens
        slots = 3.2 * tokens * max(m.kv_bytes_per_token_layer, m.act_bytes_per_token_layer)
        prefill = min(512, tokens) * (8 * m.hidden + m.ffn) * m.element_bytes
        cache = self.resident * tokens * m.kv_bytes_per_token_layer * m.layers
        return round(m.outer_bytes + 2 * m.layer_bytes + max(slots, prefill) + cache) + 2**20

    def describe(self) -> dict[str, object]:
        """For the record."""
        first = self.workload.requests[0]
        return {
            "hidden": self.model.hidden, "heads": self.model.heads, "kv_heads": self.model.kv_heads,
            "layers": self.model.layers, "requests": len(self.workload), "prompt_len": first.prompt_len,
            "gen_len": first.gen_len, "policy": self.policy, "forced_act_share": self.act_share,
            "forced_mini_batches": self.mini_batches, "link_bytes_per_s": self.link_bytes_per_s,
            "gpu_budget_bytes": self.arena_bytes,
        }  # fmt: skip


def models() -> list[ModelSpec]:
    """Three widths with a head for each K/V head, and one with four heads for each."""
    opt = load_model("opt-6.7b")
    plain = [scaled_model(opt, hidden, layers, VOCAB) for hidden, layers in ((256, 5), (384, 4), (512, 3))]
    grouped = replace_fields(scaled_model(opt, 512, 3, VOCAB), name="opt-6.7b-scale-512-gqa", kv_heads=2)
    return [*plain, grouped]


def points() -> Iterator[Point]:
    """Every model with every job: K and V only, activations only, mixed as planned, and mixed as forced."""
    for i, (model, (requests, prompt, gen)) in enumerate(product(models(), JOBS)):
        work = Workload.uniform(requests, prompt, gen)
        link, resident = LINKS[i % 3], RESIDENT_CACHE[i % 2]
        yield Point(model, work, "kv-only", None, None, link, resident)
        yield Point(model, work, "act-only", None, None, LINKS[(i + 1) % 3], resident)
        if i % 2:
            yield Point(model, work, "hybrid", None, None, LINKS[(i + 2) % 3], resident)
        else:
            yield Point(model, work, "hybrid", SHARES[i // 2 % 3], 1 + i // 2 % 3, LINKS[(i + 2) % 3], 0.0)


Shape = tuple[str, int, int, int]
"""(kind, ...): `gemm` rows, inner, columns; `decode` and `prefill` requests, tokens, width of the heads."""


def executed_shapes(plans: Iterable[Plan]) -> set[Shape]:
    """Shapes of the products and attention calls that these plans run."""
    found: set[Shape] = set()
    for plan in plans:
        m = plan.model
        fused = m.d_q + 2 * m.d_kv
        for chunk in (chunk for chunks in plan.decisions.prefill_passes for chunk in chunks):
            found |= _layer_shapes(m, chunk.tokens, fused)
            for prompt in {plan.workload.requests[r].prompt_len for r in chunk.requests}:
                found.add(("prefill", len(chunk.requests), prompt, m.d_q))
        for batch in plan.decisions.mini_batches:
            for step in range(batch.decode_steps):
                found |= _layer_shapes(m, int(batch.shapes.rows[step]), fused)
                for requests, segments in batch.attended(step):
                    found |= {("decode", requests, int(tokens), m.d_q) for tokens in segments}
    return found


def _layer_shapes(m: ModelSpec, rows: int, fused: int) -> set[Shape]:
    shapes = ((m.hidden, fused), (m.d_q, m.hidden), (m.hidden, m.ffn), (m.ffn, m.hidden), (m.hidden, 2 * m.d_kv))
    return {("gemm", rows, inner, columns) for inner, columns in shapes}
