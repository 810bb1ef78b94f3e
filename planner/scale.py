"""Scale models: a small shape and a slow link whose ratios are those of a large model on a real GPU.

Two ratios decide which policy wins: rebuild time over K/V transfer time per token, and weight transfer time over the
transfer time of the whole cache. The link is slowed to match the first, the batch chosen to match the second.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.costs import CostModel
from planner.files import validate
from planner.forms import BLOCK_TOKENS
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.workload import Workload

RATIO_BLOCKS = 512
"""Blocks of a rebuild large enough for the full GEMM rate."""


@dataclass(frozen=True)
class Ratios:
    """What a scale model keeps."""

    rebuild_over_kv: float
    """Seconds to rebuild K and V of a token over seconds to transfer them."""
    weights_over_kv: float
    """Bytes of a layer's weights over bytes of the K and V of the whole batch in it."""

    @classmethod
    def of(cls, costs: CostModel, cached_tokens: int) -> Ratios:
        model = costs.model
        kv = model.kv_bytes_per_token_layer
        rebuild_s = costs.rebuild(RATIO_BLOCKS).seconds / (RATIO_BLOCKS * BLOCK_TOKENS)
        return cls(
            rebuild_over_kv=rebuild_s / (kv / costs.hardware.link.h2d_bytes_per_s.value),
            weights_over_kv=model.layer_bytes / (cached_tokens * kv),
        )


def scaled_link(hardware: HardwareProfile, model: ModelSpec, wanted: Ratios, what: str) -> HardwareProfile:
    """`hardware` with its link at the pace at which `model` has the wanted rebuild ratio; says so in its name."""
    found = Ratios.of(CostModel(hardware, model), 1)
    rate = hardware.link.h2d_bytes_per_s.value * wanted.rebuild_over_kv / found.rebuild_over_kv
    data = hardware.to_plain()
    source = f"set so that rebuild over K/V transfer time is {wanted.rebuild_over_kv:.3f}, as for {what}"
    for key in data["link"]:
        if key.endswith("_bytes_per_s"):
            data["link"][key] = {"value": rate, "kind": "assumed", "source": source}
    data["id"] = f"{hardware.id}-scale-model"
    data["scale_model_of"] = what
    return validate(HardwareProfile, data, data["id"])


def scaled_workload(model: ModelSpec, wanted: Ratios, requests: int, gen_len: int) -> Workload:
    """`requests` equal ones whose whole cache weighs against a layer's weights as wanted."""
    tokens = model.layer_bytes / (wanted.weights_over_kv * model.kv_bytes_per_token_layer)
    prompt = max(1, round(tokens / requests / BLOCK_TOKENS)) * BLOCK_TOKENS
    return Workload.uniform(requests, prompt, gen_len)


def scaled_model(model: ModelSpec, hidden: int, layers: int, vocab: int, dtype: str = "float32") -> ModelSpec:
    """`model` with another width, depth and vocabulary: heads of 64, feed-forward in proportion."""
    return replace_fields(
        model, name=f"{model.name}-scale-{hidden}", hidden=hidden, layers=layers, heads=hidden // 64,
        kv_heads=hidden // 64, head_dim=64, ffn=hidden * model.ffn // model.hidden, vocab=vocab, dtype=dtype,
    )  # fmt: skip


def replace_fields(model: ModelSpec, **changes: object) -> ModelSpec:
    """A checked copy of `model` with fields changed."""
    return validate(ModelSpec, {**model.model_dump(), **changes}, model.name)
