"""What kernels alone do not tell: the engine's own overhead, and how kernels slow down beside a busy link."""

from __future__ import annotations

import statistics

import torch

from hwprofiles import path_of
from planner.costs import CostModel
from planner.files import read_yaml, validate
from planner.forms import BLOCK_TOKENS
from planner.hardware import HardwareProfile
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.scale import scaled_model
from planner.search import Options
from planner.workload import Workload
from runtime.cpu_device import CpuDevice
from runtime.device import Device
from runtime.engine import Engine, random_prompts
from runtime.execution import execute
from runtime.weights import RandomWeights

CALIBRATION_LAYERS, CALIBRATION_VOCAB = 3, 512
CALIBRATION_REQUESTS, CALIBRATION_PROMPT, CALIBRATION_STEPS = 8, 320, 14
CALIBRATION_RUNS = 2
SLOWED = ("prefill", "rebuild", "forward")
"""Kinds of operation whose kernels a profile compares with themselves inside the engine."""
PACED = ("h2d", "d2h", "h2d_during_d2h", "d2h_during_h2d")
STEPS = 32
WARM_UP_STEPS = 2


def engine_overheads(kind: str) -> tuple[list[float], list[float]]:
    """Seconds of each embedding and of each decode forward of a tiny resident model, the first steps left out."""
    hardware = _any_profile(kind)
    model = load_model("opt-tiny")
    plan = make_plan(hardware, model, Workload.uniform(2, 16, STEPS), POLICIES["kv-only"])
    device = _device(kind)
    try:
        engine = Engine(plan, device, RandomWeights(0, device.torch_device))
        spans = engine.run(random_prompts(plan, 0)).timeline.spans
    finally:
        device.close()
    small, forward = (
        [span.end_s - span.start_s for span in spans if span.kind == kind and span.step > WARM_UP_STEPS]
        for kind in ("embed", "forward")
    )
    return small, forward


def engine_slowdowns(profile: HardwareProfile, hidden: int, dtype: str) -> dict[str, list[float]]:
    """By kind of operation: measured over predicted time of each one of a small job, the first steps left out.

    Half of the cache is kept as activations, and where the link is paced it is paced to be as busy as compute.
    """
    model = scaled_model(load_model("opt-6.7b"), hidden, CALIBRATION_LAYERS, CALIBRATION_VOCAB, dtype)
    job = Workload.uniform(CALIBRATION_REQUESTS, CALIBRATION_PROMPT, CALIBRATION_STEPS)
    hardware = profile
    if profile.gpu.device == "cpu":
        tokens = job.total_prompt_tokens
        compute = CostModel(profile, model).rebuild(tokens // 2 // BLOCK_TOKENS).seconds
        moved = tokens * (model.kv_bytes_per_token_layer + model.act_bytes_per_token_layer) / 2
        hardware = profile.with_values(**{f"link.{key}_bytes_per_s": moved / compute / 1.5 for key in PACED})
    arena = model.outer_bytes + 2 * model.layer_bytes + 3 * job.total_prompt_tokens * model.kv_bytes_per_token_layer
    reserve = profile.gpu.memory.context_reserve_bytes.value
    usable = min(profile.gpu.memory.usable_bytes.value, arena + reserve)
    hardware = hardware.with_values(**{"gpu.memory.usable_bytes": usable})
    options = Options(act_share=0.5, mini_batches=2, max_resident_layers=0)
    plan = make_plan(hardware, model, job, POLICIES["hybrid"], options)
    found: dict[str, list[float]] = {kind: [] for kind in SLOWED}
    for _ in range(CALIBRATION_RUNS):
        done = execute(plan)
        for left, right in zip(done.predicted.spans, done.measured.spans, strict=True):
            if left.kind in found and (left.step == 0 or left.step > WARM_UP_STEPS):
                found[left.kind].append((right.end_s - right.start_s) / (left.end_s - left.start_s))
    return found


def recalibrated(profile: HardwareProfile, hidden: int, dtype: str) -> HardwareProfile:
    """`profile` with its engine slowdowns as they are now: a shared machine is not equally fast all the time."""
    slowdown = profile.gpu.achieved.engine_slowdown
    return profile.with_values(**{
        f"gpu.achieved.engine_slowdown.{kind}": getattr(slowdown, kind).value * statistics.median(now)
        for kind, now in engine_slowdowns(profile, hidden, dtype).items()
    })  # fmt: skip


def _device(kind: str) -> Device:
    if kind == "cpu":
        return CpuDevice(None, None)
    from runtime.cuda_device import CudaDevice  # noqa: PLC0415

    return CudaDevice(index=torch.cuda.current_device())


def _any_profile(kind: str) -> HardwareProfile:
    """A profile roomy enough to keep the tiny model resident; its rates do not matter here."""
    data = read_yaml(path_of("rtx4090-pcie4"), "hardware profile")
    curves = data["gpu"]["achieved"]["gemm_flops_by_rows"]
    curves["float32"] = curves["float16"]
    data["gpu"]["device"] = kind
    return validate(HardwareProfile, data, "overhead")
