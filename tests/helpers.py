"""What several test files need: an ideal machine, small models, and random decisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

import hwprofiles
from planner.decisions import Decisions, chunk_prompts
from planner.files import validate
from planner.forms import ACT_HOST, FORMS, KV_HOST, CacheForm, blocks_for
from planner.hardware import HardwareProfile, load_hardware
from planner.model import ModelSpec
from planner.placement import MiniBatch, RequestGroup
from planner.policies import Policy
from planner.workload import Request, Workload

HOST_FORMS = Policy("host-only", (ACT_HOST, KV_HOST), "hybrid with nothing cached on the GPU")
WHOLE = 3
"""Parts of a layer of the OPT shape."""
ENORMOUS = 1e15
"""Bytes: memory that never binds."""


def profile_text(name: str = "rtx4090-pcie4") -> str:
    """The YAML of a shipped profile."""
    return hwprofiles.path_of(name).read_text(encoding="utf-8")


def profile_dict(name: str = "rtx4090-pcie4") -> dict[str, Any]:
    """The keys and values of a shipped profile."""
    data: dict[str, Any] = yaml.safe_load(profile_text(name))
    return data


def ideal_hardware(
    gemm_flops: float = 165e12,
    memory_bytes_per_s: float = 1008e9,
    h2d_bytes_per_s: float = 25e9,
    gpu_bytes: float = ENORMOUS,
    host_bytes: float = ENORMOUS,
) -> HardwareProfile:
    """The machine of the closed forms in the docs: constant rates, no overhead, no latency, whole budgets."""
    data = load_hardware("rtx4090-pcie4").to_plain()

    def number(value: float) -> dict[str, Any]:
        return {"value": value, "kind": "assumed", "source": "ideal"}

    def constant_surface(rate: float) -> dict[str, Any]:
        return {"kind": "assumed", "source": "ideal", "slices": [{"second": 1.0, "points": [[1.0, rate]]}]}

    data["id"] = "ideal"
    data["gpu"]["datasheet"] = {"flops": {}}
    data["gpu"]["memory"] = {
        "nominal_bytes": number(gpu_bytes), "usable_bytes": number(gpu_bytes), "context_reserve_bytes": number(0.0),
    }  # fmt: skip
    data["gpu"]["achieved"] = {
        "gemm_flops_by_rows": {dtype: constant_surface(gemm_flops) for dtype in ("float16", "bfloat16", "float32")},
        "prefill_attention_flops_by_tokens": constant_surface(gemm_flops),
        "decode_attention_bytes_per_s_by_context": constant_surface(memory_bytes_per_s),
        "attention_group_cost": number(0.0),
        "memory_bytes_per_s": number(memory_bytes_per_s),
        "merge_bytes_per_s": number(1e17),
        "elementwise_bytes_per_s": number(memory_bytes_per_s),
        "gather_bytes_per_s": number(memory_bytes_per_s),
        **{key: number(0.0) for key in ("op_overhead_s", "forward_overhead_s")},
        **{key: number(0.0) for key in ("attention_call_s", "attention_group_s")},
        "engine_slowdown": {kind: number(1.0) for kind in ("embed", "prefill", "rebuild", "forward", "sample")},
    }
    data["link"] |= {key: number(h2d_bytes_per_s) for key in data["link"] if key.endswith("_bytes_per_s")}
    data["link"] |= {key: number(0.0) for key in ("latency_s", "compute_s_lost_per_byte")}
    data["link"]["during_compute"] = number(1.0)
    data["host"] |= {"total_bytes": number(host_bytes), "reserve_bytes": number(0.0)}
    return validate(HardwareProfile, data, "ideal")


def small_model(**changes: Any) -> ModelSpec:
    """A small model of the OPT shape: three layers of 1.6 MB, 1 KiB of K and V per token and layer."""
    fields: dict[str, Any] = {
        "name": "small", "family": "opt", "layers": 3, "hidden": 256, "heads": 4, "kv_heads": 4, "head_dim": 64,
        "ffn": 1024, "gated": False, "vocab": 64, "max_positions": 4096, "tied": True, "norm": "layernorm",
        "positions": "learned", "position_offset": 2, "attention_bias": True, "output_bias": True, "mlp_bias": True,
        "activation": "relu", "norm_eps": 1e-5, "dtype": "float16",
    }  # fmt: skip
    return ModelSpec(**(fields | changes))


def wide_model(layers: int) -> ModelSpec:
    """Few layers as wide as a real model's: 100 MB each, so prefill's buffers are small beside them."""
    return small_model(layers=layers, hidden=2048, heads=16, kv_heads=16, head_dim=128, ffn=8192)


def ragged(lengths: Sequence[tuple[int, int]]) -> Workload:
    """Requests of the given (prompt, generation) lengths."""
    return Workload(tuple(Request(str(i), prompt, gen) for i, (prompt, gen) in enumerate(lengths)))


def decisions_of(
    batches: Sequence[MiniBatch], resident_parts: Sequence[int] = (), *, weight_slots: int = 2, cache_slots: int = 2,
    store_slots: int = 2, chunk_tokens: int = 2048, pass_tokens: int = 10**6,
) -> Decisions:  # fmt: skip
    """Decisions over given mini-batches, prompts chunked as asked."""
    prompts = {r: group.prompt_len for batch in batches for group in batch.groups for r in group.requests}
    passes = chunk_prompts(tuple(batches), prompts, chunk_tokens, pass_tokens)
    return Decisions(tuple(batches), passes, tuple(resident_parts), weight_slots, cache_slots, store_slots)


def uniform_batches(sizes: Sequence[int], prompt: int, gen: int, form: CacheForm) -> list[MiniBatch]:
    """Mini-batches of `sizes` equal requests, every block in `form`."""
    blocks = (form,) * blocks_for(prompt + gen - 1)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        MiniBatch((RequestGroup(tuple(range(start, start + size)), prompt, gen, blocks),))
        for start, size in zip(starts, sizes, strict=True)
    ]


@st.composite
def mini_batches(
    draw: st.DrawFn, max_batches: int = 4, max_groups: int = 3, max_prompt: int = 80, max_gen: int = 60
) -> tuple[MiniBatch, ...]:
    """Mini-batches of ragged groups, every block in any form."""
    first = 0
    found = []
    for _ in range(draw(st.integers(1, max_batches))):
        groups = []
        for _ in range(draw(st.integers(1, max_groups))):
            count = draw(st.integers(1, 3))
            prompt, gen = draw(st.integers(1, max_prompt)), draw(st.integers(1, max_gen))
            needed = blocks_for(prompt + gen - 1)
            blocks = tuple(draw(st.lists(st.sampled_from(FORMS), min_size=needed, max_size=needed)))
            groups.append(RequestGroup(tuple(range(first, first + count)), prompt, gen, blocks))
            first += count
        found.append(MiniBatch(tuple(groups)))
    return tuple(found)


@st.composite
def random_decisions(draw: st.DrawFn, layers: int, max_prompt: int = 50, max_gen: int = 8) -> Decisions:
    """Any decisions that a plan could hold: slots that do not divide the layers, any resident pattern, many passes."""
    batches = draw(mini_batches(max_groups=2, max_prompt=max_prompt, max_gen=max_gen))
    resident = draw(st.lists(st.integers(0, WHOLE), min_size=layers, max_size=layers))
    fewest = 0 if min(resident) == WHOLE else 1
    return decisions_of(
        batches,
        resident,
        weight_slots=draw(st.integers(fewest, 3)),
        cache_slots=draw(st.integers(1, 4)),
        store_slots=draw(st.integers(1, 4)),
        chunk_tokens=draw(st.integers(1, 150)),
        pass_tokens=draw(st.integers(1, 400)),
    )


def write_profile(folder: Path, data: dict[str, Any]) -> str:
    """A profile file of `data`; returns its path as text."""
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return str(path)


def batch_of(lengths: list[tuple[int, int]]) -> MiniBatch:
    """Requests of these (prompt, generation) lengths, K and V on the host."""
    return MiniBatch(tuple(
        RequestGroup((i,), prompt, gen, (KV_HOST,) * blocks_for(prompt + gen - 1))
        for i, (prompt, gen) in enumerate(lengths)
    ))  # fmt: skip
