"""One prediction for each published figure, from the shipped profile and the cost model alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from benchmarks.figures import Row, System
from benchmarks.peers import zero_inference_bound
from planner.costs import CostModel
from planner.hardware import load_hardware
from planner.model import load_model
from planner.peers.flexgen import FlexGen, Setting, speeds
from planner.peers.job import Job
from planner.peers.kvpr import kvpr_saving
from planner.peers.streaming import accelerate, zero_inference
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.search import Options
from planner.workload import Workload

Kind = Literal["point", "range", "at most"]
LINK, GPU = "link", "gpu.achieved"
GEMM, MEMORY = f"{GPU}.gemm_flops_by_rows.float16", f"{GPU}.memory_bytes_per_s"
PINNED, PAGEABLE = f"{LINK}.h2d_bytes_per_s", f"{LINK}.pageable_h2d_bytes_per_s"


@dataclass(frozen=True)
class Prediction:
    """In the unit of the published figure. `low` and `high` are equal for a point; a bound has no low end."""

    kind: Kind
    low: float | None
    high: float
    rates: tuple[str, ...]
    """Keys of the profile that decide the result."""
    parts: dict[str, float] = field(default_factory=dict)
    """Figures on the way that are worth keeping, by a name with the unit in it."""

    @classmethod
    def point(cls, value: float, rates: tuple[str, ...], parts: dict[str, float] | None = None) -> Prediction:
        return cls("point", value, value, rates, parts or {})


def predict(row: Row) -> Prediction:
    """InputError when the row names no such profile or model."""
    return MODELS[row.system](row)


def _costs(row: Row, model: str | None = None) -> CostModel:
    return CostModel(load_hardware(row.hardware), load_model(model or row.models[0]))


def _job(row: Row) -> Job:
    return Job(row.batch, row.prompt_len, row.gen_len)


def _accelerate(row: Row) -> Prediction:
    phases = accelerate(_costs(row), _job(row))
    parts = {"prefill_s": phases.prefill_s, "decode_step_s": phases.decode_step_s}
    return Prediction.point(phases.tokens_per_s(_job(row)), (PAGEABLE, MEMORY, GEMM), parts)


def _zero(row: Row) -> Prediction:
    phases = zero_inference(_costs(row), _job(row))
    parts = {"prefill_s": phases.prefill_s, "decode_step_s": phases.decode_step_s}
    return Prediction.point(phases.tokens_per_s(_job(row)), (PINNED, MEMORY, GEMM), parts)


def _zero_cpu_attention(row: Row) -> Prediction:
    phases = zero_inference_bound(_costs(row), _job(row))
    parts = {"prefill_s": phases.prefill_s, "decode_step_s": phases.decode_step_s}
    return Prediction("at most", None, phases.tokens_per_s(_job(row)), (PINNED, GEMM, MEMORY), parts)


def _flexgen_cpu_attention(row: Row) -> Prediction:
    assert row.policy is not None and row.host_memory_bytes_per_s is not None  # the schema saw to it
    stated = row.policy
    policy = Setting(
        stated.gpu_batch, stated.batches, stated.weights_on_gpu, overlap=stated.overlap, cpu_attention=True
    )
    phases = FlexGen(_costs(row), policy, row.host_memory_bytes_per_s.value).phases(_job(row))
    parts = {"prefill_s": phases.prefill_s, "decode_step_s": phases.decode_step_s}
    return Prediction("at most", None, phases.tokens_per_s(_job(row)), (PINNED, GEMM, MEMORY), parts)


def _flexgen(row: Row) -> Prediction:
    found = speeds(_costs(row), _job(row))
    best = max(found, key=lambda setting: found[setting])
    parts = {
        "policies": float(len(found)), "best_gpu_batch": float(best.gpu_batch), "best_batches": float(best.batches),
        "best_weights_on_gpu": best.weights_on_gpu, "best_cache_on_gpu": best.cache_on_gpu,
    }  # fmt: skip
    return Prediction("range", min(found.values()), max(found.values()), (PAGEABLE, PINNED, GEMM, MEMORY), parts)


def _kvpr(row: Row) -> Prediction:
    return Prediction.point(kvpr_saving(_costs(row), _job(row)), (PINNED, GEMM))


def speedup(row: Row, model: str) -> dict[str, float]:
    """Tokens/s of this project's hybrid plan and of FlexGen's best policy, with and without its relay."""
    costs, job = _costs(row, model), _job(row)
    workload = Workload.uniform(row.batch, row.prompt_len, row.gen_len)
    plan = make_plan(costs.hardware, costs.model, workload, POLICIES["hybrid"], Options(waves=1))
    return {
        "hybrid_tokens_per_s": plan.prediction.throughput_tokens_per_s,
        "flexgen_tokens_per_s": max(speeds(costs, job).values()),
        "flexgen_pinned_tokens_per_s": max(speeds(costs, job, relay=False).values()),
    }


def _hybridserve(row: Row) -> Prediction:
    found = {model: speedup(row, model) for model in row.models}
    low = fmean(one["hybrid_tokens_per_s"] / one["flexgen_pinned_tokens_per_s"] for one in found.values())
    high = fmean(one["hybrid_tokens_per_s"] / one["flexgen_tokens_per_s"] for one in found.values())
    parts = {f"{model}_{key}": value for model, one in found.items() for key, value in one.items()}
    return Prediction("range", low, high, (PINNED, PAGEABLE, GEMM, MEMORY), parts)


MODELS: dict[System, Callable[[Row], Prediction]] = {
    "accelerate": _accelerate,
    "zero-inference": _zero,
    "zero-inference-cpu-attention": _zero_cpu_attention,
    "flexgen": _flexgen,
    "flexgen-cpu-attention": _flexgen_cpu_attention,
    "kvpr": _kvpr,
    "hybridserve-over-flexgen": _hybridserve,
}
